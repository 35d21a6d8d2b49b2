"""The exported adapter in PEFT's own hands."""

from __future__ import annotations

import math

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.export import export
from fedfault.backbones.load import MICRO, Backbone
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.types import Adapter
from tiny import VOCAB, tiny_gpt2, tiny_llama


def exported(folder, build, targets):
    from transformers import AutoTokenizer

    model = build()
    opened = CohortModel(model, targets(model), r=4, alpha=10.0)
    start = opened.init(0)
    adapter = Adapter(
        opened.layout, start.flat + 0.2 * torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(0))
    )
    tokenizer = AutoTokenizer.from_pretrained(MICRO)
    export(folder, Backbone("tiny", "tiny", model, tokenizer, 0, "fp32", "x"), opened, adapter, "card")
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    _, each = opened.losses(adapter.flat[None], ids[None], torch.ones(1, 2, 8))
    return ids, float(each.mean())


@torch.no_grad()
def loss(model, ids) -> float:
    logits = model(input_ids=ids[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1)))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_peft_loads_the_adapter_and_finds_the_same_perplexity(tmp_path, build):
    from peft import PeftModel

    ids, expected = exported(tmp_path, build, lambda m: lora_targets(m, None))
    model = PeftModel.from_pretrained(build(), tmp_path)
    assert math.exp(loss(model, ids)) == pytest.approx(math.exp(expected), rel=1e-4)
    assert loss(build(), ids) != pytest.approx(expected, rel=1e-3)


def test_a_partial_run_exports_its_parameters_under_their_own_names(tmp_path):
    from safetensors.torch import load_file

    ids, expected = exported(tmp_path, tiny_llama, lambda m: partial_targets(m, 1, ["model.norm"]))
    model = tiny_llama()
    result = model.load_state_dict(load_file(tmp_path / "trained.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert loss(model, ids) == pytest.approx(expected, rel=1e-5)


def test_the_folder_does_not_change_between_exports(tmp_path):
    for name in "ab":
        exported(tmp_path / name, tiny_llama, lambda m: lora_targets(m, None))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
