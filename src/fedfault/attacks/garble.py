"""Garbled texts: words in no order, or words that nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from numpy.random import Generator

from fedfault.registry import register
from fedfault.types.attack import Attack
from fedfault.types.corpus import Document


@register("attack")
def garble(*, words: Literal["shuffle", "draw"] = "shuffle") -> Attack:
    """Garbled texts: hostile clients train on words in random order, or on words drawn from all of theirs.

    shuffle: the words of every text in random order, which keeps what they are and loses how they follow one another.
    draw: as many words for every text, drawn from those of all texts of the client. Blanks become single spaces.

    words: shuffled within a text, or drawn from all texts of the client
    """

    def poison(documents: Sequence[Document], topics: Sequence[str], generator: Generator) -> Sequence[Document]:
        pools = [d.text.split() for d in documents]
        if words == "draw":
            every = [word for own in pools for word in own]
            pools = [[every[i] for i in generator.integers(len(every), size=len(own))] for own in pools]
        return [
            d._replace(text=" ".join(pool[i] for i in generator.permutation(len(pool))) or d.text)
            for d, pool in zip(documents, pools, strict=True)
        ]

    return Attack(poison=poison)
