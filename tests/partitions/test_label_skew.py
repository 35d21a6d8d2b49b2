import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.partitions.label_skew import label_skew
from fedfault.registry import find_citations
from fedfault.testing.decks import deal_documents, documents

TOPICS = np.arange(600) % 6


def labels(clients, topics=TOPICS):
    return [len(np.unique(topics[own])) for own in clients]


@pytest.mark.parametrize("wanted", [1, 2, 3, 6])
def test_every_client_has_exactly_so_many_labels(wanted):
    clients = deal_documents(label_skew(labels_per_client=wanted), TOPICS, 12, np.random.default_rng(0))
    assert labels(clients) == [wanted] * 12


def test_labels_have_as_many_clients_as_can_be_even():
    """10 clients with 2 of 6 labels are 20 places: two labels have 4 clients, four have 3."""
    clients = deal_documents(label_skew(), TOPICS, 10, np.random.default_rng(0))
    holders = sum(np.isin(np.arange(6), TOPICS[own]).astype(int) for own in clients)
    assert sorted(holders) == [3, 3, 3, 3, 4, 4]


def test_too_few_clients_hold_more_labels_and_it_is_said():
    deal = label_skew(labels_per_client=1)(documents(TOPICS), 4, np.random.default_rng(0))
    assert labels(deal.clients) == [2, 2, 2, 2]
    assert deal.notes == ("2 labels a client instead of 1: otherwise some of the 6 labels had no client",)


def test_all_labels_at_every_client_is_said_to_be_iid():
    deal = label_skew()(documents(np.arange(60) % 2), 5, np.random.default_rng(0))
    assert deal.notes == ("every client has all 2 labels: this is an IID split",)


def test_more_labels_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"labels_per_client=7, but the documents have 6 label"):
        deal_documents(label_skew(labels_per_client=7), TOPICS, 4, np.random.default_rng(0))


def test_a_rare_label_with_too_many_clients_is_explained():
    topics = np.repeat([0, 1], [98, 2])
    with pytest.raises(UserError, match=r"smallest of 10 clients gets 0 of 100 documents.*rarest label has 2"):
        deal_documents(label_skew(labels_per_client=1), topics, 10, np.random.default_rng(0))


def test_two_labels_are_not_always_paired_the_same_way():
    pairs = {
        tuple(np.unique(TOPICS[own]))
        for s in range(20)
        for own in deal_documents(label_skew(), TOPICS, 6, np.random.default_rng(s))
    }
    assert len(pairs) == 15  # 6 choose 2


def test_it_cites_those_who_have_studied_it():
    assert find_citations("partition", "label_skew") == ("li2022silos",)
