"""Made-up instructions with one right answer each, so that exact match means something: the tasks are the topics.

Reverse the words: lamp river seven            seven river lamp
Which key holds 7? lamp=3, river=7, boat=1     river
How many metres are 4 kilometres?              4000
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.reading.documents import VALIDATION
from fedfault.reading.tables import Columns, ReadRow, make_table_corpus
from fedfault.registry import register
from fedfault.seeds import rng
from fedfault.types.corpus import ASSISTANT, USER, Conversation, Corpus, Document, Turn

WORDS = """
    lamp river boat stone bread cloud horse glass field paper chair music north green silver seven window garden market
    winter summer letter bridge candle doctor engine farmer island jacket kitten ladder mirror number orange pencil rabbit
    school ticket valley yellow
"""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("hours", "minutes", 60), ("weeks", "days", 7),
    ("dozens", "pieces", 12), ("kilograms", "grams", 1000),
)  # fmt: skip

Draw = np.random.Generator
TASKS: dict[str, Callable[[Draw], tuple[str, str]]] = {}  # task -> one of its instructions, with the answer
MOST_DRAWS = 50  # for each instruction that is wanted: some tasks have few different ones


def _task(name: str) -> Callable[[Callable[[Draw], tuple[str, str]]], Callable[[Draw], tuple[str, str]]]:
    def add(make: Callable[[Draw], tuple[str, str]]) -> Callable[[Draw], tuple[str, str]]:
        TASKS[name] = make
        return make

    return add


def _draw_words(draw: Draw, least: int = 2, most: int = 4) -> list[str]:
    """Draw different words."""
    return [str(word) for word in draw.permutation(WORDS.split())[: draw.integers(least, most + 1)]]


@_task("copy")
def _copy(draw: Draw) -> tuple[str, str]:
    words = " ".join(_draw_words(draw))
    return f"Repeat the words: {words}", words


@_task("reverse")
def _reverse(draw: Draw) -> tuple[str, str]:
    words = _draw_words(draw)
    return f"Reverse the words: {' '.join(words)}", " ".join(words[::-1])


@_task("sort")
def _sort(draw: Draw) -> tuple[str, str]:
    words = _draw_words(draw)
    return f"Sort the words by alphabet: {' '.join(words)}", " ".join(sorted(words))


@_task("count")
def _count(draw: Draw) -> tuple[str, str]:
    words = _draw_words(draw, 2, 6)
    return f"How many words are these? {' '.join(words)}", str(len(words))


@_task("casing")
def _change_case(draw: Draw) -> tuple[str, str]:
    words = " ".join(_draw_words(draw, 1, 3))
    return f"Write in capital letters: {words}", words.upper()


@_task("last word")
def _choose_last(draw: Draw) -> tuple[str, str]:
    words = _draw_words(draw, 2, 5)
    return f"What is the last word? {' '.join(words)}", words[-1]


@_task("lookup")
def _look_up(draw: Draw) -> tuple[str, str]:
    words = _draw_words(draw, 3, 3)
    numbers = draw.permutation(10)[:3].tolist()
    held = ", ".join(f"{word}={number}" for word, number in zip(words, numbers, strict=True))
    place = int(draw.integers(3))
    return f"Which key holds {numbers[place]}? {held}", words[place]


@_task("dates")
def _shift_day(draw: Draw) -> tuple[str, str]:
    start, days = int(draw.integers(7)), int(draw.integers(1, 15))
    what = f"{days} days" if days > 1 else "one day"
    return f"Which day is {what} after {DAYS[start]}?", DAYS[(start + days) % 7]


@_task("units")
def _convert(draw: Draw) -> tuple[str, str]:
    whole, part, factor = UNITS[draw.integers(len(UNITS))]
    n = int(draw.integers(2, 20))
    return f"How many {part} are {n} {whole}?", str(n * factor)


@_task("sums")
def _add(draw: Draw) -> tuple[str, str]:
    a, b = draw.integers(2, 40, 2).tolist()
    return f"What is {a} + {b}?", str(a + b)


@register("corpus")
def skills(*, num_examples: Annotated[int, Field(ge=10)] = 200, seed: int = 0) -> Corpus:
    """Made-up instructions of ten tasks, each with one right answer, no network needed (generated, so no licence).

    The tasks are copy, reverse, sort, count, casing, last word, lookup, dates, units and sums; they are the topics, so that
    topic_isolation makes departments that know a task each. `num_examples` are drawn of each task, of which a tenth is
    validation; a task that has fewer different ones (dates 98, units 108) has those. `seed` is not the run's.

    num_examples: examples that are drawn of each task
    seed: of what is made up; not the run's
    """
    sides: tuple[list[ReadRow], list[ReadRow]] = ([], [])
    for task in TASKS:
        made = [ReadRow(Document(c.text, task), 0, c) for c in _make_examples(task, num_examples, seed)]
        held = max(1, round(VALIDATION * len(made)))
        sides[0].extend(made[held:])
        sides[1].extend(made[:held])
    return make_table_corpus("skills", f"generated: seed {seed}, {len(TASKS)} tasks", *sides, Columns())


def _make_examples(task: str, number: int, seed: int) -> list[Conversation]:
    """Make so many different examples of a task, or as many as are found."""
    draw = rng(seed, "skills", task)
    found: dict[str, str] = {}
    for _ in range(MOST_DRAWS * number):
        if len(found) == number:
            break
        asked, answer = TASKS[task](draw)
        found.setdefault(asked, answer)
    turns = ((Turn(USER, asked), Turn(ASSISTANT, answer)) for asked, answer in found.items())
    return [Conversation(pair, f"skills: {task} {n}") for n, pair in enumerate(turns, start=1)]
