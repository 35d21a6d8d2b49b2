"""Clusters of clients: found where there are some, refused where a random deal would have done as well."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.clustering import clusters, remedy
from fedfault.clustering.clusters import Clusters, average_documents, choose_clusters, embed_clients
from fedfault.config.schema import Experiment
from fedfault.seeds import rng
from fedfault.setup.experiment import Prepared
from fedfault.setup.federation import build_federation
from fedfault.testing.toys import LowRank


@pytest.fixture(autouse=True)
def _few_restarts(monkeypatch):
    """Clusters this far apart are found at once, and what chance does holds for any statistic."""
    monkeypatch.setattr(clusters, "RESTARTS", 2)


def clients(topics: list[int], texts: int = 20, apart: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts of clients, each about one topic: a direction of its own in 12 dimensions, a common one, and noise."""
    g = rng(seed, "texts")
    centres = 3.0 * np.ones(12) + apart * np.eye(12)[topics]
    documents = np.repeat(centres, texts, axis=0) + 0.5 * g.standard_normal((len(topics) * texts, 12))
    return documents, np.repeat(np.arange(len(topics)), texts)


def test_a_client_s_embedding_is_where_the_mean_of_its_texts_lies_from_all_clients_mean():
    """Means (3, 4), (-2, 0) and (-1, -4) around (0, 0); however many texts a client has."""
    documents = np.array([[3.0, 0.0], [3.0, 8.0], [-2.0, 0.0], [-1.0, -4.0]])
    found = embed_clients(average_documents(documents, np.array([0, 0, 1, 2]), 3))
    np.testing.assert_allclose(found, [[0.6, 0.8], [-1.0, 0.0], np.array([-1.0, -4.0]) / 17**0.5], atol=1e-15)


@pytest.mark.long
def test_topics_apart_are_found_and_numbered_as_clients_meet_them():
    found = choose_clusters(*clients([5, 1, 1, 5, 2, 2, 1, 5, 2]), 9, 0)
    assert found.labels == (0, 1, 1, 0, 2, 2, 1, 0, 2)
    assert found.k == 3
    assert max(found.silhouettes.values()) > found.threshold
    assert found.p == pytest.approx(1 / 40)
    assert "3 clusters: [0, 3, 7], [1, 2, 6], [4, 5, 8]" in found.sentence


@pytest.mark.slow
def test_clients_of_unequal_sizes_keep_their_clusters():
    documents, owner = clients([0, 1, 0, 1, 0, 1])
    kept = np.flatnonzero((owner > 1) | (np.arange(len(owner)) % 7 == 0))
    assert choose_clusters(documents[kept], owner[kept], 6, 0).labels == (0, 1, 0, 1, 0, 1)


@pytest.mark.slow
def test_turning_the_embeddings_or_the_order_of_clients_changes_nothing():
    """I-A8: rotation, and clients in another order."""
    documents, owner = clients([0, 1, 2, 0, 1, 2])
    turn = np.linalg.qr(rng(1, "turn").standard_normal((12, 12)))[0]
    assert choose_clusters(documents @ turn, owner, 6, 0).labels == (0, 1, 2, 0, 1, 2)
    order = np.array([4, 0, 3, 5, 1, 2])  # client k is now called order[k]
    assert choose_clusters(documents, order[owner], 6, 0).labels == (0, 0, 1, 1, 2, 2)


@pytest.mark.slow
def test_clients_of_one_topic_are_one_cluster():
    found = choose_clusters(*clients([3] * 8), 8, 0)
    assert (found.k, found.labels) == (1, (0,) * 8)
    assert found.sentence.startswith("no clusters: the clients are as alike as a random deal makes them")


@pytest.mark.slow
def test_equal_clients_are_one_cluster():
    documents, owner = np.ones((12, 3)), np.repeat(np.arange(4), 3)
    found = choose_clusters(documents, owner, 4, 0)
    assert found.k == 1
    assert found.p == 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_a_silhouette_needs_three_clients(count):
    found = choose_clusters(*clients([0, 1][:count]), count, 0)
    assert found == Clusters((0,) * count, {}, None, None, None)
    assert found.to_json()["p_apart"] is None
    assert "too few" in found.sentence


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clusters():
    texts = clients([0, 0, 1, 1, 2], apart=0.3)
    assert choose_clusters(*texts, 5, 4) == choose_clusters(*texts, 5, 4)


@pytest.mark.slow
@pytest.mark.long
def test_iid_clients_are_one_cluster_in_95_percent_of_seeds():
    """One in 40 is expected to be more; four of 25 have a probability of 0.003 (binomial)."""
    several = 0
    for seed in range(25):
        documents, _ = clients([0, 1, 2], texts=16, seed=seed)
        owner = rng(seed, "iid").permutation(np.repeat(np.arange(4), 12))
        several += choose_clusters(documents, owner, 4, seed).k > 1
    assert several <= 3


def test_what_is_kept_is_plain():
    found = Clusters((0, 1, 0), {2: 0.5}, 0.2, 0.025, 0.05)
    assert found.to_json() == {
        "k": 2,
        "labels": [0, 1, 0],
        "silhouettes": {2: 0.5},
        "threshold": 0.2,
        "p": 0.025,
        "p_apart": 0.05,
        "sentence": "2 clusters: [0, 2], [1] (best silhouette 0.500, 0.200 at most by chance, p = 0.025)",
    }


def test_who_trains_elsewhere_is_told_the_clusters_that_a_run_finds(monkeypatch):
    found = Clusters((0, 1, 0, 1, 0, 1), {2: 0.9}, 0.1, 0.01, 0.01)
    monkeypatch.setattr(remedy, "find_clusters", lambda p, encoder: found)
    settings = {"federation": {"total_clients": 6, "algorithm": "clustered"}, "training": {"clients_per_pass": 2}}
    exp, told = Experiment.model_validate(settings), []
    monkeypatch.setattr(LowRank, "free", None, raising=False)  # memory of no device
    task = LowRank()
    monkeypatch.setattr("fedfault.setup.federation.choose_record", lambda task: None)  # of no device
    p = Prepared(exp, None, None, None, task, build_federation(exp, task), spread=lambda p: told.append(p.config) or p)
    q, known = remedy.fill_in_clusters(p, lambda line: None)
    assert known is found
    assert [t.federation.algorithm.options for t in told] == [{"clusters": [0, 1, 0, 1, 0, 1]}]
    assert q.config is told[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 6])
def test_clients_that_are_all_different_are_told_from_clients_that_are_all_alike(number):
    different = choose_clusters(*clients(list(range(number))), number, 0)
    alike = choose_clusters(*clients([1] * number, seed=1), number, 0)
    assert different.k == alike.k == 1
    assert different.p_apart == pytest.approx(1 / 40)
    assert different.sentence.startswith(
        "no clusters: the clients differ more than a random deal makes them (p = 0.025), but"
    )
    assert alike.p_apart > 1 / 40
    assert alike.sentence.startswith("no clusters: the clients are as alike as a random deal makes them")
