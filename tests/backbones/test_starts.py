"""Starts of LoRA and patterns of ranks beside PEFT's own, and in PEFT's hands after training."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoTokenizer

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.export import export_adapter
from fedfault.backbones.load import MICRO, Backbone
from fedfault.backbones.quantised import dense_weight
from fedfault.backbones.sites import ALL_LINEAR, lora_targets
from fedfault.types.adapter import Adapter
from tiny import VOCAB, tiny_gpt2, tiny_llama

R, ALPHA = 4, 10.0
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def open_up(model, start="uniform", **changes) -> CohortModel:
    return CohortModel(model, lora_targets(model, ALL_LINEAR), r=R, alpha=ALPHA, start=start, **changes)


@torch.no_grad()
def losses_of(model) -> torch.Tensor:
    logits = model(input_ids=IDS[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), IDS[:, 1:].reshape(-1), reduction="none")


def losses_here(opened: CohortModel, adapter: Adapter) -> torch.Tensor:
    return opened.losses(adapter.flat[None], IDS[None], torch.ones(1, 2, 8))[1].flatten()


def train_a_little(opened: CohortModel) -> Adapter:
    start = opened.init(0)
    noise = torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(0))
    return Adapter(opened.layout, start.flat + 0.05 * noise)


def export(folder, model, opened, adapter, base=None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MICRO)
    export_adapter(folder, Backbone("tiny", "tiny", model, tokenizer, 0, "fp32", "x"), opened, adapter, "card", base)


def in_peft(build, **settings):
    from peft import LoraConfig, get_peft_model

    model = build()
    names = list(lora_targets(model, ALL_LINEAR).lora)
    fan_in = build is tiny_gpt2
    return get_peft_model(
        model, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=names, fan_in_fan_out=fan_in, **settings)
    )


@pytest.mark.slow  # PEFT takes seconds to import
@pytest.mark.parametrize(("build", "start"), [(tiny_llama, "pissa"), (tiny_llama, "olora"), (tiny_gpt2, "pissa")])
def test_factors_and_the_rest_of_the_base_are_those_of_peft(build, start):
    """Slice by slice as products, which do not show a slice's sign. Of Conv1D PEFT's OLoRA factorises the transpose."""
    model = build()
    opened, theirs = open_up(model, start), in_peft(build, init_lora_weights=start)
    flat = opened.init(0).flat
    for site in opened.layout.lora:
        A, B = opened.layout.pair(flat, site)
        layer = theirs.base_model.model.get_submodule(site.name)
        A_peft, B_peft = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(A[:, None] * B.T[..., None], (A_peft[:, None] * B_peft.T[..., None]).detach())
        rest = dense_weight(model.get_submodule(site.name).base)
        torch.testing.assert_close(rest, dense_weight(layer.base_layer), atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(("start", "folds"), [("pissa", False), ("olora", False), ("pissa", True)])
def test_what_began_with_a_part_of_the_base_is_exported_for_the_whole_base(tmp_path, build, start, folds):
    from peft import PeftModel

    model = build()
    opened = open_up(model, start)
    adapter, g = train_a_little(opened), torch.Generator().manual_seed(2)
    # B A is in both or neither
    assert torch.allclose(losses_here(opened, opened.init(0)), losses_of(build()), atol=1e-5)
    base = (
        {s.name: 0.05 * torch.randn(s.shape[2], s.shape[1], generator=g) for s in opened.layout.lora} if folds else {}
    )
    opened.fold(base)
    expected = losses_here(opened, adapter)
    assert not torch.allclose(expected, losses_of(build()), atol=1e-2)
    export(tmp_path, model, opened, adapter, base)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    torch.testing.assert_close(losses_of(loaded), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses_of(loaded.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_a_gaussian_start_is_peft_s():
    """A ~ N(0, 1/r^2), B = 0: the deviation of 1,472 numbers is within 10 % of it but for one in 10^7."""
    opened = open_up(tiny_llama(), "gaussian")
    pairs = [opened.layout.pair(opened.init(0).flat, site) for site in opened.layout.lora]
    drawn = torch.cat([A.flatten() for A, _ in pairs])
    assert float(drawn.std()) == pytest.approx(1 / R, rel=0.1)
    assert abs(float(drawn.mean())) < 0.03
    assert not any(B.any() for _, B in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["uniform", "pissa"])
def test_patterns_of_ranks_and_alphas_are_read_by_peft(tmp_path, start):
    from peft import PeftModel

    model = tiny_llama()
    names = lora_targets(model, ALL_LINEAR).lora
    own = {name: (2, 3.0) for name in names if name.endswith("q_proj")}
    own |= {name: (R, 1.0) for name in names if name.endswith("down_proj")}
    opened = open_up(model, start, own=own)
    adapter = train_a_little(opened)
    export(tmp_path, model, opened, adapter)
    said, twice = json.loads((tmp_path / "adapter_config.json").read_text()), 1 if start == "uniform" else 2
    assert (said["r"], said["lora_alpha"]) == (R * twice, ALPHA * twice)
    assert set(said["rank_pattern"].values()) == {2 * twice}
    assert set(said["alpha_pattern"].values()) == {3.0 * twice, 1.0 * twice}
    assert "both scale\nsome wrongly" in (tmp_path / "README.md").read_text()  # programs that read no patterns
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(losses_of(loaded), losses_here(opened, adapter), rtol=1e-4, atol=1e-5)


def test_the_base_that_was_given_keeps_its_weights():
    """Factors are taken off a copy: whoever holds the layer, a second model among them, sees it whole."""
    model = tiny_llama()
    layer, before = model.model.layers[0].self_attn.q_proj, copy.deepcopy(model.model.layers[0].self_attn.q_proj.weight)
    open_up(model, "pissa")
    assert torch.equal(layer.weight, before)
