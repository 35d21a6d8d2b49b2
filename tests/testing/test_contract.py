"""The contract of a plug-in on the command line: a line for each rule, and what was done instead of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfault import registry
from fedfault.errors import UserError
from fedfault.testing import get_rules
from fedfault.testing.contract import check_plugin

NEWCOMERS = Path(__file__).parents[1] / "newcomers"
BOLD = """
import numpy as np

from fedfault.registry import register
from fedfault.types.corpus import Deal


@register("partition")
def in_order(*, min_samples: int = 1):
    "Always in the order of the documents."
    return lambda documents, n, generator: Deal(np.array_split(np.arange(len(documents)), n))
"""


@pytest.fixture(autouse=True)
def _keep():
    with registry.keep_plugins():
        yield


@pytest.mark.slow
def test_every_rule_that_holds_has_a_line():
    said: list[str] = []
    assert check_plugin(str(NEWCOMERS / "by_length.py"), [], said.append) == 0
    rules = get_rules("partition")
    assert said[0] == "partition by_length"
    assert said[1:-1] == [f"  holds   {rule.sentence}" for rule in rules.values()]
    assert said[-1] == f"  it keeps all {len(rules)} rules"


@pytest.mark.slow
def test_a_broken_rule_is_told_with_what_was_done_instead(tmp_path):
    (tmp_path / "bold.py").write_text(BOLD)
    said: list[str] = []
    assert check_plugin(str(tmp_path / "bold.py"), ["min_samples=2"], said.append) == 1
    at = next(
        i for i, line in enumerate(said) if line.startswith("  BROKEN  The generator is the only source of chance")
    )
    assert said[at + 1].startswith("          ")
    assert said[-1].startswith("  it breaks ")


def test_an_option_that_no_component_takes_is_refused():
    with pytest.raises(UserError, match=r"no component of .* has an option 'min_sample'; did you mean 'min_samples'\?"):
        check_plugin(str(NEWCOMERS / "by_length.py"), ["min_sample=2"], print)
    with pytest.raises(UserError, match="partition 'by_length': min_samples='x': Input should be a valid integer"):
        check_plugin(str(NEWCOMERS / "by_length.py"), ["min_samples=x"], print)
