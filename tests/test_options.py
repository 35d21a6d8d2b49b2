"""How a builder's signature becomes the schema of its options and their help."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fedfault.errors import UserError
from fedfault.options import check_options, describe_options, spell_type

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
