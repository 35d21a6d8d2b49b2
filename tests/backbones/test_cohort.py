"""K adapters in one pass against PEFT's own model, one client at a time."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import ActivationCache, Prefix
from fedfault.backbones.sample import answer_prompts, decode_greedily
from fedfault.backbones.scorer import FIRST, Scorer
from fedfault.backbones.sites import Targets, lora_targets, partial_targets
from fedfault.errors import UserError
from tiny import CAUSAL, VOCAB, make, tiny_gpt2, tiny_llama

K, B, T, R = 3, 2, 7, 4


def cohort(model, targets=None, **options) -> CohortModel:
    return CohortModel(model, targets or lora_targets(model, None), r=R, alpha=10.0, **options)


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


def trained(layout, k: int = K) -> torch.Tensor:
    """Adapters of k clients that all differ, with B away from zero, of both signs."""
    return 0.3 * torch.randn(k, layout.size, generator=torch.Generator().manual_seed(2))


def peft_loss_and_grads(
    build, targets: list[str], c: CohortModel, flat: torch.Tensor, ids: torch.Tensor, real: torch.Tensor
):
    """The same client in PEFT: mean loss over the real targets and the gradient as a flat row."""
    from peft import LoraConfig, get_peft_model

    model = build()
    fan = type(model).__name__.startswith("GPT2")
    peft = get_peft_model(model, LoraConfig(r=R, lora_alpha=10, target_modules=targets, fan_in_fan_out=fan))
    modules = dict(peft.base_model.model.named_modules())
    with torch.no_grad():
        for site in c.layout.sites:
            A, B = c.layout.pair(flat, site)
            modules[site.name].lora_A["default"].weight.copy_(A)
            modules[site.name].lora_B["default"].weight.copy_(B)
    logits = peft(input_ids=ids[:, :-1]).logits
    each = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1), reduction="none")
    loss = (each * real.reshape(-1)).sum() / real.sum()
    loss.backward()
    grads = []
    for site in c.layout.sites:
        m = modules[site.name]
        grads += [m.lora_A["default"].weight.grad.flatten(), m.lora_B["default"].weight.grad.flatten()]
    return loss.detach(), torch.cat(grads)


def losses_and_grads(c: CohortModel, flat: torch.Tensor, ids: torch.Tensor, real: torch.Tensor):
    leaf = flat.clone().requires_grad_()
    weight = real / real.sum((1, 2), keepdim=True)
    total, each = c.losses(leaf, ids, weight)
    (grad,) = torch.autograd.grad(total, leaf)
    return (each * weight).sum((1, 2)), grad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (tiny_llama, ["q_proj", "v_proj"]),
        (lambda: tiny_llama(tied=False), ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        (tiny_gpt2, ["c_attn"]),
        (tiny_gpt2, ["c_attn", "c_proj", "c_fc"]),
    ],
)
def test_every_client_has_the_loss_and_gradient_that_peft_gives_it_alone(build, targets):
    c = cohort(build(), lora_targets(build(), targets))
    flat, ids = trained(c.layout), some_ids(K, B, T + 1)
    real = torch.ones(K, B, T)
    real[1, 1] = 0  # a partial last batch
    real[2, 0, 3:] = 0  # a short last block
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        expected, expected_grad = peft_loss_and_grads(build, targets, c, flat[k], ids[k], real[k])
        torch.testing.assert_close(loss[k], expected, rtol=1e-5, atol=0)
        assert (grad[k] - expected_grad).norm() <= 1e-5 * expected_grad.norm()


@pytest.mark.slow
def test_a_cohort_of_k_is_k_cohorts_of_one(tiny):
    c = cohort(tiny())
    flat, ids, real = trained(c.layout), some_ids(K, B, T + 1), torch.ones(K, B, T)
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        one, one_grad = losses_and_grads(c, flat[k : k + 1], ids[k : k + 1], real[k : k + 1])
        torch.testing.assert_close(loss[k], one[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(grad[k], one_grad[0], rtol=1e-4, atol=1e-6)


def test_long_sequences_take_the_original_attention_to_the_same_gradients(monkeypatch):
    c, ids = cohort(tiny_llama()), some_ids(K, B, T + 1)
    flat, real = trained(c.layout), torch.ones(K, B, T)
    short = losses_and_grads(c, flat, ids, real)
    monkeypatch.setattr("fedfault.backbones.lean.SHORT", T - 1)
    torch.testing.assert_close(losses_and_grads(c, flat, ids, real), short, rtol=1e-4, atol=1e-6)


def test_an_untrained_adapter_is_the_base_to_the_last_bit(tiny):
    ids = some_ids(1, B, T + 1)
    base = tiny()
    c = cohort(tiny())
    _, each = c.losses(c.init(0).flat[None], ids, torch.ones(1, B, T))
    plain = CohortModel(base, Targets(), r=R, alpha=10.0)
    _, expected = plain.losses(torch.zeros(1, 0), ids, torch.ones(1, B, T))
    assert torch.equal(each, expected)


def test_the_base_loss_is_the_one_transformers_reports(tiny):
    ids, model = some_ids(1, B, T + 1), tiny()
    logits = model(input_ids=ids[0, :, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[0, :, 1:].reshape(-1))
    _, each = cohort(model).losses(cohort(tiny()).init(0).flat[None], ids, torch.ones(1, B, T))
    torch.testing.assert_close(each.mean(), expected, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "modules"),
    [
        (tiny_llama, ["model.norm"]),
        (tiny_llama, ["embed_tokens"]),
        (lambda: tiny_llama(tied=False), ["lm_head", "embed_tokens"]),
        (tiny_gpt2, ["ln_f"]),
        (tiny_gpt2, ["wte"]),
        (lambda: another("Phi"), ["lm_head"]),
        (lambda: make(*CAUSAL["xlm with a causal mask"]), []),
    ],
)
def test_whole_layers_per_client_have_the_gradients_of_the_plain_model(build, modules):
    c = cohort(build(), partial_targets(build(), 1, modules))
    start = c.init(0).flat
    flat = start + 0.05 * torch.randn(K, len(start), generator=torch.Generator().manual_seed(3))
    ids, real = some_ids(K, B, T + 1), torch.ones(K, B, T)
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        model = build().requires_grad_(False)
        parameters = [model.get_parameter(s.name).requires_grad_() for s in c.layout.sites]
        with torch.no_grad():
            for p, s in zip(parameters, c.layout.sites, strict=True):
                p.copy_(c.layout.part(flat[k], s))
        logits = model(input_ids=ids[k, :, :-1]).logits
        expected = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[k, :, 1:].reshape(-1))
        expected_grad = torch.cat([g.flatten() for g in torch.autograd.grad(expected, parameters)])
        torch.testing.assert_close(loss[k], expected, rtol=1e-5, atol=0)
        assert (grad[k] - expected_grad).norm() <= 2e-5 * expected_grad.norm()


def test_dropout_depends_on_the_client_not_on_its_company():
    c = cohort(tiny_llama(), dropout=0.5)
    flat, ids, weight = trained(c.layout), some_ids(K, B, T + 1), torch.ones(K, B, T)
    key = torch.tensor([5, 6, 7])
    _, together = c.losses(flat, ids, weight, key)
    _, alone = c.losses(flat[1:2], ids[1:2], weight[1:2], key[1:2])
    torch.testing.assert_close(together[1], alone[0])
    _, other = c.losses(flat, ids, weight, key + 1)
    assert not torch.allclose(together, other)
    _, off = c.losses(flat, ids, weight)
    assert not torch.allclose(together, off)


def test_skipping_the_frozen_blocks_changes_nothing(tiny):
    build = lambda: tiny(blocks=3)  # noqa: E731
    model = build()
    c = cohort(model, partial_targets(model, 1, []))
    assert c.targets.first_block == 2
    flat = c.init(0).flat.expand(K, -1) + 0.01
    ids, real = some_ids(K, B, T + 1), torch.ones(K, B, T)
    plain = losses_and_grads(c, flat, ids, real)
    table = ids.reshape(K * B, T + 1)[:, :-1]
    room_for_four = 4 * T * 24 * 4
    cache = ActivationCache(Prefix(model, 2), table, room_for_four)
    for _ in range(2):  # first filling, then mixed: four rows fit, two do not
        with cache.prefix.skip_frozen_blocks(cache.get(torch.arange(K * B))):
            cached = losses_and_grads(c, flat, ids, real)
        torch.testing.assert_close(cached, plain)
    assert cache.used == 4
    torch.testing.assert_close(losses_and_grads(c, flat, ids, real), plain)  # and the blocks are back


@pytest.mark.parametrize("kind", ["bloom", "gptj", "mpt", "gpt_neo"])
def test_blocks_that_return_more_than_states_can_be_skipped(kind):
    model = make(*CAUSAL[kind])
    c = cohort(model, partial_targets(model, 1, []))
    prefix, ids = Prefix(model, 1), torch.randint(0, VOCAB, (2, T))
    with c.slots.bind(c.init(0).flat[None]):
        assert prefix.is_right(ids, {})
        assert prefix.beside is not None


def test_blocks_that_return_a_list_can_be_skipped():
    """The first GPT's do."""
    model = make("OpenAIGPTConfig", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB})
    assert Prefix(model, 2).is_right(torch.randint(0, VOCAB, (2, T)), {})


def test_a_head_s_bias_is_trained_with_it_and_not_with_the_table_that_it_is_tied_to():
    phi, xlm = another("Phi"), make(*CAUSAL["xlm with a causal mask"])
    assert partial_targets(phi, 0, ["lm_head"]).full_parameters == ("lm_head.weight", "lm_head.bias")
    assert partial_targets(xlm, 0, ["proj"]).full_parameters == (
        "transformer.embeddings.weight",
        "pred_layer.proj.bias",
    )
    assert partial_targets(xlm, 0, ["embeddings"]).full_parameters == ("transformer.embeddings.weight",)


def test_an_answer_is_chosen_with_the_trained_bias_of_the_head():
    phi = another("Phi")
    c = cohort(phi, partial_targets(phi, 0, ["lm_head"]))
    flat = c.init(0).flat
    (bias,) = (s for s in c.layout.sites if s.name == "lm_head.bias")
    c.layout.part(flat, bias)[7] = 1e3
    assert decode_greedily(c, flat, some_ids(1, 4), 3).tolist() == [[7, 7, 7]]
    assert answer_prompts(c, flat, [[3, 4]], 2, ()) == [[7, 7]]


def test_a_head_and_a_table_that_are_not_tied_are_both_trained():
    model = tiny_llama(tied=False)
    targets = partial_targets(model, 0, ["lm_head", "embed_tokens"])
    assert {*targets.full_parameters} == {"lm_head.weight", "model.embed_tokens.weight"}


def test_lora_on_upper_blocks_leaves_lower_ones_to_the_cache():
    model = tiny_llama(blocks=3)
    assert lora_targets(model, ["layers.2.self_attn.q_proj"]).first_block == 2
    assert lora_targets(model, None).first_block == 0
    assert partial_targets(model, 1, ["embed_tokens"]).first_block == 0


def another(kind: str, **changes):
    """A tiny model of another architecture."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, max_position_embeddings=64, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, **shape, **changes,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral", "Gemma", "GPTNeoX", "Phi", "StableLm", "Starcoder2"])
def test_other_architectures_keep_their_own_loss(kind):
    grouped = {} if kind in ("GPTNeoX", "Phi") else {"num_key_value_heads": 2}
    changes = grouped | {"Mistral": {"sliding_window": 4}, "Qwen3": {"head_dim": 8}, "Gemma": {"head_dim": 8}}.get(
        kind, {}
    )
    model, ids = another(kind, **changes), some_ids(1, B, T + 1)
    logits = model(input_ids=ids[0, :, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[0, :, 1:].reshape(-1))
    c = cohort(model)
    _, each = c.losses(c.init(0).flat[None], ids, torch.ones(1, B, T))
    torch.testing.assert_close(each.mean(), expected.detach(), rtol=1e-5, atol=0)


def test_a_layer_that_does_something_else_than_its_kind_is_refused():
    with pytest.raises(UserError, match=r"cannot train model\.layers\.1\.input_layernorm"):
        cohort(model := another("Gemma", head_dim=8, num_key_value_heads=2), partial_targets(model, 1, []))


SHORT = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
SHARED = {  # models that call layers on what all rows share, or with rows on another axis, and which
    "DebertaV2": (
        {**SHORT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True},
        ["query_proj", "value_proj"], "self.query_proj",
    ),
    "Longformer": ({**SHORT, "attention_window": 4}, ["query", "value"], "self.query, self.value"),
    "XLNet": ({"vocab_size": VOCAB, "d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 40}, ["layer_1"], "ff.layer_1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
def test_layers_in_which_clients_of_one_pass_would_get_one_anothers_numbers_are_refused(kind):
    import transformers

    settings, wanted, named = SHARED[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    targets = lora_targets(model, wanted)
    with pytest.raises(UserError, match=f"{kind}Model does not call {named}.* on a row for every text"):
        CohortModel(model, targets, r=2, alpha=4, scorer=Scorer(FIRST, 24, 3))


@pytest.mark.slow
def test_layers_that_a_model_does_not_call_are_refused_by_name():
    """PEFT opens them, and they learn nothing: Mamba reads one's weight, BART's decoder alone leaves others out."""
    mamba = make(*CAUSAL["mamba"])
    with pytest.raises(UserError, match=r"MambaForCausalLM does not call backbone\.layers\.0\.mixer\.dt_proj"):
        CohortModel(mamba, lora_targets(mamba, ["in_proj", "dt_proj"]), r=2, alpha=4.0)
    with pytest.raises(UserError, match=r"out_proj takes no LoRA pair: mamba reads its weight"):
        lora_targets(make(*CAUSAL["mamba"]), ["out_proj"])
    sizes = {
        "d_model": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "vocab_size": VOCAB,
    }
    bart = make("BartConfig", sizes)
    with pytest.raises(UserError, match=r"encoder_attn\.q_proj.*choose modules without encoder_attn\.q_proj$"):
        CohortModel(bart, lora_targets(bart, ["q_proj"]), r=2, alpha=4.0)
    bart = make("BartConfig", sizes)
    assert CohortModel(bart, lora_targets(bart, ["self_attn.q_proj"]), r=2, alpha=4.0).layout.size
