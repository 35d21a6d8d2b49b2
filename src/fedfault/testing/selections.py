"""The contract of selections, on made-up candidates."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from fedfault.scheduling import Candidates, Selection
from fedfault.testing.cohorts import choose
from fedfault.testing.rules import Subject, expect, expect_chosen_by_name, expect_line, rule
from fedfault.types.algorithm import TRAITS

KIND = "selection"
CASES = 40


def draw_candidates(seed: int) -> Candidates:
    """Up to nine candidates in random order, some of whom were never asked, with ties, and with a loss of zero."""
    g = np.random.default_rng(seed)
    n = int(g.integers(1, 10))
    last = g.integers(0, 5, size=n)
    loss = np.where(last > 0, g.integers(0, 4, size=n).astype(float), np.nan)
    return Candidates(
        round=5,
        clients=g.permutation(12)[:n],
        size=g.integers(1, 40, size=n).astype(float),
        loss=loss,
        last=last,
        seconds=g.uniform(1, 9, size=n),
        wanted=int(g.integers(1, 8)),
    )


def _permute(c: Candidates, order: np.ndarray) -> Candidates:
    return replace(c, **{name: getattr(c, name)[order] for name in ("clients", "size", "loss", "last", "seconds")})


@rule(KIND)
def as_many_are_chosen_as_are_wanted_and_none_twice(subject: Subject) -> None:
    """As many clients as are wanted are chosen, or all who are there, and none of them twice."""
    selection = subject.build()
    for seed in range(CASES):
        c = draw_candidates(seed)
        got = choose(selection, c, seed)
        expect(len(got) == min(c.wanted, len(c.clients)), f"{len(got)} of {len(c.clients)}, with {c.wanted} wanted")
        expect(len(set(got)) == len(got), f"{got}")


@rule(KIND)
def before_anybody_reports_there_is_an_answer(subject: Subject) -> None:
    """In the first round, where no loss is known, clients are chosen all the same."""
    selection = subject.build()
    for seed in range(CASES):
        c = draw_candidates(seed)
        n = len(c.clients)
        cold = replace(c, round=1, loss=np.full(n, np.nan), last=np.zeros(n, dtype=np.int64))
        expect(len(choose(selection, cold, seed)) == min(c.wanted, n), "too few are chosen")


@rule(KIND)
def nobody_there_is_an_answer_too(subject: Subject) -> None:
    """Where nobody is there, nobody is chosen."""
    nobody = _permute(draw_candidates(1), np.array([], dtype=np.int64))
    expect(choose(subject.build(), nobody) == [], "somebody is chosen")


@rule(KIND)
def the_same_twice_is_the_same(subject: Subject) -> None:
    """The same candidates and the same stream give the same choice."""
    for seed in range(CASES):
        first, again = (choose(subject.build(), draw_candidates(seed), seed) for _ in range(2))
        expect(first == again, f"{first} and {again}")


@rule(KIND)
def units_do_not_matter(subject: Subject) -> None:
    """Losses in bits or in nats, and seconds in hours, give the same choice."""
    selection = subject.build()
    for seed in range(CASES):
        c = draw_candidates(seed)
        for unit in (1024.0, 2.0**-12):  # a power of two is exact
            for other in (replace(c, loss=c.loss * unit), replace(c, seconds=c.seconds * unit)):
                one, two = choose(selection, c, seed), choose(selection, other, seed)
                expect(one == two, f"{one} became {two}")


@rule(KIND)
def what_it_does_not_need_does_not_matter(subject: Subject) -> None:
    """Numbers that are not in `needs` may be absent, and change nothing."""
    selection: Selection = subject.build()
    for seed in range(CASES):
        c = draw_candidates(seed)
        unknown, less = np.full(len(c.clients), np.nan), c
        less = less if "size" in selection.needs else replace(less, size=unknown)
        less = less if "loss" in selection.needs else replace(less, loss=unknown)
        less = less if "seconds" in selection.needs else replace(less, seconds=unknown)
        one, two = choose(selection, c, seed), choose(selection, less, seed)
        expect(one == two, f"{one} became {two}")


@rule(KIND)
def what_it_is_given_stays_as_it_was(subject: Subject) -> None:
    """The candidates are not changed in place."""
    c = draw_candidates(7)
    before = repr(copy.deepcopy(c))
    choose(subject.build(), c)
    expect(repr(c) == before, "they are not what they were")


@rule(KIND)
def chances_are_those_with_which_it_draws(subject: Subject) -> None:
    """Where it says with which chance each is drawn, they are drawn that often; where it does not, it needs no weights."""
    selection: Selection = subject.build()
    c = replace(draw_candidates(3), wanted=3)
    chances = selection.inclusion(c.size, c.wanted)
    if chances is None:
        return
    g, count, times = np.random.default_rng(0), np.zeros(len(c.clients)), 2000
    for _ in range(times):
        order = g.permutation(len(c.clients))
        count[order[selection.choose(_permute(c, order), g)]] += 1
    expect(np.abs(count / times - chances).max() < 0.05, f"{count / times} instead of {chances}")


@rule(KIND)
def it_says_by_what_it_selects(subject: Subject) -> None:
    """`needs` and `traits` have words that exist, and whoever selects by losses draws by reports."""
    selection: Selection = subject.build()
    expect(selection.needs <= {"size", "loss", "seconds"}, f"needs {sorted(selection.needs)}")
    expect(selection.traits <= set(TRAITS), f"traits {sorted(selection.traits)}")
    reported = bool(selection.needs & {"loss", "seconds"})
    expect(not reported or "draws by reports" in selection.traits, "it does not say that it draws by reports")


@rule(KIND)
def its_options_have_defaults(subject: Subject) -> None:
    """It can be chosen by its name alone, and the first line of its docstring has 20 to 120 characters."""
    expect_line(subject.builder)
    expect_chosen_by_name(subject.builder)
