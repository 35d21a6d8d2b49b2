"""What registered rank schedulers promise beyond the rules of `fedfault.testing`."""

from __future__ import annotations

import pytest

from fedfault.errors import UserError
from fedfault.options import list_options
from fedfault.registry import build, load_builders
from fedfault.testing.cohorts import history, situation
from fedfault.testing.schedulers import assign, iterate_cases

pytestmark = pytest.mark.parametrize("name", load_builders("scheduler"))
NO_BUDGET = ("fixed",)
OWN_BUDGET = ("fah",)  # once it has learned something
NEEDS = {"cvx": "cvxpy"}


def test_ranks_sum_to_the_budget_whatever_was_learned(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in NO_BUDGET + OWN_BUDGET:
        pytest.skip("it has a budget of its own, or none")
    scheduler = build("scheduler", name)
    for seed in iterate_cases():
        s = situation(seed)
        given = assign(scheduler, s, history(seed))
        assert sum(given.ranks) == s.budget
        assert not [event for event in given.events if "budget" in event]


def test_options_have_bounds(name):
    builder = load_builders("scheduler")[name]
    for key in list_options(builder):
        wrong = {"units": "metric", "ranks": [0], "confidence": -1.0, "explore": 1.5}.get(key, -1)
        with pytest.raises(UserError, match=key):
            build("scheduler", name, **{key: wrong})


def test_r_bar_sets_the_budget(name):
    if name in NO_BUDGET:
        assert build("scheduler", name).r_bar is None
        return
    assert build("scheduler", name).budget(6) == 48  # 8 each, of the README
    assert build("scheduler", name, r_bar=2.5).budget(3) == 8  # 7.5, halves up
