"""Documents to deal out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from fedfault.types.corpus import Document, Partition

WORDS = ["the", "a", "of", "report", "market", "goal", "we", "they", "run", "quickly", "green", "system"]


def documents(topics: Iterable[object]) -> list[Document]:
    """A document with a text of its own for every topic; groups of unequal size, 16 where there are enough."""
    return list(_documents(tuple(map(str, topics))))


@lru_cache(maxsize=32)
def _documents(topics: tuple[str, ...]) -> tuple[Document, ...]:
    return tuple(
        Document(
            " ".join(WORDS[(i * k) % len(WORDS)] for k in range(3 + i % 17)) + f" {i}", topic, f"g{i % 31 % 16:02d}"
        )
        for i, topic in enumerate(topics)
    )


def deal_documents(partition: Partition, topics: Sequence[object], num_clients: int, generator: Any) -> list[Any]:
    """Each client's positions after dealing out documents of these topics."""
    return partition(documents(topics), num_clients, generator).clients
