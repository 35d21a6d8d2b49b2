"""The contract of rank schedulers, on made-up cohorts and histories."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import numpy as np

from fedfault.options import list_options
from fedfault.scheduling import Allocation, Report, Scheduler, Situation
from fedfault.testing.cohorts import CLIENTS, history, permute, remember, situation
from fedfault.testing.rules import Subject, expect, expect_chosen_by_name, expect_line, rule

KIND = "scheduler"
FEWEST, MOST, SECONDS = 20, 100, 0.5


def iterate_cases() -> Iterator[int]:
    """Seeds of made-up cohorts: 100, or as many as half a second allows and no fewer than 20 where a solver is called."""
    start = time.process_time()
    for seed in count():
        if seed >= MOST or (seed >= FEWEST and time.process_time() - start > SECONDS):
            return
        yield seed


def assign(scheduler: Scheduler, s: Situation, past: Sequence[list[Report]] = ()) -> Allocation:
    """What a scheduler that has seen these rounds gives."""
    return scheduler.assign(remember(scheduler, past), s)


@rule(KIND)
def ranks_are_within_bounds_and_nobody_is_left_out(subject: Subject) -> None:
    """Every client with room gets a rank between its least and its largest."""
    scheduler = subject.build()
    for seed in iterate_cases():
        s = situation(seed)
        given = assign(scheduler, s, history(seed))
        ranks = np.array(given.ranks)
        expect(((s.low <= ranks) & (ranks <= s.high)).all(), f"ranks {ranks} within {s.low} and {s.high}")
        expect(given.excluded == (), f"clients {given.excluded} were left out")


@rule(KIND)
def the_first_round_meets_the_budget_and_asks_for_no_history(subject: Subject) -> None:
    """Before anything is learned, ranks sum to the budget to the unit, unless the scheduler has none."""
    scheduler = subject.build()
    for seed in iterate_cases():
        s = situation(seed)
        total = sum(assign(scheduler, s).ranks)
        expect(scheduler.r_bar is None or total == s.budget, f"ranks sum to {total}, not to {s.budget}")


@rule(KIND)
def a_budget_that_does_not_fit_is_clipped_and_said_so(subject: Subject) -> None:
    """A budget below all least or above all largest ranks becomes the nearest that fits, and an event names both."""
    scheduler = subject.build()
    for budget in (0, 10_000) if scheduler.r_bar is not None else ():
        for seed in range(10):
            s = situation(seed, budget=budget)
            given, nearest = assign(scheduler, s), int(s.high.sum() if budget else s.low.sum())
            expect(sum(given.ranks) == nearest, f"budget {budget}: ranks sum to {sum(given.ranks)}, not to {nearest}")
            words = (f"budget of {budget}", f"{nearest} is used")
            expect(any(all(w in e for w in words) for e in given.events), f"no event with {words}: {given.events}")


@rule(KIND)
def a_client_without_room_is_left_out_and_said_so(subject: Subject) -> None:
    """A client whose largest rank is below its least gets 0, is in `excluded`, and an event says so."""
    s = situation(3, n=5)
    s = replace(s, high=np.where(np.arange(5) == 2, s.low - 1, s.high), budget=int(s.low.sum()))
    given, left = assign(subject.build(), s, history(3)), int(s.clients[2])
    expect(given.excluded == (left,), f"excluded: {given.excluded} instead of ({left},)")
    expect([rank > 0 for rank in given.ranks] == [True, True, False, True, True], f"ranks {given.ranks}")
    expect(any(f"client {left} left out" in event for event in given.events), f"events {given.events}")


@rule(KIND)
def nobody_with_room_is_an_answer_too(subject: Subject) -> None:
    """Where no client has room, all get 0 and an event says that nobody can take part."""
    s = situation(4, n=3)
    given = assign(subject.build(), replace(s, high=s.low - 1), history(4))
    expect(given.ranks == (0, 0, 0), f"ranks {given.ranks}")
    expect(given.excluded == tuple(sorted(s.clients.tolist())), f"excluded {given.excluded}")
    expect(any("nobody can take part" in event for event in given.events), f"events {given.events}")


@rule(KIND)
def no_client_at_all_is_an_answer_too(subject: Subject) -> None:
    """An empty cohort gets no ranks."""
    none = permute(replace(situation(5, n=1), budget=0), np.array([], dtype=int))
    given = assign(subject.build(), none)
    expect(given.ranks == (), f"ranks {given.ranks}")


@rule(KIND)
def the_order_of_clients_does_not_matter(subject: Subject) -> None:
    """The same cohort in another order gives every client the same rank."""
    scheduler = subject.build()
    for seed in iterate_cases():
        s, past = situation(seed), history(seed)
        order = np.random.default_rng(seed).permutation(len(s.clients))
        one, other = assign(scheduler, s, past), assign(scheduler, permute(s, order), past)
        expect([one.ranks[i] for i in order] == list(other.ranks), f"{one.ranks} by {order} became {other.ranks}")
        expect((one.excluded, one.events) == (other.excluded, other.events), f"{one} and {other}")


@rule(KIND)
def the_order_of_reports_does_not_matter(subject: Subject) -> None:
    """What is learned of a round does not depend on who reported first."""
    scheduler = subject.build()
    for seed in range(20):
        past = history(seed)
        turned = remember(scheduler, [reports[::-1] for reports in past])
        for key, values in remember(scheduler, past).items():
            expect(np.allclose(turned[key], values, rtol=1e-12, atol=0, equal_nan=True), f"the memory {key!r} differs")


@rule(KIND)
def the_unit_of_time_does_not_matter(subject: Subject) -> None:
    """Seconds in milliseconds, or in hours, give the same ranks to the unit."""
    scheduler = subject.build()
    for seed in iterate_cases():
        s = situation(seed, deadline=None)
        one = assign(scheduler, s, history(seed))
        for unit in (1024.0, 2.0**-12):  # a power of two is exact
            other = assign(scheduler, replace(s, a=s.a * unit, b=s.b * unit), history(seed, seconds=unit))
            expect(other == one, f"times {unit} as long: {other.ranks} instead of {one.ranks}")


@rule(KIND)
def what_it_is_given_stays_as_it_was(subject: Subject) -> None:
    """Memory, cohort and reports are not changed in place."""
    scheduler, s, past = subject.build(), situation(7, deadline=20.0), history(7)
    memory = remember(scheduler, past)
    before = copy.deepcopy((memory, s, past))
    scheduler.assign(memory, s)
    scheduler.observe(memory, past[0])
    expect(repr((memory, s, past)) == repr(before), "they are not what they were")


@rule(KIND)
def the_same_twice_is_the_same(subject: Subject) -> None:
    """Two schedulers with the same options and history decide alike."""
    s = situation(8, deadline=20.0)
    first, again = (assign(subject.build(), s, history(8)) for _ in range(2))
    expect(first == again, f"{first} and {again}")


@rule(KIND)
def memory_survives_a_checkpoint(subject: Subject) -> None:
    """Memory is JSON: written and read again it is the same, and so are the decisions."""
    scheduler = subject.build()
    for seed in range(10):
        memory = remember(scheduler, history(seed))
        loaded = json.loads(json.dumps(memory, allow_nan=False))
        expect(loaded == memory, f"{memory} became {loaded}")
        expect(scheduler.assign(loaded, situation(seed)) == scheduler.assign(memory, situation(seed)), "ranks differ")


@rule(KIND)
def allocations_are_plain_values(subject: Subject) -> None:
    """Ranks are Python integers that can be written as JSON."""
    given = assign(subject.build(), situation(1), history(1))
    expect(json.loads(json.dumps(asdict(given)))["ranks"] == list(given.ranks), f"ranks {given.ranks}")


@rule(KIND)
def a_round_without_reports_is_harmless(subject: Subject) -> None:
    """Nobody reported: the next round still has a rank for every client."""
    scheduler = subject.build()
    memory = scheduler.observe(scheduler.init(CLIENTS), [])
    given = scheduler.assign(memory, situation(2)).ranks
    expect(len(given) == len(situation(2).clients), f"{len(given)} ranks")


@rule(KIND)
def no_clock_and_no_bare_except_is_in_the_code(subject: Subject) -> None:
    """Decisions do not depend on the machine (`time`, `random`, `os`), and an error does not become an answer."""
    tree = ast.parse(Path(inspect.getfile(subject.builder)).read_text(encoding="utf-8"))
    imports = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imports |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found = imports & {"time", "datetime", "random", "os"}
    expect(not found, f"it imports {', '.join(sorted(found))}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            expect(caught not in {"", "Exception", "BaseException"}, f"line {node.lineno} catches every error")


@rule(KIND)
def its_options_have_defaults(subject: Subject) -> None:
    """A scheduler can be chosen by its name alone, and the first line of its docstring has 20 to 120 characters."""
    expect_line(subject.builder)
    expect_chosen_by_name(subject.builder)


@rule(KIND)
def r_bar_sets_the_budget(subject: Subject) -> None:
    """A cohort of n shares r_bar n units, halves up; a scheduler without this option has none."""
    if "r_bar" not in list_options(subject.builder):
        expect(subject.build().r_bar is None, "it has an r_bar that nobody can set")
        return
    budget = subject.build(r_bar=2.5).budget(3)
    expect(budget == 8, f"r_bar=2.5 for 3 clients gives {budget}, not 8")
