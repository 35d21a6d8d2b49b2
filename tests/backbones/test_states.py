"""Hidden states and attention weights against transformers' own, and against the outputs that they lead to."""

from __future__ import annotations

from types import MethodType

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.llama import Llama
from fedfault.backbones.sites import find_blocks, lora_targets, partial_targets
from fedfault.backbones.states import attention_weights, hidden_states
from tiny import VOCAB, tiny_llama

T = 9
IDS = torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))


def opened(model, partial: bool = False) -> CohortModel:
    targets = partial_targets(model, 1, ["embed_tokens"]) if partial else lora_targets(model, None)
    return CohortModel(model, targets, r=4, alpha=10.0)


def trained(c: CohortModel, k: int = 3) -> torch.Tensor:
    noise = torch.randn(k, c.layout.size, generator=torch.Generator().manual_seed(2))
    return c.init(0).flat + 0.1 * noise


@pytest.fixture
def ours(tmp_path) -> Llama:
    """The package's own Llama with the weights of the tiny one."""
    tiny_llama().save_pretrained(tmp_path)
    return Llama.from_folder(tmp_path).eval()


def test_states_are_those_of_transformers_the_last_one_before_the_last_norm(tiny):
    expected = tiny()(input_ids=IDS, output_hidden_states=True).hidden_states
    c = opened(tiny())
    found = [layer[0] for layer in hidden_states(c, c.init(0).flat[None], IDS)]
    assert len(found) == 3
    torch.testing.assert_close(found[:-1], list(expected[:-1]), rtol=1e-4, atol=1e-5)
    norm = getattr(c.model.base_model, "norm", None) or c.model.base_model.ln_f
    torch.testing.assert_close(norm(found[-1]), expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_package_s_own_llama_has_the_states_of_transformers(ours):
    mine, theirs = opened(ours), opened(tiny_llama())
    flat = trained(mine)
    torch.testing.assert_close(hidden_states(mine, flat, IDS), hidden_states(theirs, flat, IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("partial", [False, True])
def test_states_of_a_row_do_not_depend_on_the_other_rows(partial):
    c = opened(tiny_llama(), partial)
    flat = trained(c)
    together = hidden_states(c, flat, IDS)
    for k in range(3):
        alone = hidden_states(c, flat[k : k + 1], IDS)
        torch.testing.assert_close(
            [layer[k] for layer in together], [layer[0] for layer in alone], rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(together[-1][0], together[-1][1])


def outputs_by_hand(c: CohortModel, flat: torch.Tensor, weights: list[torch.Tensor]) -> tuple[list, list]:
    """What the attention layers put out in a plain pass, and what `weights` make of the values in that pass."""
    real, made = [], []

    def compare(module, args, kwargs, out):
        x, a = args[0] if args else kwargs["hidden_states"], weights[len(real)].flatten(0, 1)  # (N, H, T, T)
        llama = hasattr(module, "v_proj")
        v = module.v_proj(x) if llama else module.c_attn(x).chunk(3, -1)[2]
        v = v.unflatten(-1, (-1, 6)).transpose(1, 2)  # (N, G, T, head_dim)
        v = v.repeat_interleave(a.shape[1] // v.shape[1], 1)
        real.append(out[0])
        made.append((module.o_proj if llama else module.c_proj)((a @ v).transpose(1, 2).flatten(2)))

    attentions = [getattr(b, "self_attn", None) or b.attn for b in find_blocks(c.model)[1]]
    hooks = [m.register_forward_hook(compare, with_kwargs=True) for m in attentions]
    with torch.no_grad(), c.slots.bind(flat):
        c.model.base_model(input_ids=IDS.repeat(len(flat), 1), use_cache=False)
    for hook in hooks:
        hook.remove()
    return real, made


def check_weights(c: CohortModel) -> None:
    flat = trained(c, 2)
    weights = attention_weights(c, flat, IDS)
    assert weights is not None
    assert [tuple(w.shape) for w in weights] == [(2, 2, 4, T, T)] * 2
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(2, 2, 4, T))
        assert not w.triu(1).any()
    torch.testing.assert_close(*outputs_by_hand(c, flat, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("short", [256, 4])  # longer blocks take the attention of the model itself
def test_attention_weights_times_values_are_what_the_layer_puts_out(tiny, short, monkeypatch):
    monkeypatch.setattr("fedfault.backbones.lean.SHORT", short)
    check_weights(opened(tiny()))


@pytest.mark.parametrize("short", [256, 4])
def test_so_they_are_in_the_package_s_own_llama(ours, short, monkeypatch):
    monkeypatch.setattr("fedfault.backbones.lean.SHORT", short)
    check_weights(opened(ours))


def test_looking_leaves_nothing_behind(tiny):
    c = opened(tiny())
    flat, ids, ones = trained(c), IDS[None].expand(3, -1, -1), torch.ones(3, 2, T - 1)
    hooks = lambda: [h for m in c.model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]  # noqa: E731
    before, own = c.losses(flat, ids, ones)[1], hooks()
    kept, sums = c.model.config._attn_implementation, c.checksums()
    hidden_states(c, flat, IDS), attention_weights(c, flat, IDS)
    assert (hooks(), c.model.config._attn_implementation, c.checksums()) == (own, kept, sums)
    assert torch.equal(c.losses(flat, ids, ones)[1], before)


def test_an_interrupted_look_leaves_nothing_behind(tiny):
    c = opened(tiny())
    kept = c.model.config._attn_implementation
    with pytest.raises(IndexError):
        attention_weights(c, trained(c), IDS + VOCAB)
    assert c.model.config._attn_implementation == kept
    assert not any(m._forward_hooks for block in find_blocks(c.model)[1] for m in block.modules())
    assert not c.slots.now


def test_a_model_that_keeps_its_fused_attention_gives_no_weights(tiny):
    c = opened(tiny())
    c.model.set_attn_implementation = MethodType(lambda self, name: None, c.model)
    for block in find_blocks(c.model)[1]:
        if hasattr(block, "self_attn"):
            block.self_attn = block.self_attn.original[0]
    assert attention_weights(c, c.init(0).flat[None], IDS) is None
