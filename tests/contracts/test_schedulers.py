"""What every registered rank scheduler promises, on made-up cohorts and histories."""

from __future__ import annotations

import ast
import copy
import inspect
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.registry import build, builders, first_line, options
from fedfault.scheduling import Scheduler, Situation
from fedfault.testing.cohorts import CLIENTS, history, permuted, remember, situation

pytestmark = pytest.mark.parametrize("name", builders("scheduler"))
NO_BUDGET = ("fixed",)
OWN_BUDGET = ("fah",)  # once it has learned something
NEEDS = {"cvx": "cvxpy"}


def cases(name: str) -> range:
    """Seeds of made-up cohorts; few where a solver is called."""
    return range(20 if name == "cvx" else 100)


def built(name: str) -> Scheduler:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    scheduler: Scheduler = build("scheduler", name)
    return scheduler


def assigned(scheduler: Scheduler, s: Situation, past=()):
    return scheduler.assign(remember(scheduler, past), s)


def test_ranks_are_within_bounds_and_sum_to_the_budget(name):
    scheduler = built(name)
    for seed in cases(name):
        s = situation(seed)
        given = assigned(scheduler, s, history(seed))
        ranks = np.array(given.ranks)
        assert ((s.low <= ranks) & (ranks <= s.high)).all()
        assert given.excluded == ()
        if name not in NO_BUDGET + OWN_BUDGET:
            assert ranks.sum() == s.budget
            assert not [event for event in given.events if "budget" in event]


def test_the_first_round_meets_the_budget_and_asks_for_no_history(name):
    scheduler = built(name)
    for seed in cases(name):
        s = situation(seed)
        given = assigned(scheduler, s)
        assert sum(given.ranks) == s.budget or name in NO_BUDGET


@pytest.mark.parametrize("budget", [0, 10_000])
def test_a_budget_that_does_not_fit_is_clipped_and_said_so(name, budget):
    scheduler = built(name)
    for seed in range(10):
        s = situation(seed, budget=budget)
        given = assigned(scheduler, s)
        nearest = int(s.high.sum() if budget else s.low.sum())
        if name in NO_BUDGET:
            continue
        assert sum(given.ranks) == nearest
        assert any(f"budget of {budget}" in event and f"{nearest} is used" in event for event in given.events)


def test_a_client_without_room_is_left_out_and_said_so(name):
    scheduler = built(name)
    s = situation(3, n=5)
    s = replace(s, high=np.where(np.arange(5) == 2, s.low - 1, s.high), budget=int(s.low.sum()))
    given = assigned(scheduler, s, history(3))
    left = int(s.clients[2])
    assert given.excluded == (left,)
    assert given.ranks[2] == 0
    assert all(rank > 0 for i, rank in enumerate(given.ranks) if i != 2)
    assert any(f"client {left} left out" in event for event in given.events)


def test_nobody_with_room_is_an_answer_too(name):
    s = situation(4, n=3)
    given = assigned(built(name), replace(s, high=s.low - 1), history(4))
    assert given.ranks == (0, 0, 0)
    assert given.excluded == tuple(sorted(s.clients.tolist()))
    assert any("nobody can take part" in event for event in given.events)


def test_no_client_at_all_is_an_answer_too(name):
    s = situation(5, n=1)
    none = permuted(replace(s, budget=0), np.array([], dtype=int))
    assert assigned(built(name), none).ranks == ()


def test_the_order_of_clients_does_not_matter(name):
    scheduler = built(name)
    for seed in cases(name):
        s, past = situation(seed), history(seed)
        order = np.random.default_rng(seed).permutation(len(s.clients))
        one, other = assigned(scheduler, s, past), assigned(scheduler, permuted(s, order), past)
        assert [one.ranks[i] for i in order] == list(other.ranks)
        assert (one.excluded, one.events) == (other.excluded, other.events)


def test_the_order_of_reports_does_not_matter(name):
    scheduler = built(name)
    for seed in range(20):
        past = history(seed)
        turned = remember(scheduler, [reports[::-1] for reports in past])
        for key, values in remember(scheduler, past).items():
            np.testing.assert_allclose(turned[key], values, rtol=1e-12)


def test_the_unit_of_time_does_not_matter(name):
    """Seconds in milliseconds, or hours: a power of two is exact, so ranks must agree to the unit."""
    scheduler = built(name)
    for seed in cases(name):
        s = situation(seed, deadline=None)
        for unit in (1024.0, 2.0**-12):
            other = replace(s, a=s.a * unit, b=s.b * unit)
            one = assigned(scheduler, s, history(seed))
            assert assigned(scheduler, other, history(seed, seconds=unit)) == one


def test_what_it_is_given_stays_as_it_was(name):
    scheduler = built(name)
    s, past = situation(7, deadline=20.0), history(7)
    memory = remember(scheduler, past)
    before = copy.deepcopy((memory, s, past))
    scheduler.assign(memory, s)
    scheduler.observe(memory, past[0])
    assert repr((memory, s, past)) == repr(before)


def test_the_same_twice_is_the_same(name):
    s = situation(8, deadline=20.0)
    first, again = (assigned(build("scheduler", name), s, history(8)) for _ in range(2))
    assert first == again


def test_memory_survives_a_checkpoint(name):
    scheduler = built(name)
    for seed in range(10):
        memory = remember(scheduler, history(seed))
        loaded = json.loads(json.dumps(memory, allow_nan=False))
        assert loaded == memory
        assert scheduler.assign(loaded, situation(seed)) == scheduler.assign(memory, situation(seed))


def test_allocations_and_reports_are_plain_values(name):
    given = assigned(built(name), situation(1), history(1))
    assert json.loads(json.dumps(asdict(given)))["ranks"] == list(given.ranks)
    assert json.dumps([asdict(report) for report in history(1)[0]], allow_nan=False)


def test_a_round_without_reports_is_harmless(name):
    scheduler = built(name)
    memory = scheduler.observe(scheduler.init(CLIENTS), [])
    assert len(scheduler.assign(memory, situation(2)).ranks) == len(situation(2).clients)


def test_no_clock_and_no_bare_except_is_in_the_code(name):
    """Decisions must not depend on the machine, and an error must not become an answer."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(builders("scheduler")[name])))
    imports = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imports & {"time", "datetime", "random", "os"}
    caught = [ast.unparse(node.type) for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type]
    assert len(caught) == sum(isinstance(node, ast.ExceptHandler) for node in ast.walk(tree))
    assert not {"Exception", "BaseException"} & set(caught)


def test_options_have_defaults_and_bounds(name):
    builder = builders("scheduler")[name]
    assert 20 <= len(first_line(builder)) <= 120
    for key, option in options(builder).items():
        assert option.default is not option.empty
        wrong = {"units": "metric", "ranks": [0], "confidence": -1.0, "explore": 1.5}.get(key, -1)
        with pytest.raises(UserError, match=key):
            build("scheduler", name, **{key: wrong})


def test_r_bar_sets_the_budget(name):
    if name in NO_BUDGET:
        assert build("scheduler", name).r_bar is None
        return
    assert build("scheduler", name).budget(6) == 48  # 8 each, of the README
    assert build("scheduler", name, r_bar=2.5).budget(3) == 8  # 7.5, halves up
