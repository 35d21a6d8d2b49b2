"""The packaged model against transformers' own reading of the same files."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.llama import FileTokenizer, Llama
from fedfault.backbones.load import MICRO, fingerprint_weights
from fedfault.backbones.sample import sample_texts
from fedfault.backbones.sites import lora_targets, partial_targets
from tiny import VOCAB, tiny_llama

TEXTS = ["Café – naïve 漢字 \t\n  x = 1", "", " a  b ", "<|endoftext|>", "don't\r\n\r\n", "\x00\ud7ff 🙂" * 40]


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["tied", "untied", "micro"])
def pair(request, tmp_path):
    """The same weights here and in transformers."""
    from transformers import AutoModelForCausalLM

    folder = MICRO
    if request.param != "micro":
        folder = tmp_path / "model"
        tiny_llama(tied=request.param == "tied").save_pretrained(folder)
    return Llama.from_folder(folder).eval(), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_modules_and_parameters_have_the_names_and_numbers_of_transformers(pair):
    ours, theirs = pair
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert fingerprint_weights(ours) == fingerprint_weights(theirs)
    assert ours.get_input_embeddings() is ours.get_submodule("model.embed_tokens")
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in pair]
    assert tied[0] == tied[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_transformers(pair, dtype):
    ids = tokens(3, 30)
    for model in pair:
        for p in model.parameters():
            p.data = p.data.to(dtype)
    ours, theirs = (model(input_ids=ids).logits for model in pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_tokens_one_at_a_time_give_the_logits_of_all_at_once(pair):
    ours, ids = pair[0], tokens(2, 9)
    found, past = [], None
    for t in range(9):
        out = ours(input_ids=ids[:, t : t + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), ours(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert ours(input_ids=ids).past_key_values is None


@pytest.mark.slow
def test_samples_are_those_of_transformers(pair):
    ours, theirs = (sample_texts(model, 3, 20, 0, torch.Generator().manual_seed(0)) for model in pair)
    assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("length", [8, 30])
@pytest.mark.parametrize(
    "targets", [lambda m: lora_targets(m, None), lambda m: partial_targets(m, 1, ["embed_tokens"])]
)
def test_a_cohort_has_the_losses_and_gradients_that_it_has_over_transformers(pair, targets, length, monkeypatch):
    # The longer sequences take the attention of the model itself
    monkeypatch.setattr("fedfault.backbones.lean.SHORT", 20)
    ids, found = tokens(2, 2, length + 1), []
    for model in pair:
        c = CohortModel(model, targets(model), r=4, alpha=8.0)
        start = c.init(0).flat
        flat = start + 0.05 * torch.randn(2, len(start), generator=torch.Generator().manual_seed(2))
        total, each = c.losses(flat.requires_grad_(), ids, torch.ones(2, 2, length))
        found.append((each, *torch.autograd.grad(total, flat)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_tokenizer_is_the_one_that_transformers_reads_here_and_where_it_is_saved(tmp_path):
    from transformers import AutoTokenizer

    ours = FileTokenizer(MICRO)
    ours.save_pretrained(tmp_path)
    for folder in (MICRO, tmp_path):
        theirs = AutoTokenizer.from_pretrained(folder)
        assert ours(TEXTS)["input_ids"] == theirs(TEXTS, add_special_tokens=False)["input_ids"]
        assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
        assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
