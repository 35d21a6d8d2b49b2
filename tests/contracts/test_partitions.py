"""What every registered partitioner promises."""

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.registry import build, builders, first_line
from fedfault.seeds import rng

pytestmark = pytest.mark.parametrize("name", builders("partition"))

TOPICS = np.repeat([7, 0, 3, 4], [80, 40, 60, 20])  # numbers with gaps, topics of unequal size


def split(name, topics=TOPICS, num_clients=8, seed=0, **options):
    return build("partition", name, **options)(topics, num_clients, rng(seed, "partition"))


@pytest.mark.parametrize("num_clients", [1, 3, 4, 8])
def test_clients_are_disjoint_and_cover_everything(name, num_clients):
    clients = split(name, num_clients=num_clients)
    assert len(clients) == num_clients
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(TOPICS)))


def test_no_client_is_empty_and_each_is_sorted(name):
    for seed in range(20):
        for own in split(name, seed=seed):
            assert len(own) >= 1
            assert own.dtype == np.int64
            assert (np.diff(own) > 0).all()


def test_the_same_seed_gives_the_same_split_and_another_seed_another(name):
    first, again, other = (np.concatenate(split(name, seed=seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_topics_are_not_changed(name):
    topics = TOPICS.copy()
    split(name, topics)
    np.testing.assert_array_equal(topics, TOPICS)


def test_min_samples_is_honoured(name):
    assert min(map(len, split(name, num_clients=4, min_samples=15))) >= 15


def test_one_document_for_every_client_is_enough_if_topics_allow_it(name):
    assert [len(own) for own in split(name, np.zeros(1, int), num_clients=1)] == [1]


@pytest.mark.parametrize(
    ("num_clients", "min_samples", "hints"),
    [
        (201, 1, ["200 documents", "201 clients", "at most 200 clients", "at least 201 documents"]),
        (10, 30, ["10 clients 30 each", "at most 6 clients", "min_samples of at most 20", "at least 300 documents"]),
        (0, 1, ["0 clients"]),
        (3, 0, ["min_samples=0"]),
    ],
)
def test_an_impossible_request_says_what_would_work(name, num_clients, min_samples, hints):
    with pytest.raises(UserError) as error:
        split(name, num_clients=num_clients, min_samples=min_samples)
    for hint in hints:
        assert hint in str(error.value)


def test_no_documents_at_all_is_explained(name):
    with pytest.raises(UserError, match="0 documents"):
        split(name, np.zeros(0, int), num_clients=2)


def test_the_first_line_of_the_docstring_fits_a_list(name):
    assert 20 <= len(first_line(builders("partition")[name])) <= 120
