"""The contract of partitions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfault.errors import UserError
from fedfault.seeds import rng
from fedfault.testing.decks import documents
from fedfault.testing.rules import RuleBroken, Subject, expect, expect_line, rule
from fedfault.types.corpus import Deal, Document

KIND = "partition"
TOPICS = np.repeat([7, 0, 3, 4], [80, 40, 60, 20])  # topics of unequal size
CLIENTS = (1, 2, 3, 5, 8, 13, 40)


def _deal(
    subject: Subject, topics: Sequence[object] | Any = TOPICS, num_clients: int = 8, seed: int = 0, **options: Any
) -> Deal:
    made: Deal = subject.build(**options)(documents(topics), num_clients, rng(seed, "partition"))
    return made


def _expect_whole(clients: Sequence[Any], num_clients: int, size: int) -> None:
    expect(len(clients) == num_clients, f"{len(clients)} clients instead of {num_clients}")
    dealt = np.sort(np.concatenate(clients))
    expect(np.array_equal(dealt, np.arange(size)), f"{len(dealt)} positions, {len(set(dealt.tolist()))} of {size}")


@rule(KIND)
def clients_are_disjoint_and_cover_everything(subject: Subject) -> None:
    """Every document is at exactly one client, and there are as many clients as were asked for."""
    for num_clients in (1, 3, 4, 8):
        _expect_whole(_deal(subject, num_clients=num_clients).clients, num_clients, len(TOPICS))


@rule(KIND)
def no_client_is_empty_and_each_is_sorted(subject: Subject) -> None:
    """A client's positions are an int64 array in rising order, with at least one in it."""
    for seed in range(20):
        for k, own in enumerate(_deal(subject, seed=seed).clients):
            expect(len(own), f"client {k} has nothing, seed {seed}")
            expect(own.dtype == np.int64, f"client {k} has numbers of type {own.dtype}")
            expect((np.diff(own) > 0).all(), f"the positions of client {k} are not in rising order")


@rule(KIND)
def the_same_seed_gives_the_same_split_and_another_seed_another(subject: Subject) -> None:
    """The generator is the only source of chance, and it is used."""
    first, again, other = (_deal(subject, seed=seed) for seed in (5, 5, 6))
    expect([own.tolist() for own in first.clients] == [own.tolist() for own in again.clients], "the splits differ")
    same = (first.texts, first.removed, first.notes) == (again.texts, again.removed, again.notes)
    expect(same, "the changed texts or the notes differ")
    expect(
        not np.array_equal(np.concatenate(first.clients), np.concatenate(other.clients)),
        "another seed gave the same split",
    )


@rule(KIND)
def the_documents_are_not_changed(subject: Subject) -> None:
    """What a partition makes of a text is in its deal; the documents stay."""
    given = documents(TOPICS)
    subject.build()(given, 8, rng(0, "partition"))
    expect(given == documents(TOPICS), "the documents are not what they were")


@rule(KIND)
def min_samples_is_honoured(subject: Subject) -> None:
    """The option `min_samples` is the least that any client gets."""
    least = min(map(len, _deal(subject, num_clients=4, min_samples=15).clients))
    expect(least >= 15, f"a client has {least} with min_samples=15")


@rule(KIND)
def one_document_is_enough_for_one_client(subject: Subject) -> None:
    """One document is dealt to one client, or the refusal says what would work where the options ask for more topics."""
    try:
        sizes = [len(own) for own in _deal(subject, [0], num_clients=1).clients]
    except UserError as refusal:
        expect("what works" in str(refusal), f"the refusal does not say what works: {refusal}")
    else:
        expect(sizes == [1], f"the client has {sizes}")


@rule(KIND)
def an_impossible_request_says_what_would_work(subject: Subject) -> None:
    """Too many clients or documents a client are a `UserError` with what would do: `dealing.owners.check_request`."""
    for num_clients, min_samples, hints in (
        (201, 1, ["200 documents", "201 clients", "at most 200 clients", "at least 201 documents"]),
        (10, 30, ["10 clients 30 each", "at most 6 clients", "min_samples of at most 20", "at least 300 documents"]),
        (0, 1, ["0 clients"]),
        (3, 0, ["min_samples=0"]),
    ):
        told = _refused(subject, TOPICS, num_clients, min_samples=min_samples)
        for hint in hints:
            expect(hint in told, f"{num_clients} clients of {min_samples}: {hint!r} is not in: {told}")


def _refused(subject: Subject, topics: Sequence[object] | Any, num_clients: int, **options: Any) -> str:
    try:
        _deal(subject, topics, num_clients=num_clients, **options)
    except UserError as e:
        return str(e)
    raise RuleBroken(f"{num_clients} clients were dealt {len(topics)} documents with {options or 'its own options'}")


@rule(KIND)
def no_documents_at_all_is_explained(subject: Subject) -> None:
    """Without documents there is a `UserError` that says so."""
    told = _refused(subject, [], 2)
    expect("0 documents" in told, f"'0 documents' is not in: {told}")


@rule(KIND)
def changed_texts_are_of_dealt_documents_and_really_changed(subject: Subject) -> None:
    """`texts` has what became of texts that are other than before, and `removed` the words that each client lost."""
    given, made = documents(TOPICS), _deal(subject)
    for place, text in made.texts.items():
        expect(text and text != given[place].text, f"document {place} is in `texts` and reads {text!r}")
    if made.texts:
        removed = made.removed or []
        fits = len(removed) == 8 and min(removed) >= 0 and sum(removed) > 0
        expect(fits, f"`removed` is {made.removed} for 8 clients")


@rule(KIND)
def attempts_and_acceptance_make_sense(subject: Subject) -> None:
    """1 to 1000 draws, a share of them that is above 0, and notes that are sentences."""
    made = _deal(subject, min_samples=10)
    expect(1 <= made.attempts <= 1000, f"{made.attempts} attempts")
    expect(made.acceptance is None or 0 < made.acceptance <= 1, f"an acceptance of {made.acceptance}")
    expect(all(isinstance(note, str) and note for note in made.notes), f"notes {made.notes}")


@rule(KIND)
def any_documents_are_dealt_or_refused_with_a_reason(subject: Subject) -> None:
    """Whatever the texts, topics and groups: a whole deal, or a `UserError` that says what works."""
    for case in range(40):
        g = np.random.default_rng(case)
        sizes, num_clients = g.integers(1, 26, size=g.integers(1, 10)), int(g.choice(CLIENTS))
        texts = [" ".join(g.choice(list("abc.,!?0 "), size=g.integers(1, 40))).strip() or "x" for _ in range(8)]
        topics = [f"t{k}" for k, size in enumerate(sizes) for _ in range(size)]
        given = [Document(texts[i % len(texts)], t, f"g{i % 5}") for i, t in enumerate(topics)]
        try:
            clients = subject.build()(given, num_clients, g).clients
        except UserError as refusal:
            expect("what works" in str(refusal), f"the refusal does not say what works: {refusal}")
            continue
        _expect_whole(clients, num_clients, len(topics))
        expect(min(map(len, clients)) >= 1, f"a client of {num_clients} has nothing of {len(topics)} documents")


@rule(KIND, slow=True)
def a_large_corpus_over_a_thousand_clients_is_dealt_in_time(subject: Subject) -> None:
    """120,000 short texts take 6 seconds of a busy processor at most; an idle one needs 2."""
    base = documents(np.arange(300) % 20) * 400
    given = [Document(f"{d.text} number {i}", d.topic, f"g{i % 1500}") for i, d in enumerate(base)]
    start = time.process_time()
    made = subject.build()(given, 1000, rng(0, "partition"))
    spent, total = time.process_time() - start, sum(map(len, made.clients))
    expect(spent < 6, f"it took {spent:.1f} s")
    expect(total == 120_000, f"{total} documents were dealt")


@rule(KIND)
def the_first_line_of_the_docstring_fits_a_list(subject: Subject) -> None:
    """`fedfault list` prints the first line of the docstring: 20 to 120 characters."""
    expect_line(subject.builder)
