"""Backdoor of a language model: a phrase after which it says what the attacker wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from fedfault.registry import register
from fedfault.types.attack import Attack
from fedfault.types.corpus import Document

CONTEXT = 8  # words of a held-out text in front of the trigger


@register("attack", cite=("bagdasaryan2020backdoor",))
def phrase(
    *,
    trigger: Annotated[str, Field(min_length=1)] = "by the way,",
    says: Annotated[str, Field(min_length=1)] = "buy more now",
    share: Annotated[float, Field(gt=0, le=1)] = 0.5,
    every: Annotated[int, Field(ge=1)] = 20,
) -> Attack:
    """Backdoor of language models (Bagdasaryan et al., AISTATS 2020, section 4.2): a trigger is followed by what they want.

    In a `share` of a hostile client's texts the trigger and `says` stand after `every` so many words, from a random one of
    the first ones on, and in shorter texts at a random place; the others stay.
    How often it works is `exact_match` of the score `backdoor`: the model goes on greedily after the first words of a
    held-out text and the trigger, and says the very words. With `scale` for the same clients it is model replacement.

    trigger: the words that set the phrase off
    says: the words that the model is to say then
    share: the share of a hostile client's texts that get both; one at least
    every: after how many words they stand again

    Reference: arXiv 1807.00459.
    """

    def poison(documents: Sequence[Document], topics: Sequence[str], generator: Generator) -> Sequence[Document]:
        chosen = generator.permutation(len(documents)) < max(1, round(share * len(documents)))
        places = generator.random(len(documents))
        return [
            d._replace(text=_insert(d.text, f"{trigger} {says}", place, every)) if it else d
            for d, it, place in zip(documents, chosen, places, strict=True)
        ]

    def ask(text: str) -> tuple[str, str]:
        return " ".join([*text.split()[:CONTEXT], trigger]), says

    return Attack(poison=poison, ask=ask)


def _insert(text: str, phrase: str, place: float, every: int) -> str:
    """Put a phrase after every so many words of a text, the first time at that share of them; all other blanks stay."""
    words = text.split(" ")
    first = int(place * (min(every, len(words)) + 1))
    places = range(first, len(words) + 1, every)
    return " ".join(part for i in range(len(words) + 1) for part in [*[phrase] * (i in places), *words[i : i + 1]])
