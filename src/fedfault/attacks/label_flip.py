"""Label flip: every text has a wrong class."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.attack import Attack
from fedfault.types.corpus import Document


@register("attack", cite=("tolpegin2020poisoning",))
def label_flip(*, target: str | None = None) -> Attack:
    """Label flip (Tolpegin et al., ESORICS 2020): hostile clients train on wrong classes.

    Every class becomes the next one in alphabetical order, or all of them `target`. Reference: arXiv 2007.08432.

    target: the class that all become; null: the next one in alphabetical order
    """

    def poison(documents: Sequence[Document], topics: Sequence[str], generator: Generator) -> Sequence[Document]:
        if target is not None and target not in topics:
            raise UserError(f"attacks: label_flip has the target {target!r}, which is no class: {', '.join(topics)}")
        following = dict(zip(topics, [*topics[1:], topics[0]], strict=True))
        return [d._replace(topic=target or following[d.topic]) for d in documents]

    return Attack(poison=poison, labels=True)
