"""How a builder's signature becomes the schema of its options and their help."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fedfault.errors import UserError
from fedfault.options import check_options, describe_options, list_options, read_meanings, spell_type
from fedfault.registry import FOLDERS, load_builders

Share = Annotated[float, Field(gt=0, le=1)]


def made(*, share: Share, steps: int = 3, sides: list[Share | None] | None = None, fast: bool = False): ...


def test_options_are_described_in_words_of_yaml():
    assert describe_options(made) == [
        "share: float > 0 and <= 1",
        "steps: int = 3",
        "sides: list of float > 0 and <= 1, or null, or null = null",
        "fast: true or false = false",
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Field(gt=0)] | Literal["auto"], "int > 0, or auto"),
        (Literal["none", "8bit"] | None, "none, 8bit, or null"),
        (Any, "Any"),
    ],
)
def test_types_are_spelled_for_people(kind, words):
    assert spell_type(kind) == words


def test_an_option_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        UserError, match=r"'shares'; did you mean 'share'\? \(it takes: share: float > 0 and <= 1; steps: int"
    ):
        check_options("partition", "made", made, {"shares": 1})


OPTIONS = [
    (kind, name, option)
    for kind in FOLDERS
    for name, builder in load_builders(kind).items()
    for option in list_options(builder)
]


def test_every_option_of_every_component_says_what_it_means():
    known = {(kind, name): read_meanings(load_builders(kind)[name])[1] for kind, name, _ in OPTIONS}
    assert len(OPTIONS) > 100
    assert not [(kind, name, o) for kind, name, o in OPTIONS if len(known[kind, name].get(o, "").split()) < 3]


def test_meanings_are_taken_out_of_the_text_and_indented_lines_go_on():
    def made(*, rate: float = 1.0):
        """What it is.

        rate: how fast
          it goes
        Note: no option.
        """

    assert read_meanings(made) == ("What it is.\n\nNote: no option.", {"rate": "how fast it goes"})
