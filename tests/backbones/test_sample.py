"""Continuations and answers, the likeliest and drawn ones, against the losses that training sees and whole logits."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.llama import Llama
from fedfault.backbones.load import MICRO
from fedfault.backbones.sample import answer_prompts, decode_greedily, draw_tokens
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.text.questions import Sampling
from tiny import CAUSAL, GROUPED, SPECIAL, VOCAB, make, tiny_gpt2, tiny_llama

N, S, LENGTH = 3, 5, 6


def opened(model, targets=None) -> CohortModel:
    return CohortModel(model, targets or lora_targets(model, None), r=2, alpha=4.0)


def moved(c: CohortModel) -> torch.Tensor:
    flat = c.init(0).flat
    return flat + 0.2 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))


def prefixes(vocabulary: int = VOCAB) -> torch.Tensor:
    return torch.randint(1, vocabulary, (N, S), generator=torch.Generator().manual_seed(0))


def likeliest(c: CohortModel, flat: torch.Tensor, context: torch.Tensor) -> int:
    """The next token of the smallest training loss after a context (T,), every token of the vocabulary tried."""
    every = torch.cat([context.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)  # (V, T + 1)
    with torch.no_grad():
        _, each = c.losses(flat[None], every[None], torch.ones(1, VOCAB, len(context)))
    return int(each[0, :, -1].argmin())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (tiny_llama, lambda m: lora_targets(m, None)),
        (tiny_gpt2, lambda m: lora_targets(m, None)),
        (lambda: tiny_llama(tied=False), lambda m: partial_targets(m, 1, ["lm_head", "model.norm"])),
        (tiny_gpt2, lambda m: partial_targets(m, 1, ["lm_head"])),  # with the tied embedding
    ],
    ids=["lora", "lora_gpt2", "head", "tied_head"],
)
def test_every_token_is_the_one_with_the_smallest_loss(build, targets):
    model = build()
    c = opened(model, targets(model))
    flat = moved(c)
    made = decode_greedily(c, flat, prefixes(), LENGTH)
    assert made.shape == (N, LENGTH)
    for prefix, row in zip(prefixes(), made, strict=True):
        whole = torch.cat([prefix, row])
        assert row.tolist() == [likeliest(c, flat, whole[: S + i]) for i in range(LENGTH)]
    assert len(made.unique()) > 2  # a model that always says the same would prove little


@pytest.mark.slow
def test_micro_continues_as_one_teacher_forced_pass_over_the_result_says():
    c = opened(Llama.from_folder(MICRO))
    flat = c.init(0).flat
    made = decode_greedily(c, flat, prefixes(4096), LENGTH)
    whole = torch.cat([prefixes(4096), made], dim=1)
    with torch.no_grad(), c.slots.bind(flat[None]):
        logits = c.model(input_ids=whole[:, :-1]).logits
    assert torch.equal(logits.argmax(-1)[:, S - 1 :], made)


def test_the_adapter_decides_what_is_written():
    c = opened(tiny_llama())
    assert not torch.equal(
        decode_greedily(c, c.init(0).flat, prefixes(), LENGTH), decode_greedily(c, moved(c), prefixes(), LENGTH)
    )


@pytest.mark.slow
def test_writing_twice_gives_the_same_and_leaves_the_model_as_it_was():
    c = opened(tiny_llama())
    flat, before = moved(c), c.checksums()
    kept, ids = flat.clone(), torch.randint(VOCAB, (1, 2, 8), generator=torch.Generator().manual_seed(1))
    loss = c.losses(flat[None], ids, torch.ones(1, 2, 7))[1]
    first, second = (decode_greedily(c, flat, prefixes(), LENGTH) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(flat, kept)
    assert c.checksums() == before
    assert torch.equal(c.losses(flat[None], ids, torch.ones(1, 2, 7))[1], loss)


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_prompts_of_any_lengths_are_answered_as_each_alone(build):
    model = build()
    c = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    flat = c.init(0).flat + 0.2 * torch.randn(c.layout.size, generator=torch.Generator().manual_seed(1))
    prompts = [[5, 9, 2, 40, 8, 7, 3], [11], [4, 4, 17], [60, 2, 1]]
    alone = [decode_greedily(c, flat, torch.tensor([p]), 6)[0].tolist() for p in prompts]
    assert answer_prompts(c, flat, prompts, 6, ()) == alone
    stop = alone[2][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in alone]
    assert answer_prompts(c, flat, prompts, 6, {stop}) == expected


@pytest.mark.slow
def test_an_answer_that_is_drawn_is_the_same_in_any_company_and_that_of_its_law():
    """Token by token from whole logits: the first whose probability, with those of all likelier ones, passes the draw."""
    c = opened(tiny_llama())
    flat, prompts = moved(c), [[5, 9, 2, 40, 8, 7, 3], [11], [4, 4, 17]]
    draws = torch.rand(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = answer_prompts(c, flat, prompts, 6, (), Sampling(0.7, 1.0, draws))
    for prompt, own, made in zip(prompts, draws, together, strict=True):
        assert answer_prompts(c, flat, [prompt], 6, (), Sampling(0.7, 1.0, own[None])) == [made]
        with torch.no_grad(), c.slots.bind(flat[None]):
            logits = c.model(input_ids=torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1]
        p, order = (logits.double() / 0.7).softmax(-1).sort(descending=True)
        place = [int((p[i].cumsum(0) > own[i]).nonzero()[0]) for i in range(6)]
        assert made == [int(order[i, at]) for i, at in enumerate(place)]
    greedy = answer_prompts(c, flat, prompts, 6, ())
    assert together != greedy
    assert answer_prompts(c, flat, prompts, 6, (), Sampling(0.7, 1e-9, draws)) == greedy


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_even_draws_give_every_token_its_share_of_what_top_p_keeps(temperature, top_p):
    logits, n = torch.tensor([0.3, -1.0, 2.0, 1.1, -0.2]), 10_000
    p = (logits.double() / temperature).softmax(-1)
    likeliest = p.sort(descending=True)[0]
    kept = next(k for k in range(1, 6) if likeliest[:k].sum() >= top_p - 1e-12)
    expected = torch.where(p >= likeliest[kept - 1], p, 0.0)
    found = draw_tokens(logits.expand(n, -1), (torch.arange(n) + 0.5) / n, temperature, top_p).bincount(minlength=5) / n
    torch.testing.assert_close(found.double(), expected / expected.sum(), rtol=0, atol=1.5 / n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mamba", "xlm with a causal mask", "rwkv", "bamba"])
def test_a_model_that_cannot_go_on_from_what_it_keeps_reads_its_tokens_anew(kind):
    """Mamba and RWKV have caches of other names, XLM does not give its own back, Bamba's differs from its whole pass."""
    others = {
        "rwkv": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2, **SPECIAL}),
        "bamba": (
            "BambaConfig",
            {**GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4,
             "mamba_n_groups": 1, "mamba_chunk_size": 8},
        ),
    }  # fmt: skip
    model = make(*(CAUSAL | others)[kind])
    c = CohortModel(model, lora_targets(model, "all-linear"), r=2, alpha=4.0)
    flat, ids = moved(c), prefixes(VOCAB)[:, :3]
    made, expected = decode_greedily(c, flat, ids, 4), ids
    for _ in range(4):
        with torch.no_grad(), c.slots.bind(flat[None]):
            last = c.model.base_model(input_ids=expected, use_cache=False).last_hidden_state[:, -1]
            expected = torch.cat([expected, model.get_output_embeddings()(last).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, expected[:, 3:])
    assert answer_prompts(c, flat, [ids[0].tolist()], 4, ()) == [made[0].tolist()]
