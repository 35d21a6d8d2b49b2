"""Vectors of texts: the mean of the last hidden states of the base, whatever the run trains, and which texts they are."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from fedfault.backbones.load import load_backbone
from fedfault.clustering import embeddings
from fedfault.clustering.embeddings import draw_texts, embed_texts, make_encoder
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.setup.experiment import prepare
from small import SMALL
from tiny import WORDS, tiny_bert, tiny_bert_tokenizer

TEXTS = ["The minister said on Tuesday that taxes would rise.", "def f(x):\n    return x", "", "x" * 500]


@pytest.fixture(scope="module")
def prepared():
    return prepare(load("quickstart", [*SMALL, "evaluation.general=none", "device=cpu"]).experiment)


def unit(v):
    return v / np.linalg.norm(v)


@pytest.mark.slow
def test_the_backbone_s_vector_is_the_mean_of_its_last_states_of_length_one(prepared):
    found = make_encoder(prepared)(TEXTS)
    base = load_backbone("micro", device="cpu")
    T = prepared.config.model.max_length
    for text, own in zip(TEXTS, found, strict=True):
        ids = [base.separator, *base.tokenizer([text])["input_ids"][0]][:T]
        with torch.no_grad():
            states = base.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(own, unit(states.double().mean(0).numpy()), atol=1e-6)


def test_what_was_folded_into_the_weights_is_not_seen(prepared):
    encoder = make_encoder(prepared)
    before, site = encoder(TEXTS), prepared.model.layout.lora[0]
    prepared.federation.task.fold({site.name: torch.ones(site.shape[2], site.shape[1])})
    np.testing.assert_array_equal(encoder(TEXTS), before)


def test_batches_do_not_matter(prepared, monkeypatch):
    whole = make_encoder(prepared)(TEXTS)
    monkeypatch.setattr(embeddings, "BATCH", 1)
    np.testing.assert_allclose(make_encoder(prepared)(TEXTS), whole, atol=1e-6)


def saved(folder, rule=None) -> str:
    tiny_bert().save_pretrained(folder)
    tiny_bert_tokenizer().save_pretrained(folder)
    if rule:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(rule))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "pool"),
    [
        (None, lambda states: states.mean(0)),
        ({"pooling_mode_mean_tokens": True}, lambda states: states.mean(0)),
        ({"pooling_mode_cls_token": True}, lambda states: states[0]),
        ({"pooling_mode_lasttoken": True}, lambda states: states[-1]),
    ],
)
def test_a_sentence_encoder_pools_as_its_folder_says(prepared, tmp_path, rule, pool):
    encoder = make_encoder(prepared, saved(tmp_path / "m", rule))
    texts = [" ".join(WORDS[:3]), " ".join(WORDS[2:11])]
    model, tokenizer = tiny_bert(), tiny_bert_tokenizer()
    for text, own in zip(texts, encoder(texts), strict=True):
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        np.testing.assert_allclose(own, unit(pool(states).double().numpy()), atol=1e-6)


@pytest.mark.slow
def test_no_more_tokens_than_the_encoder_takes(prepared, tmp_path):
    """The tiny one has 32 places."""
    config = prepared.config
    long = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 64})})
    encoder = make_encoder(dataclasses.replace(prepared, config=long), saved(tmp_path / "m"))
    assert np.isfinite(encoder([" ".join(WORDS * 10)])).all()


def test_an_encoder_that_is_not_there_is_refused(prepared):
    with pytest.raises(UserError, match="there is no such folder"):
        make_encoder(prepared, "./nothing")


def test_every_client_has_its_training_texts_and_no_more_than_the_most(prepared, monkeypatch):
    texts, owner = draw_texts(prepared.config, prepared.split.corpus)
    assert set(owner.tolist()) == {0, 1, 2}
    for k, own in enumerate(prepared.split.deal.clients):
        mine = {prepared.split.documents[i].text for i in own}
        assert {t for t, o in zip(texts, owner, strict=True) if o == k} < mine  # some are held back
    monkeypatch.setattr(embeddings, "TEXTS", 5)
    texts, owner = draw_texts(prepared.config, prepared.split.corpus)
    assert np.bincount(owner).tolist() == [5, 5, 5]


@pytest.mark.slow
def test_vectors_and_owners_go_together(prepared):
    vectors, owner = embed_texts(prepared, make_encoder(prepared))
    assert vectors.shape == (len(owner), 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)
