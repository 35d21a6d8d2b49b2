"""The page of answers says what today's rule makes of the reports."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def restate():
    return runpy.run_path(str(ROOT / "scripts/restate.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("main", marks=pytest.mark.long),
        "failure",
        "clustering",
        "smollm2",
        "domains",
        "topics_news",
        "topics_styles",
    ],
)
def test_the_page_of_answers_has_the_answers_of_today(restate, name):
    assert name in restate["SHIPPED"]
    assert restate["format_answers"](name) in (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")


def test_differences_are_those_of_the_report(restate):
    first = restate["read_differences"]("domains")[0]
    assert first == [0.00369, 0.00381, 0.00087, 0.00118, 0.00328]
