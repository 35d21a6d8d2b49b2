"""What every registered partitioner promises."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.registry import build, builders, first_line
from fedfault.seeds import rng
from fedfault.testing.decks import documents
from fedfault.types.corpus import Deal, Document

pytestmark = pytest.mark.parametrize("name", builders("partition"))

TOPICS = np.repeat([7, 0, 3, 4], [80, 40, 60, 20])  # topics of unequal size


def deal(name, topics=TOPICS, num_clients=8, seed=0, **options) -> Deal:
    return build("partition", name, **options)(documents(topics), num_clients, rng(seed, "partition"))


@pytest.mark.parametrize("num_clients", [1, 3, 4, 8])
def test_clients_are_disjoint_and_cover_everything(name, num_clients):
    clients = deal(name, num_clients=num_clients).clients
    assert len(clients) == num_clients
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(TOPICS)))


def test_no_client_is_empty_and_each_is_sorted(name):
    for seed in range(20):
        for own in deal(name, seed=seed).clients:
            assert len(own) >= 1
            assert own.dtype == np.int64
            assert (np.diff(own) > 0).all()


def test_the_same_seed_gives_the_same_split_and_another_seed_another(name):
    first, again, other = (deal(name, seed=seed) for seed in (5, 5, 6))
    assert [own.tolist() for own in first.clients] == [own.tolist() for own in again.clients]
    assert (first.texts, first.removed, first.notes) == (again.texts, again.removed, again.notes)
    assert not np.array_equal(np.concatenate(first.clients), np.concatenate(other.clients))


def test_the_documents_are_not_changed(name):
    before = documents(TOPICS)
    build("partition", name)(given := documents(TOPICS), 8, rng(0, "partition"))
    assert given == before


def test_min_samples_is_honoured(name):
    assert min(map(len, deal(name, num_clients=4, min_samples=15).clients)) >= 15


def test_one_document_for_every_client_is_enough_if_topics_allow_it(name):
    assert [len(own) for own in deal(name, [0], num_clients=1, **_mildest(name, 1)).clients] == [1]


def _mildest(name, num_topics):
    return {"labels_per_client": num_topics} if name == "label_skew" else {}


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
        deal(name, num_clients=num_clients, min_samples=min_samples)
    for hint in hints:
        assert hint in str(error.value)


def test_no_documents_at_all_is_explained(name):
    with pytest.raises(UserError, match="0 documents"):
        deal(name, [], num_clients=2)


def test_changed_texts_are_of_dealt_documents_and_really_changed(name):
    given = documents(TOPICS)
    made = deal(name)
    for place, text in made.texts.items():
        assert text
        assert text != given[place].text
    if made.texts:
        assert made.removed is not None
        assert len(made.removed) == 8
        assert min(made.removed) >= 0
        assert sum(made.removed) > 0


def test_attempts_and_acceptance_make_sense(name):
    made = deal(name, min_samples=10)
    assert 1 <= made.attempts <= 1000
    assert made.acceptance is None or 0 < made.acceptance <= 1
    assert all(isinstance(note, str) and note for note in made.notes)


@settings(max_examples=20, deadline=None)
@given(
    num_clients=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=9),
    texts=st.lists(st.text(max_size=40).filter(str.strip), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_any_documents_are_dealt_or_refused_with_a_reason(name, num_clients, sizes, texts, seed):
    topics = [f"t{k}" for k, size in enumerate(sizes) for _ in range(size)]
    given = [Document(texts[i % len(texts)], t, f"g{i % 5}") for i, t in enumerate(topics)]
    partition, generator = build("partition", name), np.random.default_rng(seed)
    try:
        made = partition(given, num_clients, generator)
    except UserError as refusal:
        assert "what works" in str(refusal)  # noqa: PT017
        return
    assert sorted(np.concatenate(made.clients).tolist()) == list(range(len(topics)))
    assert min(map(len, made.clients)) >= 1


@pytest.mark.slow
def test_a_large_corpus_over_a_thousand_clients_is_dealt_in_time(name):
    """120,000 short texts; the bar of 2 s is for an idle machine, so this one allows for a busy one."""
    given = [
        Document(f"{d.text} number {i}", d.topic, f"g{i % 1500}")
        for i, d in enumerate(documents(np.arange(300) % 20) * 400)
    ]
    start = time.process_time()
    made = build("partition", name)(given, 1000, rng(0, "partition"))
    assert time.process_time() - start < 6
    assert sum(map(len, made.clients)) == 120_000


def test_the_first_line_of_the_docstring_fits_a_list(name):
    assert 20 <= len(first_line(builders("partition")[name])) <= 120
