"""The measured split through the real code path: data, model, cache, words."""

import json

import numpy as np
import pytest

from fedfault.config import load
from fedfault.data import heterogeneity
from fedfault.data.heterogeneity import compute_percentile, load_or_measure, measure, write_sentences
from fedfault.setup.experiment import prepare

SMALL = ["data.max_samples=160", "evaluation.general=none", "evaluation.max_blocks=2", "federation.total_clients=6"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared experiments by partition, each made once."""
    made = {}

    def get(partition, *more):
        if (partition, more) not in made:
            made[partition, more] = prepare(load(None, [*SMALL, f"data.partition={partition}", *more]).experiment)
        return made[partition, more]

    return get


def found(p, seed=0):
    return measure(p.split, p.model, seed, p.backbone.separator)


@pytest.mark.long
def test_isolated_registers_differ_in_everything_but_size(prepared):
    h = found(prepared("topic_isolation"))
    for index in (h.label_emd, h.token_js, h.embedding_mmd):
        assert index.z > 5
        assert index.p < 0.01
    assert h.gradient.value > 0
    assert h.dissimilarity > 1.05
    assert h.percentile > 90
    assert h.shared_mass < 0.4
    said = write_sentences(h)
    assert "share" in said[0]
    assert "more skewed than" in said[0]
    assert "tokens differ more than those of random splits" in said[1]


@pytest.mark.slow
def test_an_iid_split_looks_iid_and_is_said_to(prepared):
    h = found(prepared("iid"))
    for index in (h.label_emd, h.token_js, h.size_cv, h.embedding_mmd, h.gradient):
        assert abs(index.z) < 3
    assert h.size_cv.z == 0
    assert h.effective_clients == pytest.approx(6, abs=0.01)
    said = " ".join(write_sentences(h))
    assert "by topic this split is like a random one" in said
    assert "tokens differ no more than those of random splits" in said
    assert "about the same number of documents" in said


@pytest.mark.slow
def test_unequal_sizes_are_said(prepared):
    h = found(prepared("quantity_skew"))
    assert h.size_cv.p < 0.05
    assert h.effective_clients < 5
    said = " ".join(write_sentences(h))
    assert f"differ in size (CV {h.size_cv.value:.2f}): their documents are spread as over" in said
    assert "weigh" not in said  # clients weigh by their tokens
    assert abs(h.label_emd.z) < 3.5


@pytest.mark.slow
def test_one_client_and_one_topic_leave_indices_out(prepared):
    alone = found(prepare(load(None, ["data.max_samples=20", *SMALL[1:3], "federation.total_clients=1"]).experiment))
    assert alone.label_emd is alone.token_js is alone.embedding_mmd is alone.gradient is alone.percentile is None
    assert write_sentences(alone) == ["The 1 clients have about the same number of documents."]


@pytest.mark.long
def test_it_is_measured_once_for_the_same_key(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path))
    p, told = prepared("iid"), []
    first, again = (load_or_measure(p.split, p.model, 0, p.backbone.separator, "key", told.append) for _ in range(2))
    assert told == ["heterogeneity of the split"]
    assert json.loads(json.dumps(first)) == again
    (file,) = (tmp_path / "heterogeneity").iterdir()
    file.write_text("{")
    assert load_or_measure(p.split, p.model, 0, p.backbone.separator, "key", told.append) == again
    load_or_measure(p.split, p.model, 0, p.backbone.separator, "other key", told.append)
    assert len(told) == 3


def test_the_percentile_orders_splits():
    """One topic a client is beyond nearly all reference splits; equal laws are below all of them."""
    apart, equal = np.eye(4, dtype=int) * 100, np.full((4, 4), 25)
    assert compute_percentile(1.5, apart, np.random.default_rng(0)) > 95
    assert compute_percentile(0.0, equal, np.random.default_rng(0)) == 0
    middle = compute_percentile(0.7, equal, np.random.default_rng(0))
    assert 20 < middle < 80


@pytest.mark.slow
def test_gradients_of_conversations_cost_what_those_of_running_text_do(prepared, monkeypatch):
    """Of each half as many as have the tokens of four of the longest."""
    p, seen = prepared("iid", "data.dataset=skills", "data.task_type=instruction", "model.max_length=96"), []

    class Watched(heterogeneity.LanguageTask):
        def __init__(self, model, clients, sets, mixture):
            seen.extend(clients)
            super().__init__(model, clients, sets, mixture)

    monkeypatch.setattr(heterogeneity, "LanguageTask", Watched)
    assert found(p).gradient is not None
    longest = int(p.split.examples.lengths.max())
    assert len(seen) == 12
    assert all(int(own.lengths.sum()) <= 4 * (longest - 1) for own in seen)
    assert max(len(own) for own in seen) > 4


@pytest.mark.slow
def test_gradients_of_many_clients_are_those_of_drawn_ones(prepared, monkeypatch):
    """Names of clients can have an order that means something, so the first of them stand for nothing."""
    p, seen = prepared("iid"), []
    monkeypatch.setattr(heterogeneity, "HALVED", 2)
    draw = heterogeneity._draw_part
    own = {document: client for client, part in enumerate(p.split.deal.clients) for document in part.tolist()}

    def watch(split, documents, *rest):
        seen.append(own[int(documents[0])])
        return draw(split, documents, *rest)

    monkeypatch.setattr(heterogeneity, "_draw_part", watch)
    chosen = set()
    for seed in range(4):
        seen.clear()
        assert found(p, seed).measured["gradient_clients"] == 2
        assert len(seen) == 4
        assert seen == sorted(seen)
        chosen |= set(seen)
    assert len(chosen) > 2
