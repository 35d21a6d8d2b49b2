"""Frozen layers in 8 and 4 bits: every number and gradient is that of the rounded weights, written out by hand."""

from __future__ import annotations

import importlib.util
import time

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fedfault.backbones.checks import check_numbers
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import fingerprint_weights, load_backbone
from fedfault.backbones.quantised import (
    check_platform,
    check_runs,
    count_parameters,
    count_weight_bytes,
    dense_weight,
    named_tensors,
    quantise,
)
from fedfault.backbones.scorer import MEAN, Scorer, Texts
from fedfault.backbones.sites import is_quantised, lora_targets, partial_targets
from fedfault.errors import UserError
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import IntegrityError
from fedfault.tasks.language import LanguageTask
from fedfault.testing.toys import federation
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama

NEEDS = "bitsandbytes"
pytestmark = pytest.mark.skipif(importlib.util.find_spec(NEEDS) is None, reason=f"{NEEDS} is not installed")

K, B, T, R = 3, 2, 7, 4
CPU = torch.device("cpu")
KINDS = ["8bit", "4bit"]
kinds = pytest.mark.parametrize("kind", KINDS)


def quantised(model, kind: str, dtype=torch.float32):
    quantise(model, kind, dtype, CPU)
    return model.to(dtype).eval()


def opened(model, targets=None, **options) -> CohortModel:
    return CohortModel(model, targets or lora_targets(model, None), r=R, alpha=10.0, **options)


def by_hand(layer: nn.Linear) -> torch.Tensor:
    """The rounded weight (d_out, d_in) from what is stored: bytes, a table of 16 numbers, scales."""
    if layer.weight.dtype == torch.int8:
        return layer.weight * layer.state.SCB[:, None] / 127
    state = layer.weight.quant_state
    packed = layer.weight.flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()  # the first one of two is high
    count = layer.in_features * layer.out_features
    scales = state.absmax.repeat_interleave(64)[:count]
    return (state.code[codes[:count].long()] * scales).view(layer.out_features, layer.in_features)


def rounded(build, kind: str):
    """The plain model with rounded weights in float32."""
    plain, source = build(), quantised(build(), kind)
    for name, layer in source.named_modules():
        if is_quantised(layer):
            W, weight = by_hand(layer), plain.get_parameter(f"{name}.weight")
            weight.data = W if isinstance(plain.get_submodule(name), nn.Linear) else W.T.contiguous()
    return plain


def case(layout):
    g = torch.Generator().manual_seed(2)
    flat = 0.3 * torch.randn(K, layout.size, generator=g)
    ids = torch.randint(VOCAB, (K, B, T + 1), generator=g)
    real = torch.ones(K, B, T)
    real[1, 1] = 0  # a partial last batch
    real[2, 0, 3:] = 0  # a short last block
    return flat, ids, real


def losses_and_grads(c: CohortModel, flat, ids, real):
    leaf = flat.clone().requires_grad_()
    weight = real / real.sum((1, 2), keepdim=True)
    total, each = c.losses(leaf, ids, weight)
    (grad,) = torch.autograd.grad(total, leaf)
    return (each * weight).sum((1, 2)), grad


def alone(plain, layout, flat, ids, real):
    """One client: the loss of the model whose weights are W + s B A, and its gradient."""
    leaf = flat.clone().requires_grad_()
    weights = {}
    for site in layout.lora:
        layer, change = plain.get_submodule(site.name), Adapter(layout, leaf).delta(site)
        weights[f"{site.name}.weight"] = layer.weight.detach() + (change if isinstance(layer, nn.Linear) else change.T)
    logits = functional_call(plain, weights, (), {"input_ids": ids[:, :-1]}).logits
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (each * real.flatten()).sum() / real.sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


@kinds
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (tiny_llama, ["q_proj", "v_proj"]),
        (lambda: tiny_llama(tied=False), ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        (tiny_gpt2, ["c_attn", "c_proj", "c_fc"]),
    ],
)
def test_every_client_has_the_loss_and_gradient_of_the_dense_model_with_rounded_weights(build, targets, kind):
    model = quantised(build(), kind)
    c = opened(model, lora_targets(model, targets))
    flat, ids, real = case(c.layout)
    loss, grad = losses_and_grads(c, flat, ids, real)
    plain = rounded(build, kind)
    for k in range(K):
        expected, expected_grad = alone(plain, c.layout, flat[k], ids[k], real[k])
        torch.testing.assert_close(loss[k], expected, rtol=1e-5, atol=0)
        assert (grad[k] - expected_grad).norm() <= 1e-5 * expected_grad.norm()
    unrounded, _ = alone(build(), c.layout, flat[0], ids[0], real[0])
    assert abs(float(loss[0] - unrounded)) > 1e-4  # there was something to round


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_losses_and_gradients_are_those_of_the_dense_model_with_rounded_weights(kind, dtype):
    """There 8-bit layers round activations to int8 too, and multiply in 16 bits."""
    off = 1e-3 if (kind, dtype) == ("4bit", torch.float32) else 5e-2
    model = tiny_llama()
    quantise(model, kind, dtype, torch.device("cuda"))
    c = opened(model.to("cuda", dtype).eval(), lora_targets(model, None))
    plain = tiny_llama().cuda()
    for name, layer in model.named_modules():
        if is_quantised(layer):
            plain.get_parameter(f"{name.replace('.base', '')}.weight").data = dense_weight(layer).float()
    flat, ids, real = (x.cuda() for x in case(c.layout))
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        expected, expected_grad = alone(plain, c.layout, flat[k], ids[k], real[k])
        assert abs(float(loss[k]) - float(expected)) <= off * float(expected)
        assert (grad[k] - expected_grad).norm() <= 10 * off * expected_grad.norm()


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@kinds
def test_on_a_gpu_a_quantised_backbone_takes_less_memory_and_trains(kind):
    """Layers wide enough that weights are most of the model; the time of a step is printed, see `pytest -rP`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = {}
    for name in ("none", kind):
        torch.manual_seed(0)
        config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, vocab_size=256)
        model = LlamaForCausalLM(config).requires_grad_(False)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        if name != "none":
            quantise(model, kind, torch.bfloat16, torch.device("cuda"))
        c = opened(model.to("cuda", torch.bfloat16).eval())
        weights = torch.cuda.memory_allocated() - before
        flat = c.init(0).flat.expand(K, -1)
        ids = torch.randint(256, (K, B, 65), generator=torch.Generator().manual_seed(0)).cuda()
        real = torch.ones(K, B, 64, device="cuda")
        for _ in range(3):
            began = time.perf_counter()
            loss, _ = losses_and_grads(c, flat, ids, real)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        found[name] = weights, loss.cpu()
        print(f"{name}: {weights / 1e6:.0f} MB of weights, {1000 * seconds:.1f} ms a step")
    assert found[kind][0] < (0.7 if kind == "8bit" else 0.5) * found["none"][0]
    torch.testing.assert_close(found[kind][1], found["none"][1], rtol=0.05, atol=0.0)


@kinds
@pytest.mark.parametrize("d_in", [96, 64, 24, 16, 7])
def test_a_weight_is_rounded_to_the_nearest_number_of_its_row_or_block(kind, d_in):
    """int8: by half a step of max |row| / 127. NF4: by half of its widest gap, 1 - 0.6962, times max |64 weights|."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(d_in, 5)})
    model.get_output_embeddings = lambda: None
    W, x = model["layer"].weight.detach().clone(), torch.randn(2, 3, d_in)
    quantise(model, kind, torch.float32, CPU)
    layer = model["layer"]
    torch.testing.assert_close(dense_weight(layer), by_hand(layer), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer(x), F.linear(x, by_hand(layer), layer.bias))
    error = (by_hand(layer) - W).abs()
    if kind == "8bit":
        assert bool((error <= W.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)).all())  # it goes through float16
    else:
        for off, block in zip(error.flatten().split(64), W.flatten().split(64), strict=True):
            assert float(off.max()) <= 0.152 * float(block.abs().max())
    assert float(error.mean()) > 1e-5


@pytest.mark.slow
@kinds
def test_bfloat16_computes_with_the_same_rounded_weights(kind):
    c = opened(quantised(tiny_llama(), kind, torch.bfloat16))
    flat, ids, real = case(c.layout)
    loss, grad = losses_and_grads(c, flat, ids, real)
    plain = rounded(tiny_llama, kind)
    for k in range(K):
        expected, expected_grad = alone(plain, c.layout, flat[k], ids[k], real[k])
        torch.testing.assert_close(loss[k], expected, rtol=3e-2, atol=0)
        assert F.cosine_similarity(grad[k], expected_grad, dim=0) > 0.99


@kinds
def test_a_cohort_of_k_is_k_cohorts_of_one(kind):
    c = opened(quantised(tiny_llama(), kind))
    flat, ids, real = case(c.layout)
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        one, one_grad = losses_and_grads(c, flat[k : k + 1], ids[k : k + 1], real[k : k + 1])
        torch.testing.assert_close(loss[k], one[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(grad[k], one_grad[0], rtol=1e-4, atol=1e-6)


# evaluation before training


@kinds
def test_an_evaluation_leaves_the_weights_and_later_gradients_as_they_are(kind):
    c = opened(quantised(tiny_llama(), kind))
    flat, ids, real = case(c.layout)
    fresh, before = losses_and_grads(c, flat, ids, real), c.checksums()
    with torch.no_grad():
        c.losses(flat, ids, real)
    c.model.eval()
    torch.testing.assert_close(losses_and_grads(c, flat, ids, real), fresh, rtol=0, atol=0)
    assert bool(fresh[1].any(1).all())
    assert c.checksums() == before


@pytest.mark.slow
@pytest.mark.parametrize("headless", [False, True])
def test_not_even_bitsandbytes_own_forward_repacks_a_layer(headless):
    """On a CPU with AVX512-BF16 it would, in evaluation mode, and then there are no gradients."""
    import bitsandbytes as bnb

    model = load_backbone("micro", device="cpu", quantization="4bit", headless=headless).model
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 6 * 7
    for layer in layers:
        was, x = layer.weight.clone(), torch.randn(2, layer.in_features)
        assert layer.support_avx512bf16_for_cpu is False
        bnb.nn.Linear4bit.forward(layer, x)
        assert torch.equal(layer.weight, was)
        bnb.nn.Linear4bit.forward(layer, x.requires_grad_()).sum().backward()
        assert bool(x.grad.any())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")  # all that a user would see of it
def test_a_federation_whose_layers_were_repacked_is_stopped(monkeypatch):
    """bitsandbytes as it comes: round 0 evaluates, and round 1 has no gradients."""
    import bitsandbytes as bnb

    from fedfault.backbones.bits import Linear4bit

    if not bnb.functional.has_avx512bf16():
        pytest.skip("bitsandbytes repacks weights on CPUs with AVX512-BF16 only")
    monkeypatch.setattr(Linear4bit, "forward", bnb.nn.Linear4bit.forward)
    found = load_backbone("micro", device="cpu", quantization="4bit").model
    for layer in found.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = True
    with pytest.raises(IntegrityError, match="every gradient was exactly zero in 4 steps of clients 0, 1"):
        losses_of(found, vocabulary=4096)


@pytest.mark.slow
@kinds
def test_a_federation_learns_on_rounded_weights(kind):
    """Each client's own tokens become likelier, on micro and with half of the blocks' activations from the cache."""
    model = load_backbone("micro", device="cpu", quantization=kind).model
    first, *_, last = losses_of(model, vocabulary=4096, targets=["layers.4.mlp.down_proj", "layers.5.self_attn.q_proj"])
    assert last < first - 0.1


def losses_of(model, vocabulary: int, targets=None) -> list[float]:
    """The validation loss before and after every round of two clients that repeat themselves."""
    g = torch.Generator().manual_seed(0)
    words = torch.randint(1, vocabulary, (2, 4), generator=g)
    own = [Blocks(w.repeat(3, 5)[:, : T + 1], torch.full((3,), T)) for w in words]
    c = CohortModel(model, lora_targets(model, targets), r=R, alpha=16.0)
    task = LanguageTask(c, own, {"topic/a": own[0], "topic/b": own[1]}, {"topic/a": 0.5, "topic/b": 0.5}, cache_mb=1)
    work = {"steps": 2, "batch_size": 3, "lr": 0.02, "optimizer": "adamw"}
    fed = federation(task, clients=2, num_rounds=3, work=work)
    return [record.scores["validation"].loss for _, record in rounds(fed, begin(fed))]


def test_eight_bits_are_multiplied_alike_in_training_and_evaluation_mode():
    c = opened(quantised(tiny_llama(), "8bit"))
    flat, ids, real = case(c.layout)
    evaluated = losses_and_grads(c, flat, ids, real)
    c.model.train()
    torch.testing.assert_close(losses_and_grads(c, flat, ids, real), evaluated, rtol=0, atol=0)


# what is added to the frozen weights


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_what_is_folded_in_is_added_in_floating_point_and_can_be_taken_back(build, kind):
    c = opened(quantised(build(), kind))
    flat, ids, real = case(c.layout)
    original, before = c.checksums(), losses_and_grads(c, flat, ids, real)
    change = {s.name: Adapter(c.layout, 0.01 * flat[1]).delta(s) for s in c.layout.lora}  # far below a step of 4 bits
    c.fold(change)
    assert c.checksums() != original
    plain = rounded(build, kind)
    with torch.no_grad():
        for name, W in change.items():
            layer = plain.get_submodule(name)
            layer.weight += W if isinstance(layer, nn.Linear) else W.T
    loss, grad = losses_and_grads(c, flat, ids, real)
    for k in range(K):
        expected, expected_grad = alone(plain, c.layout, flat[k], ids[k], real[k])
        torch.testing.assert_close(loss[k], expected, rtol=1e-5, atol=0)
        assert (grad[k] - expected_grad).norm() <= 1e-5 * expected_grad.norm()
    assert not torch.equal(loss, before[0])
    c.fold({})
    assert c.checksums() == original
    torch.testing.assert_close(losses_and_grads(c, flat, ids, real), before, rtol=0, atol=0)


# sums, sizes, names


@kinds
def test_checksums_and_fingerprints_see_a_scale_that_changes(kind):
    c = opened(quantised(tiny_llama(), kind))
    was, print_ = c.checksums(), fingerprint_weights(c.model)
    name = "model.layers.1.mlp.up_proj"
    scales = dict(named_tensors(c.model))[f"{name}.scale"]
    scales[0] *= 2
    assert [n for n, sum_ in c.checksums().items() if sum_ != was[n]] == [f"{name}.scale"]
    assert fingerprint_weights(c.model) != print_


@pytest.mark.slow
def test_every_kind_of_rounding_is_a_model_of_its_own():
    prints = {kind: load_backbone("micro", device="cpu", quantization=kind).fingerprint for kind in ("none", *KINDS)}
    assert len(set(prints.values())) == 3
    assert load_backbone("micro", device="cpu", quantization="4bit").fingerprint == prints["4bit"]


@pytest.mark.slow
@kinds
def test_the_head_the_embeddings_and_the_norms_stay_as_they_are(kind):
    found, plain = load_backbone("micro", device="cpu", quantization=kind), load_backbone("micro", device="cpu")
    assert found.quantization == kind
    assert found.model.lm_head.weight is found.model.model.embed_tokens.weight
    assert torch.equal(found.model.lm_head.weight, plain.model.lm_head.weight)
    kept = {n for n, p in found.model.named_parameters() if p.is_floating_point()}
    assert kept == {n for n, _ in plain.model.named_parameters() if not n.endswith("_proj.weight")}
    assert count_parameters(found.model) == count_parameters(plain.model) == 2_000_512


@pytest.mark.slow
def test_four_bits_take_four_and_a_half_bits_a_weight():
    """micro: 6 blocks of 245,760 weights in linear layers; 524,288 in embeddings and 1,664 in norms stay in float32."""
    linear, rest = 6 * 245_760, 4 * (4096 * 128 + 13 * 128)
    sizes = {
        kind: count_weight_bytes(load_backbone("micro", device="cpu", quantization=kind).model)
        for kind in ("none", *KINDS)
    }
    rows = 6 * (128 + 64 + 64 + 128 + 512 + 512 + 128)
    assert sizes == {"none": 4 * linear + rest, "8bit": linear + 4 * rows + rest, "4bit": linear * 9 // 16 + rest}


@kinds
def test_an_encoder_is_quantised_too(kind):
    model = quantised(tiny_bert(), kind)
    c = opened(model, scorer=Scorer(MEAN, 24, 2))
    assert is_quantised(model.encoder.layer[0].intermediate.dense)
    flat, ids, _ = case(c.layout)
    texts = Texts(ids, torch.full((K, B), T + 1), torch.full((K, B), T + 1), paired=False)
    leaf = flat.requires_grad_()
    (grad,) = torch.autograd.grad(c.compute_scores(leaf, texts)[0].square().sum(), leaf)
    assert bool(grad.any(1).all())


# what cannot be


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.quantization=4bit needs bitsandbytes.*'fedfault\[quant\]'"):
        load_backbone("micro", device="cpu", quantization="4bit")


def test_a_platform_without_it_is_refused_by_name():
    with pytest.raises(UserError, match="8bit works on cpu and cuda, not on mps; set device=cpu"):
        check_platform("8bit", torch.device("mps"))


def test_a_library_that_cannot_compute_here_says_so(monkeypatch):
    import bitsandbytes as bnb

    def broken(*_, **__):
        raise RuntimeError("native library not loaded\nlong story")

    monkeypatch.setattr(bnb.functional, "quantize_4bit", broken)
    with pytest.raises(UserError, match=r"4bit does not work on cpu: native library not loaded$"):
        load_backbone("micro", device="cpu", quantization="4bit")


def test_a_linear_layer_of_its_own_kind_is_refused_by_name():
    class Special(nn.Linear):
        pass

    model = tiny_llama()
    model.model.layers[1].mlp.up_proj = Special(24, 40, bias=False)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj is a Special"):
        quantise(model, "4bit", torch.float32, CPU)


@kinds
def test_a_model_that_reads_its_weights_itself_is_refused(kind):
    class Reads(nn.Module):
        device = CPU

        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(8, 6), nn.Linear(6, 5)
            self.base_model = lambda input_ids: F.linear(self.embed(input_ids), self.layer.weight)
            self.get_output_embeddings = lambda: None

    model = Reads()
    quantise(model, kind, torch.float32, CPU)
    with pytest.raises(UserError, match="Reads does not run with"):
        check_runs(model, "mine", kind)


def test_a_model_that_comes_quantised_is_refused():
    with pytest.raises(UserError, match=r"quantised already \(14 of them, first model\.layers\.0\.self_attn\.q_proj"):
        check_numbers("mine", quantised(tiny_llama(), "4bit"))


@kinds
def test_quantised_layers_are_not_trained_in_full(kind):
    model = quantised(tiny_llama(), kind)
    with pytest.raises(UserError, match=r"cannot train model\.layers\.1\.self_attn\.q_proj in full.*trainable=lora"):
        partial_targets(model, 1, [])
    assert partial_targets(model, 0, ["model.norm"]).full_parameters == ("model.norm.weight",)
