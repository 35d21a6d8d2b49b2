"""Data sets as a user meets them, and how their documents are dealt out to clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One text, the topic, register, style or label that it belongs to, and the group that it came from."""

    text: str
    topic: str
    group: str = ""  # its author, site or genre; empty where the source does not say


@dataclass(frozen=True)
class Labels:
    """What a corpus with labels says of them beyond the topics of its documents."""

    names: tuple[str, ...] = ()  # of the classes 0, 1, ...; none where the topics in alphabetical order are the classes
    positive: str | None = None  # the class whose F1 the task is measured by; None: the mean over the classes
    scores: Mapping[str, float] = field(default_factory=dict)  # text -> score, for regression
    first: Mapping[str, int] = field(default_factory=dict)  # text of two sentences -> characters of the first one


@dataclass(frozen=True)
class Corpus:
    """A data set as a user meets it: documents with a topic each, split into train and validation."""

    name: str
    train: tuple[Document, ...]
    validation: tuple[Document, ...]  # shares no text with train
    source: str  # where the text came from, as precisely as can be said (package and version, Hub id, folder)
    fingerprint: str  # hash of all texts and topics: two runs with the same fingerprint saw the same data
    entropy: Mapping[str, float] | None = (
        None  # of a known generator: nats a character that no model can beat, by topic
    )
    labels: Labels | None = None  # None: the topics are all there is


@dataclass(frozen=True)
class Deal:
    """What a partitioner did with n documents and N clients, and what a reader should know about it."""

    clients: list[Any]  # one sorted int array of positions a client: disjoint, together range(n)
    attempts: int = 1  # draws until every client had min_samples
    acceptance: float | None = None  # share of draws in which that holds; None where every draw does
    texts: Mapping[int, str] = field(default_factory=dict)  # position -> what became of a changed text
    removed: list[int] | None = None  # words taken out of each client's texts; None where texts are never changed
    notes: tuple[str, ...] = ()  # sentences: which convention, what a setting could not do


# (documents, num_clients, generator) -> deal
Partition = Callable[[Sequence[Document], int, Any], Deal]
