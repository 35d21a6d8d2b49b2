"""What a model folder is tried for: weights, causality, head, positions, tokens. Every model is made here, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedfault.backbones.checks import (
    attention_window,
    check_head,
    check_tokens,
    choose_separator,
    count_positions,
    is_causal,
    takes_token_types,
)
from fedfault.backbones.load import load_backbone
from fedfault.backbones.scorer import Texts, model_inputs
from fedfault.errors import UserError
from tiny import (
    CAUSAL,
    GROUPED,
    OTHERS,
    SHAPE,
    SIZES,
    SPECIAL,
    VOCAB,
    make,
    tiny_bert,
    tiny_bert_tokenizer,
    tiny_gpt2,
    tiny_llama,
)


def saved(folder: Path, model) -> Path:
    tokenizer = tiny_bert_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, {"format": "pt"})
    return folder


def edit_config(folder: Path, **changes) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def a_head(folder: Path) -> Path:
    return edit_config(folder, tie_word_embeddings=False)


def blocks(folder: Path) -> Path:
    return edit_config(folder, num_hidden_layers=3)


def a_prefix(folder: Path) -> Path:
    return edit_weights(folder, lambda weights: {f"module.{k}": v for k, v in weights.items()})


def peft_names(folder: Path) -> Path:
    return edit_weights(folder, lambda weights: {f"base_model.model.{k}": v for k, v in weights.items()})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (a_head, r"1 weight is missing, first lm_head\.weight, and would be drawn at random; .*task_type=classification"),
        (blocks, r"9 weights are missing, first model\.layers\.2\.input_layernorm\.weight"),
        (a_prefix, r"21 weights are missing.*\(20 weights have no place in the model, first module\.model\."),
        (peft_names, r"21 weights are missing.*first base_model\.model\.model\."),
    ],
)  # fmt: skip
def test_a_language_model_with_weights_missing_is_refused_with_their_names(tmp_path, fault, says):
    with pytest.raises(UserError, match=says):
        load_backbone(str(fault(saved(tmp_path / "m", tiny_llama()))))


@pytest.mark.parametrize("fault", [blocks, a_prefix, peft_names])
def test_a_headless_model_with_weights_missing_is_refused(tmp_path, fault):
    with pytest.raises(UserError, match=r"weights are missing, first"):
        load_backbone(str(fault(saved(tmp_path / "m", tiny_llama()))), headless=True)


@pytest.mark.parametrize("headless", [False, True])
def test_weights_that_the_model_has_no_place_for_are_refused(tmp_path, headless):
    short = edit_config(saved(tmp_path / "short", tiny_llama()), num_hidden_layers=1)
    with pytest.raises(UserError, match=r"9 weights have no place in Llama.* first model\.layers\.1\."):
        load_backbone(str(short), headless=headless)
    pair = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 24)}
    other = edit_weights(saved(tmp_path / "lora", tiny_llama()), lambda weights: weights | pair)
    with pytest.raises(UserError, match=r"1 weight has no place .*lora_A"):
        load_backbone(str(other), headless=headless)
    wide = edit_config(saved(tmp_path / "wide", tiny_llama()), intermediate_size=44)
    with pytest.raises(UserError, match=r"6 weights have another shape .* \(24, 40\) instead of \(24, 44\)"):
        load_backbone(str(wide), headless=headless)


def test_weights_of_another_head_are_told(tmp_path):
    more = {"score.weight": torch.ones(2, 24)}
    folder, lines = edit_weights(saved(tmp_path / "m", tiny_llama()), lambda weights: weights | more), []
    load_backbone(str(folder), say=lines.append)
    assert lines == [f"of {folder}, 1 weight is not used, first score.weight"]
    lines.clear()
    load_backbone(str(saved(tmp_path / "untied", tiny_llama(tied=False))), headless=True, say=lines.append)
    assert not lines  # that a headless model uses no head needs no line


@pytest.mark.slow
def test_half_of_an_encoder_with_a_decoder_is_refused(tmp_path):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64, **SPECIAL}
    bart = saved(tmp_path / "bart", make("BartConfig", sizes, "AutoModelForSeq2SeqLM"))
    with pytest.raises(UserError, match=r"2 weights are missing, first lm_head\.weight"):
        load_backbone(str(bart))
    config = {**sizes, "decoder_start_token_id": 0, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    whisper = saved(tmp_path / "whisper", make("WhisperConfig", config, "AutoModelForSpeechSeq2Seq"))
    with pytest.raises(UserError, match=r"weights have no place in WhisperForCausalLM .*first model\.encoder\."):
        load_backbone(str(whisper))
    for folder in (bart, whisper):
        with pytest.raises(UserError, match="an encoder with a decoder"):
            load_backbone(str(folder), headless=True)


def test_a_model_of_images_is_called_one(tmp_path):
    folder = str(saved(tmp_path / "m", make("ViTConfig", SIZES, "AutoModel")))
    with pytest.raises(UserError, match=r"ViTModel has no table of token embeddings: it is no model of text"):
        load_backbone(folder, headless=True)


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, headless):
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(UserError, match=r"1 weight holds numbers that are not finite, first .*layers\.1\.mlp\.up_proj"):
        load_backbone(str(saved(tmp_path / "m", model)), headless=headless)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_is_taken_with_its_head_and_without(tmp_path, name):
    folder = str(saved(tmp_path / "m", make(*CAUSAL[name])))
    assert load_backbone(folder, length=32).pooling is None
    assert load_backbone(folder, length=32, headless=True).pooling == "last"


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_sees_the_token_it_is_to_predict_is_refused_and_can_classify(tmp_path, name):
    folder = str(saved(tmp_path / "m", make(*OTHERS[name])))
    with pytest.raises(UserError, match=r"is not causal: .*data\.task_type=classification can use it"):
        load_backbone(folder, length=32)
    assert load_backbone(folder, length=32, headless=True).pooling != "last"


def test_a_model_whose_body_cannot_be_told_from_its_head_is_refused(tmp_path):
    options = {**GROUPED, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    with pytest.raises(UserError, match=r"Llama4ForCausalLM gives no states of tokens alone"):
        load_backbone(str(saved(tmp_path / "m", make("Llama4TextConfig", options))))


class Peeking(torch.nn.Module):
    """States of ids that depend on the next token, in the second half of a text only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCAB, 4)
        self.base_model, self.device = self, torch.device("cpu")

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids):
        from types import SimpleNamespace

        states = self.table(input_ids)
        late = states[:, 20:].clone()
        states[:, 19:-1] += late
        return SimpleNamespace(last_hidden_state=states)


def test_causality_is_tried_beyond_the_window_of_attention():
    model = Peeking()
    assert is_causal(model)
    assert not is_causal(model, 40)


def test_the_window_of_a_model():
    from types import SimpleNamespace

    assert attention_window(SimpleNamespace(sliding_window=None)) is None
    assert attention_window(SimpleNamespace(sliding_window=12)) == 12
    assert attention_window(SimpleNamespace(attention_window=[8, 16])) == 16


def test_a_head_that_computes_something_of_its_own_is_refused():
    model = tiny_llama(tied=False)
    check_head("m", model)

    class Twice(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    head = Twice(24, VOCAB, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    with pytest.raises(UserError, match="rescales its logits"):
        check_head("m", model)


def test_roberta_has_fewer_positions_than_its_config_says():
    from transformers import RobertaConfig, RobertaModel, XLNetConfig, XLNetModel

    model = RobertaModel(RobertaConfig(**SHAPE | {"pad_token_id": 1, "max_position_embeddings": 34})).eval()
    assert count_positions(model) == 32
    model(input_ids=torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 33), 5))
    assert count_positions(tiny_bert()) == count_positions(tiny_gpt2()) == count_positions(tiny_llama()) == 32
    assert count_positions(XLNetModel(XLNetConfig(d_model=32, n_layer=1, n_head=4, d_inner=48))) is None


def test_more_tokens_than_positions_are_refused(tmp_path):
    folder = str(saved(tmp_path / "m", tiny_bert()))
    assert load_backbone(folder, headless=True, length=32)
    with pytest.raises(UserError, match=r"model\.max_length=33, but .* takes at most 32 tokens"):
        load_backbone(folder, headless=True, length=33)


def test_token_types_go_only_to_models_that_have_two():
    from transformers import DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

    texts = Texts(torch.full((1, 2, 6), 5), torch.tensor([[6, 6]]), torch.tensor([[3, 6]]), paired=True)
    one = RobertaModel(RobertaConfig(**SHAPE, type_vocab_size=1)).eval()
    none = DistilBertModel(DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=1, n_heads=4, hidden_dim=48)).eval()
    for model, takes in ((tiny_bert(), True), (one, False), (none, False)):
        assert takes_token_types(model) is takes
        inputs = model_inputs(model, texts, "first")
        assert ("token_type_ids" in inputs) is takes
        model(input_ids=texts.ids[0], **inputs)


def test_a_token_beyond_the_embedding_is_refused_by_name():
    tokenizer = tiny_bert_tokenizer()
    tokenizer.add_tokens(["zebra"])
    model = tiny_bert()
    model.resize_token_embeddings(18)
    check_tokens("m", model, tokenizer, [torch.tensor([[0, 17]])])
    with pytest.raises(UserError, match=r"token 18 \('zebra'\), but the model has 18 embeddings \(0 to 17\)"):
        check_tokens("m", model, tokenizer, [torch.tensor([[1]]), torch.tensor([[0, 18]])])


def test_the_separator_is_a_special_token_or_an_error():
    model, tokenizer = tiny_llama(), tiny_bert_tokenizer()
    model.config.eos_token_id = 2
    assert choose_separator("m", model, tokenizer) == 2  # [CLS] by the config: no text
    model.config.eos_token_id = [3, 2]
    assert choose_separator("m", model, tokenizer) == 3
    model.config.eos_token_id = 4
    with pytest.raises(
        UserError, match=r"no token for the end of a text, and the eos_token_id=4 .* is the text 'good'"
    ):
        choose_separator("m", model, tokenizer)
    model.config.eos_token_id = None
    with pytest.raises(UserError, match=r"no token for the end of a text; set eos_token"):
        choose_separator("m", model, tokenizer)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    assert choose_separator("m", model, tokenizer) == 3


def test_an_adapter_alone_is_called_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"this is an adapter, of the model 'org/base', and no model; .*merge_and_unload"
    ):
        load_backbone(str(tmp_path))


def test_a_model_that_needs_code_of_its_own_is_refused_in_a_sentence(tmp_path):
    folder = saved(tmp_path / "m", tiny_llama())
    (folder / "own.py").write_text("raise SystemExit('was run')")
    edit_config(folder, model_type="novel", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    for headless in (False, True):
        with pytest.raises(UserError, match=r"needs code of its own \(trust_remote_code\), which is not run here"):
            load_backbone(str(folder), headless=headless)


def test_the_source_of_a_relative_folder_is_absolute(tmp_path, monkeypatch):
    saved(tmp_path / "m", tiny_llama())
    monkeypatch.chdir(tmp_path)
    assert load_backbone("m").source == str((tmp_path / "m").resolve())
