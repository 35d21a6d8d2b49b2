"""Who is chosen, how often, and what of it outlives a round."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from devices import hardware
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.selection.loss import loss
from fedfault.selection.oort import oort
from fedfault.selection.power_of_choice import power_of_choice
from fedfault.selection.uniform import uniform
from fedfault.testing.cohorts import candidates, choose
from fedfault.testing.toys import Quadratic, federation
from scripted import HALVES, fed_of

N, M, TIMES = 8, 2, 3000


def count_choices(selection, **facts) -> np.ndarray:
    """The share of draws in which each of N clients is among M."""
    g, count = np.random.default_rng(0), np.zeros(N)
    for seed in range(TIMES):
        order = g.permutation(N)
        c = candidates(order, wanted=M, **{key: np.array(values)[order] for key, values in facts.items()})
        count[choose(selection, c, seed)] += 1
    return count / TIMES


@pytest.mark.slow
def test_uniform_chooses_all_alike_and_loss_the_highest_alone():
    losses = [1.0, 5.0, 2.0, 3.0, 4.0, 8.0, 6.0, 7.0]
    assert count_choices(uniform(), loss=losses) == pytest.approx(M / N, abs=0.03)
    assert count_choices(loss(), loss=losses).tolist() == [0, 0, 0, 0, 0, 1, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 4, 8])
def test_power_of_choice_includes_clients_as_combinatorics_has_it(d):
    """The one with j losses above its own is in if it is a candidate and fewer than m of those j are."""
    chance = [sum(comb(j, i) * comb(N - 1 - j, d - 1 - i) for i in range(M)) / comb(N, d) for j in range(N)]
    found = count_choices(power_of_choice(candidates=d), loss=[float(N - j) for j in range(N)])
    assert found == pytest.approx(chance, abs=0.03)


def test_power_of_choice_has_twice_as_many_candidates_as_it_is_to_choose_if_nobody_says_how_many():
    c = candidates(loss=[1.0, 2.0, 3.0, 4.0, 9.0], wanted=2)
    assert choose(power_of_choice(), c) == [3, 2]
    assert choose(power_of_choice(candidates=1), c) == [1, 0]  # fewer than are wanted would be no choice


def test_who_was_never_asked_comes_before_the_highest_loss():
    assert choose(loss(), candidates(loss=[None, 9.0, None, 8.0], wanted=3)) == [0, 2, 1]


@pytest.mark.slow
def test_oort_explores_by_its_share_and_the_fast_more():
    """Of two places, 0.5 * 1 explore: one new client of two, who are in by 1 / seconds: 3 to 1."""
    known = {"loss": [1.0] * 6 + [np.nan] * 2, "seconds": [1.0] * 6 + [1.0, 3.0]}
    rule, count = oort(explore=0.5, decay=1.0, explore_least=0.0), np.zeros(N)
    for seed in range(TIMES):
        c = candidates(loss=[None if np.isnan(v) else v for v in known["loss"]], seconds=known["seconds"], wanted=M)
        got = choose(rule, c, seed)
        assert sum(k >= 6 for k in got) == 1
        count[got] += 1
    assert count[6:] / TIMES == pytest.approx([0.75, 0.25], abs=0.03)


def test_oort_prefers_by_size_and_loss_and_pays_for_seconds_above_the_limit():
    rule = oort(explore=0.0, explore_least=0.0, alpha=1.0, preferred=0.5)
    even = {"loss": [1.0, 1.0, 1.0], "seconds": [1.0, 1.0, 1.0], "wanted": 1, "round": 1}
    assert choose(rule, candidates(size=[1, 9, 1], **even)) == [1]
    assert choose(rule, candidates(**{**even, "loss": [1.0, 1.0, 9.0]})) == [2]
    assert choose(rule, candidates(**{**even, "loss": [3.0, 1.0, 9.0], "seconds": [1.0, 1.0, 10.0]})) == [0]


def test_oort_gives_a_bonus_to_who_was_long_away():
    """sqrt(0.1 ln 100 / 1) = 0.68 for who was last there in round 1; 0.07 in round 99."""
    c = candidates(loss=[1.0, 0.9], seconds=[1.0, 1.0], wanted=1, round=100)
    c.last[:] = [99, 1]
    assert choose(oort(explore=0.0, explore_least=0.0), c) == [1]


def of_losses(**changes):
    """Eight clients with optima 0 ... 7, which all start at 3: the far ones have the higher loss."""
    task = Quadratic([[1.0]] * N, [[float(k)] for k in range(N)], [4] * N)
    return federation(task, cohort_size=M, num_rounds=12, work={"steps": 1, "lr": 0.01}, selection=loss(), **changes)


def test_a_run_asks_everybody_once_and_then_the_highest_reported_losses():
    records = [record for _, record in rounds(of_losses(), begin(of_losses()))][1:]
    cohorts = [[c.client for c in record.clients] for record in records]
    assert sorted(k for cohort in cohorts[: N // M] for k in cohort) == list(range(N))
    assert cohorts[N // M] == [0, 7]  # |0 - 3| and |7 - 3| are the largest


def test_a_run_that_goes_on_from_a_state_draws_as_the_whole_one():
    fed = of_losses()
    whole = list(rounds(fed, begin(fed)))
    middle = whole[6][0]
    assert middle.plans["selection"]["last"]
    assert len(middle.plans["selection"]["loss"]) == N
    again = list(rounds(fed, middle))
    assert [r.clients for _, r in again] == [r.clients for _, r in whole[7:]]


def test_a_loss_that_is_no_number_is_not_remembered():
    task = Quadratic([[1.0]] * 3, [[0.0], [float("nan")], [2.0]], [4] * 3)
    fed = federation(task, cohort_size=3, num_rounds=1, selection=build("selection", "power_of_choice"))
    last = [state for state, _ in rounds(fed, begin(fed))][-1]
    assert last.plans["selection"]["last"] == [1.0, 0.0, 1.0]
    assert last.plans["selection"]["asked"] == [1.0, 1.0, 1.0]
    known = fed.list_candidates(2, np.arange(3), 1, last.plans["selection"])
    assert known.loss[1] == np.median(known.loss[[0, 2]])
    assert known.last.tolist() == [1, 1, 1]


RULES = {"loss": {}, "power_of_choice": {"candidates": 6}, "oort": {}}
LATE = hardware(*HALVES, deadline=5.0, policy="drop")


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_clients_that_never_answer_do_not_take_all_places_for_ever(name):
    """Three of six clients are dropped at every deadline: as many as, and more than, there are places."""
    fed = fed_of(LATE, num_rounds=16, cohort_size=2, selection=build("selection", name, **RULES[name]))
    (*_, (state, last)) = found = list(rounds(fed, begin(fed)))
    assert {turn.client for _, r in found for turn in r.turns} == set(range(6))  # all are tried
    assert sum(len(r.clients) for _, r in found[-8:]) >= 6
    assert last.scores["validation"].loss < 0.5 * found[0][1].scores["validation"].loss
    assert [k for k in range(6) if state.plans["selection"]["last"][k]] == [0, 1, 2]


def test_a_client_that_falls_silent_is_not_asked_for_ever_by_the_high_loss_that_it_once_had():
    fed = of_losses()
    reports = {"loss": [9.0, 1.0, 3.0, 2.0] + [0.0] * 4, "last": [1.0] * 4 + [0.0] * 4}
    there = np.arange(N)
    unknown = [float("nan")] * 4
    once = fed.list_candidates(5, there, M, {**reports, "asked": [1.0] * 4 + [0.0] * 4})
    assert once.loss.tolist() == pytest.approx([9, 1, 3, 2, *unknown], nan_ok=True)
    later = fed.list_candidates(5, there, M, {**reports, "asked": [4.0, 1.0, 1.0, 1.0, 3.0] + [0.0] * 3})
    assert later.loss.tolist() == pytest.approx([2, 1, 3, 2, 2, *unknown[1:]], nan_ok=True)
    assert later.last.tolist() == [4, 1, 1, 1, 3, 0, 0, 0]
    nobody = fed.list_candidates(5, there, M, {"loss": [0.0] * N, "last": [0.0] * N, "asked": [1.0] * 2 + [0.0] * 6})
    assert nobody.loss.tolist() == pytest.approx([0, 0, *unknown, *unknown[:2]], nan_ok=True)


def test_what_a_checkpoint_from_before_remembers_is_who_reported():
    """It has no `asked`: who reported was asked then, and nobody else."""
    fed, old = replace(of_losses(), num_rounds=1), {"loss": [5.0] + [0.0] * 7, "last": [1.0] + [0.0] * 7}
    assert fed.list_candidates(2, np.arange(N), M, old).last.tolist() == [1] + [0] * 7
    state = replace(begin(fed), plans={"selection": old})
    (*_, (after, record)) = rounds(fed, state)
    drawn = {0, *(c.client for c in record.clients)}
    assert len(drawn) == 3
    assert after.plans["selection"]["asked"] == [float(k in drawn) for k in range(N)]


@pytest.mark.slow
def test_who_was_asked_in_vain_outlives_a_checkpoint():
    fed = fed_of(LATE, num_rounds=10, cohort_size=2, selection=loss())
    whole = list(rounds(fed, begin(fed)))
    for middle in (1, 4):
        again = list(rounds(fed, whole[middle][0]))
        assert [r.turns for _, r in again] == [r.turns for _, r in whole[middle + 1 :]]
