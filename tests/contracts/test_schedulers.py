"""What registered rank schedulers promise beyond the rules of `fedfault.testing`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.options import list_options
from fedfault.registry import build, load_builders
from fedfault.testing.cohorts import history, situation
from fedfault.testing.schedulers import assign, iterate_cases
from fuzzed import fuzzed, options

pytestmark = pytest.mark.parametrize("name", load_builders("scheduler"))
NO_BUDGET = ("fixed",)
OWN_BUDGET = ("fah",)  # once it has learned something
NEEDS = {"cvx": "cvxpy"}


@pytest.mark.slow
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


@pytest.mark.slow
@fuzzed()
@given(data=st.data(), seed=st.integers(0, 2**32), rounds=st.integers(0, 5), unit=st.sampled_from([1e-9, 1.0, 1e12]))
def test_any_cohort_gets_ranks_within_its_bounds_whatever_was_learned(name, data, seed, rounds, unit):
    """With some options, allowed or not; clients without room, budgets that do not fit, times of nanoseconds and aeons."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    try:
        scheduler = build("scheduler", name, **data.draw(options(load_builders("scheduler")[name])))
    except UserError:
        return
    s = situation(seed)
    room = np.array(data.draw(st.lists(st.integers(-3, 0), min_size=len(s.high), max_size=len(s.high))))
    s = replace(s, high=s.high + room, budget=data.draw(st.integers(0, 200)), a=s.a * unit, b=s.b * unit)
    given = assign(scheduler, s, history(seed, rounds, seconds=unit))
    for k, rank, low, high in zip(s.clients, given.ranks, s.low, s.high, strict=True):
        assert (rank == 0) == (int(k) in given.excluded)
        assert rank == 0 or low <= rank <= high
