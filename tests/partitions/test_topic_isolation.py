import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.partitions.iid import iid
from fedfault.partitions.topic_isolation import topic_isolation
from fedfault.registry import build
from fedfault.testing.decks import deal_documents

TOPICS = np.arange(400) % 4


def topics_of(clients, topics=TOPICS):
    return [set(topics[own].tolist()) for own in clients]


def test_every_client_has_one_topic_and_every_topic_a_client():
    clients = deal_documents(topic_isolation(), TOPICS, 10, np.random.default_rng(0))
    held = topics_of(clients)
    assert all(len(own) == 1 for own in held)
    assert set.union(*held) == {0, 1, 2, 3}
    assert [held[k] for k in range(4)] * 2 == held[:8]  # client k has topic k mod T


def test_the_clients_of_a_topic_share_it_evenly():
    sizes = [len(own) for own in deal_documents(topic_isolation(), TOPICS, 10, np.random.default_rng(0))]
    assert sizes == [34, 34, 50, 50, 33, 33, 50, 50, 33, 33]


def test_fewer_clients_than_topics_hold_several():
    held = topics_of(deal_documents(topic_isolation(), TOPICS, 3, np.random.default_rng(0)))
    assert sorted(map(len, held)) == [1, 1, 2]
    assert set.union(*held) == {0, 1, 2, 3}


def test_which_client_has_which_topic_depends_on_the_seed():
    first = {
        min(topics_of(deal_documents(topic_isolation(), TOPICS, 4, np.random.default_rng(seed)))[0])
        for seed in range(40)
    }
    assert first == {0, 1, 2, 3}


@pytest.mark.parametrize("leak", [0.0, 0.2, 0.5, 1.0])
def test_the_leak_is_the_share_of_the_global_mixture(leak):
    """With equal topics a client has 1 - leak + leak / T of its documents from its own topic."""
    generator = np.random.default_rng(1)
    own = [
        np.bincount(TOPICS[client], minlength=4).max() / len(client) if leak < 1 else (TOPICS[client] == 0).mean()
        for _ in range(100)
        for client in deal_documents(topic_isolation(leak=leak), TOPICS, 4, generator)
    ]
    assert abs(np.mean(own) - (1 - leak + leak / 4)) < 0.01


@pytest.mark.slow
def test_a_full_leak_is_iid():
    """Same sizes and, over many draws, the same mean and variance of the topic counts, with unequal topics."""
    topics = np.repeat([0, 1, 2], [60, 30, 10])
    counts = {}
    for name, split in {"leak": topic_isolation(leak=1.0), "iid": iid()}.items():
        generator = np.random.default_rng(2)
        draws = [deal_documents(split, topics, 7, generator) for _ in range(1500)]
        assert {tuple(map(len, clients)) for clients in draws} == {(15, 15, 14, 14, 14, 14, 14)}
        counts[name] = np.array([[np.bincount(topics[own], minlength=3) for own in clients] for clients in draws])
    se = counts["iid"].std(axis=0) / np.sqrt(1500)
    assert (np.abs(counts["leak"].mean(axis=0) - counts["iid"].mean(axis=0)) < 4.5 * np.sqrt(2) * se).all()
    np.testing.assert_allclose(counts["leak"].var(axis=0).mean(0), counts["iid"].var(axis=0).mean(0), rtol=0.1)


def test_a_topic_too_small_for_its_clients_is_explained():
    topics = np.repeat([0, 1], [50, 2])
    with pytest.raises(UserError) as error:
        deal_documents(topic_isolation(), topics, 10, np.random.default_rng(0))
    for part in ("52 documents in 2 topics", "smallest of 2", "at most 4 clients", "larger leak", "topic_skew"):
        assert part in str(error.value)
    assert min(map(len, deal_documents(topic_isolation(), topics, 4, np.random.default_rng(0)))) == 1
    assert min(map(len, deal_documents(topic_isolation(leak=1.0), topics, 10, np.random.default_rng(0)))) == 5


@pytest.mark.parametrize("leak", [-0.1, 1.1])
def test_a_leak_outside_zero_to_one_is_refused(leak):
    with pytest.raises(UserError, match="leak"):
        build("partition", "topic_isolation", leak=leak)
