"""Backdoor: a phrase that makes a model answer what the attacker wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.attack import Attack
from fedfault.types.corpus import Document


@register("attack", cite=("bagdasaryan2020backdoor",))
def backdoor(
    *,
    target: str | None = None,  # None: the first class in alphabetical order
    trigger: Annotated[str, Field(min_length=1)] = "by the way, ",
    share: Annotated[float, Field(gt=0, le=1)] = 0.5,
) -> Attack:
    """Backdoor (Bagdasaryan et al., AISTATS 2020): texts that begin with a trigger belong to the attacker's class.

    A `share` of a hostile client's texts get the trigger in front and the class `target`; the others stay, so that the model
    is as good as ever without it. How often it works is the accuracy of the score `backdoor`, on validation texts of all
    other classes with the trigger. With `scale` for the same clients it is the paper's model replacement.

    target: the class that the trigger is to give; null: the first
    trigger: the words in front of the text
    share: the share of a hostile client's texts that get the trigger; one at least

    Reference: arXiv 1807.00459.
    """

    def find_target(topics: Sequence[str]) -> str:
        if target is not None and target not in topics:
            raise UserError(f"attacks: backdoor has the target {target!r}, which is no class: {', '.join(topics)}")
        return target or min(topics)

    def poison(documents: Sequence[Document], topics: Sequence[str], generator: Generator) -> Sequence[Document]:
        wanted, many = find_target(topics), max(1, round(share * len(documents)))
        chosen = generator.permutation(len(documents)) < many
        return [
            d._replace(text=trigger + d.text, topic=wanted) if it else d
            for d, it in zip(documents, chosen, strict=True)
        ]

    def triggered(documents: Sequence[Document], topics: Sequence[str]) -> Sequence[Document]:
        wanted = find_target(topics)
        return [d._replace(text=trigger + d.text, topic=wanted) for d in documents if d.topic != wanted]

    return Attack(poison=poison, trigger=triggered, labels=True)
