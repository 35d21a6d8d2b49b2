"""Faster layers: what takes the place of a model's own, what is refused, and that nothing fails where there is no Triton.

liger-kernel runs on a GPU only. Here a stand-in has its functions, as its documentation describes them, written with torch.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from fedfault.backbones import fused
from fedfault.backbones.fused import FusedAttention, FusedMLP, FusedRMSNorm
from fedfault.backbones.kernels import Kernels, replace_by_liger, replace_layers
from fedfault.backbones.states import attention_weights
from steps import EXTRA, extra_terms, make_task
from tiny import VOCAB, tiny_gpt2, tiny_llama

IDS = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(3))


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is twice too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def rms_norm(x, weight, eps, offset=0.0, casting="llama", in_place=True):
    assert not in_place
    unit = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (
        unit.to(x.dtype) * (offset + weight) if casting == "llama" else (unit * (offset + weight.float())).to(x.dtype)
    )


def rope(q, k, cos, sin):
    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    return turn(q), turn(k)


@pytest.fixture
def liger(monkeypatch):
    """Puts a stand-in of liger-kernel in its place; `liger(liger_swiglu=...)` with other functions."""

    def install(**changes):
        package, transformers = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
        functional = ModuleType("liger_kernel.transformers.functional")
        functions = {
            "liger_rms_norm": rms_norm,
            "liger_swiglu": lambda a, b: F.silu(a) * b,
            "liger_geglu": lambda a, b: F.gelu(a, approximate="tanh") * b,
            "liger_rope": rope,
        }
        for name, function in (functions | changes).items():
            setattr(functional, name, function)
        transformers.functional = functional
        for module in (package, transformers, functional):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        version = importlib.metadata.version
        own = lambda name: "0.0" if name.startswith("liger") else version(name)  # noqa: E731
        monkeypatch.setattr("importlib.metadata.version", own)

    return install


def make_gemma():
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, hidden_activation="gelu_pytorch_tanh", pad_token_id=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return GemmaForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [tiny_llama, make_gemma])
def test_norms_gated_layers_and_attention_are_replaced_by_kernels_that_give_the_same(make, liger):
    liger()
    model, own = make(), make()
    found = replace_by_liger(model)
    prefix = "Llama" if make is tiny_llama else "Gemma"
    assert found == Kernels("liger-kernel 0.0", {f"{prefix}RMSNorm": 5, f"{prefix}MLP": 2, f"{prefix}Attention": 2})
    kinds = [type(m) for m in model.modules() if type(m).__module__ == fused.__name__]
    assert sorted(k.__name__ for k in kinds) == ["FusedAttention"] * 2 + ["FusedMLP"] * 2 + ["FusedRMSNorm"] * 5
    torch.testing.assert_close(model(input_ids=IDS).logits, own(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])  # with a mask the model's own attention is called
    ours, theirs = (m(input_ids=IDS, attention_mask=mask).logits[:, :4] for m in (model, own))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "kept", "why"),
    [
        (
            {"liger_swiglu": lambda a, b: F.silu(b) * a},
            FusedMLP,
            "MLP stays as it is, as its kernel gives something else",
        ),
        ({"liger_swiglu": lambda a, b: Doubled.apply(F.silu(a) * b)}, FusedMLP, "its kernel gives something else"),
        ({"liger_rope": lambda q, k, cos, sin: (q, k)}, FusedAttention, "Attention stays as it is, as its kernel"),
        ({"liger_rms_norm": lambda *_: 1 / 0}, FusedRMSNorm, r"RMSNorm stays as it is \(division by zero\)"),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_is_refused_with_a_note_and_the_others_are_taken(change, kept, why, liger):
    liger(**change)
    model, own = tiny_llama(), tiny_llama()
    found = replace_by_liger(model)
    assert len(found.notes) == 1
    assert re.search(why, found.notes[0])
    assert not any(isinstance(m, kept) for m in model.modules())
    assert len(found.replaced) == 2
    torch.testing.assert_close(model(input_ids=IDS).logits, own(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


def test_without_the_package_or_with_a_driver_that_is_too_old_the_model_stays_and_a_note_says_so(monkeypatch):
    model = tiny_llama()
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert replace_by_liger(model).notes == (
        "liger-kernel is not installed: `pip install 'fedfault[gpu]'` gives a GPU fused kernels",
    )

    def fail():
        raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid\nand a trace")

    monkeypatch.setattr("fedfault.backbones.kernels.load_liger", fail)
    found = replace_by_liger(model)
    assert found.notes == (
        "liger-kernel cannot be used here (Triton Error [CUDA]: device kernel image is invalid): torch's own kernels train",
    )
    assert found.replaced == {}
    assert not any(type(m).__module__ == fused.__name__ for m in model.modules())


def test_attention_that_cannot_be_tried_stays_on_a_cpu_too():
    """Ministral 3's takes positions, which others do not."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Ministral3Config"):
        pytest.skip("this version of transformers has no Ministral 3")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.Ministral3Model(
        transformers.Ministral3Config(**shape, num_key_value_heads=2, vocab_size=64)
    ).eval()
    assert "Ministral3Attention" not in replace_layers(model).replaced


def test_models_without_such_layers_have_nothing_to_replace_and_nothing_to_say(liger):
    liger()
    assert replace_by_liger(tiny_gpt2()) == Kernels()


@pytest.mark.parametrize("name", EXTRA)
def test_a_cohort_over_fused_layers_trains_as_over_lean_ones(name, liger, monkeypatch):
    from fedfault.rounds.local import LocalWork, Passes
    from fedfault.rounds.trainer import Trainer

    liger()
    found = []
    for replace in (replace_layers, replace_by_liger):
        monkeypatch.setattr("fedfault.backbones.cohort.replace_layers", replace)
        task = make_task()
        trainer = Trainer(task, LocalWork(batch_size=2, lr=0.01), seed=0, round=1, clients=[0, 1, 2], passes=Passes(3))
        found.append(trainer(task.init(0), extra_terms(task)[name]))
    assert task.model.kernels.source == "liger-kernel 0.0"
    for one, other in zip(found[0].adapter.flat, found[1].adapter.flat, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_attention_weights_are_those_of_the_models_own_attention(liger, monkeypatch):
    liger()
    lean = make_task(dropout=0.0).model
    monkeypatch.setattr("fedfault.backbones.cohort.replace_layers", replace_by_liger)
    model = make_task(dropout=0.0).model
    assert isinstance(model.model.model.layers[0].self_attn, FusedAttention)
    flat = model.init(0).flat[None]
    for ours, theirs in zip(attention_weights(model, flat, IDS), attention_weights(lean, flat, IDS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.cuda
def test_the_kernels_of_liger_are_taken_on_a_gpu():
    pytest.importorskip("liger_kernel")
    model, own = tiny_llama().cuda(), tiny_llama().cuda()
    found = replace_layers(model)
    assert found.notes == ()
    assert found.replaced == {"LlamaRMSNorm": 5, "LlamaMLP": 2, "LlamaAttention": 2}
    ours, theirs = (m(input_ids=IDS.cuda()).logits for m in (model, own))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_rotations_of_another_kind_leave_a_model_as_it_is():
    """MiMo's ask for the type of a layer."""
    from fedfault.backbones.kernels import replace_layers
    from tiny import GROUPED, make

    heads = {"head_dim": 8, "v_head_dim": 8, "swa_head_dim": 8, "swa_v_head_dim": 8}
    heads |= {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
    }
    options = {**GROUPED, **heads, **experts}
    model = make("MiMoV2FlashConfig", options)
    ids = torch.arange(5)[None]
    expected = model(input_ids=ids).logits
    replace_layers(model)
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
