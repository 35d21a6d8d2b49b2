"""`lite` and `lite_star`: I-T1 to I-T8, and for every failure of the public version a test that catches it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.hardware.clock import Fleet, Line, Load, Tier, apply_deadline, compute_model_lines, compute_model_times
from fedfault.registry import build
from fedfault.scheduling import Report, Situation
from fedfault.testing.cohorts import CLIENTS, history, permute, remember, situation
from seeded import seeded, seeds

LITE, STAR = build("scheduler", "lite"), build("scheduler", "lite_star", explore=0.0)
ORIGINAL = build("scheduler", "lite", units="original")
BOTH = pytest.mark.parametrize("scheduler", [LITE, STAR], ids=["lite", "lite_star"])


def cohort(n: int, budget: int, low: int = 2, high: int = 16, a=None, **changes) -> Situation:
    """n alike."""
    a = np.ones(n) if a is None else np.array(a, dtype=float)
    s = Situation(2, 0, np.arange(n), np.full(n, low), np.full(n, high), budget, a=a, b=np.zeros(n))
    return replace(s, **changes)


def report(client: int, gain: float | None = 0.1, throughput: float = 10.0, **more) -> Report:
    return Report(client, rank=8, seconds=1000 / throughput, tokens=1000, gain=gain, **more)


@pytest.mark.slow
@BOTH
@seeded
@given(seeds)
def test_the_budget_is_met_within_bounds(scheduler, seed):
    """I-T1."""
    s = situation(seed)
    ranks = np.array(scheduler.assign(remember(scheduler, history(seed)), s).ranks)
    assert ranks.sum() == s.budget
    assert ((s.low <= ranks) & (ranks <= s.high)).all()


@pytest.mark.slow
@BOTH
@seeded
@given(seeds, st.sampled_from([1e-3, 60.0]), st.sampled_from([np.log2(np.e), 1000.0]))
def test_neither_seconds_nor_nats_matter(scheduler, seed, seconds, gain):
    """I-T2 (failure 1): throughput is 10 to 1000 a second and gain 0 to 1, so their sum depends on the units."""
    s = situation(seed)
    other = replace(s, a=s.a * seconds, b=s.b * seconds)
    one = scheduler.assign(remember(scheduler, history(seed)), s)
    assert scheduler.assign(remember(scheduler, history(seed, seconds=seconds, gain=gain)), other) == one


@pytest.mark.parametrize(
    ("scheduler", "a_second", "a_millisecond"), [(ORIGINAL, (14, 2), (2, 14)), (LITE, (9, 7), (9, 7))]
)
def test_the_original_units_turn_the_answer_round(scheduler, a_second, a_millisecond):
    """Gains 0 and 1. 100 and 10 tokens a second: scores 40 and 4.6, so (14.4, 1.6); a millisecond: 0.04 and 0.604.
    Over the median, between 1/4 and 4: 0.6 / 4 + 0.4 * 100 / 55 and 0.6 + 0.4 / 4, so (8.9, 7.1) in any unit."""
    for throughputs, expected in (((100, 10), a_second), ((0.1, 0.01), a_millisecond)):
        reports = [report(i, gain=float(i), throughput=throughputs[i]) for i in range(2)]
        assert scheduler.assign(remember(scheduler, [reports]), cohort(2, 16)).ranks == expected


@pytest.mark.slow
@BOTH
@seeded
@given(seeds)
def test_exceeding_the_deadline_never_raises_a_rank(scheduler, seed):
    """I-T4."""
    past, s = history(seed), situation(seed)
    before = dict(zip(s.clients.tolist(), scheduler.assign(remember(scheduler, past), s).ranks, strict=True))
    for i, one in enumerate(past[-1]):
        late = [*past[:-1], [*past[-1][:i], replace(one, exceeded=True), *past[-1][i + 1 :]]]
        after = dict(zip(s.clients.tolist(), scheduler.assign(remember(scheduler, late), s).ranks, strict=True))
        assert after.get(one.client, 0) <= before.get(one.client, 0)


@pytest.mark.slow
@BOTH
@seeded
@given(seeds)
def test_equal_clients_differ_by_one_unit_at_most(scheduler, seed):
    """I-T5."""
    s = situation(seed, equal_bounds=True)
    first = history(seed)[0][0]
    past = [[replace(first, client=i) for i in range(CLIENTS)]] * 3
    s = replace(s, a=np.full_like(s.a, s.a[0]), b=np.full_like(s.b, s.b[0]))
    assert np.ptp(scheduler.assign(remember(scheduler, past), s).ranks) <= 1


@pytest.mark.slow
@BOTH
@seeded
@given(seeds)
def test_the_first_round_is_uniform(scheduler, seed):
    """I-T6."""
    assert np.ptp(scheduler.assign(scheduler.init(CLIENTS), situation(seed, equal_bounds=True)).ranks) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [LITE, ORIGINAL, STAR], ids=["lite", "original", "lite_star"])
@seeded
@given(seeds, st.sampled_from([0.0, -1.0]))
def test_gains_that_are_all_bad_are_defined(scheduler, seed, gain):
    """I-T7: the ranks are those of throughput alone, which does not care whether nobody gained or all lost."""
    past = [[replace(r, gain=gain if r.gain is not None else None) for r in of_round] for of_round in history(seed)]
    zero = [[replace(r, gain=None if r.gain is None else 0.0) for r in of_round] for of_round in past]
    s = situation(seed)
    assert scheduler.assign(remember(scheduler, past), s) == scheduler.assign(remember(scheduler, zero), s)


@pytest.mark.slow
@BOTH
@seeded
@given(seeds)
def test_the_order_of_clients_does_not_matter(scheduler, seed):
    """I-T8."""
    s, memory = situation(seed), remember(scheduler, history(seed))
    order = np.random.default_rng(seed).permutation(len(s.clients))
    ranks = scheduler.assign(memory, s).ranks
    assert [ranks[i] for i in order] == list(scheduler.assign(memory, permute(s, order)).ranks)


@BOTH
def test_renamed_clients_get_the_same_ranks(scheduler):
    """I-T8 with the memory renamed too; gains differ, so no tie goes by id."""
    gains = [0.05, 0.1, 0.2, 0.35]
    one = remember(scheduler, [[report(i, gain) for i, gain in enumerate(gains)]])
    other = remember(scheduler, [[report(3 - i, gain) for i, gain in enumerate(gains)]])
    s = cohort(4, 32)
    assert scheduler.assign(one, s).ranks == scheduler.assign(other, s).ranks[::-1]


@BOTH
def test_who_gains_more_gets_more(scheduler):
    memory = remember(scheduler, [[report(0, 0.4), report(1, 0.1), report(2, 0.2)]])
    first, second, third = scheduler.assign(memory, cohort(3, 24)).ranks
    assert first > third > second


def test_who_is_faster_gets_more():
    reports = [report(i, throughput=throughput) for i, throughput in enumerate((40.0, 10.0, 20.0))]
    first, second, third = LITE.assign(remember(LITE, [reports]), cohort(3, 24)).ranks
    assert first > third > second
    slow = cohort(3, 24, a=[1 / 40, 1 / 10, 1 / 20])
    assert STAR.assign(remember(STAR, [reports]), slow).ranks == (first, second, third)


def test_scores_by_hand():
    """Gains 0.1, 0.2, 0.4 over 0.2 and speeds 10, 30, 20 over 20: 0.6 * 0.5 + 0.4 * 0.5, 0.6 + 0.6, 1.2 + 0.4; the last
    was late: 0.8. Their sum is 2.5, and 25 units are 5, 12 and 8."""
    reports = [report(0, 0.1, 10), report(1, 0.2, 30), report(2, 0.4, 20, exceeded=True)]
    assert LITE.assign(remember(LITE, [reports]), cohort(3, 25)).ranks == (5, 12, 8)
    s = cohort(3, 25, a=[1 / 10, 1 / 30, 1 / 20])
    assert STAR.assign(remember(STAR, [reports]), s).ranks == (5, 12, 8)


@BOTH
def test_noise_around_zero_is_no_gain(scheduler):
    """Failure 2: cut at 0 before averaging, +1 and -1 in turn would be a gain of a half; client 1 really gains 0.3."""
    past = [[report(0, (-1.0) ** t), report(1, 0.3), report(2, 0.3)] for t in range(6)]
    first, second, third = scheduler.assign(remember(scheduler, past), cohort(3, 24)).ranks
    assert first < third <= second <= third + 1


def test_more_rank_does_not_make_a_client_slow_in_the_next_round():
    """Failure 4: throughput is lower at a higher rank, and ranks oscillate; `lite_star` looks at the time without rank."""
    s = cohort(2, 16)
    slow = [[report(0, throughput=5.0), report(1, throughput=20.0)]]
    fast = [[report(0, throughput=20.0), report(1, throughput=5.0)]]
    assert STAR.assign(remember(STAR, slow), s) == STAR.assign(remember(STAR, fast), s)
    assert LITE.assign(remember(LITE, slow), s) != LITE.assign(remember(LITE, fast), s)


@pytest.mark.parametrize("throughput", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("scheduler", [LITE, ORIGINAL, STAR], ids=["lite", "original", "lite_star"])
def test_a_new_client_counts_as_the_median(scheduler, throughput):
    """Failure 5: a score of 1 beside scores of 0.04 or 400."""
    past = [[report(i, gain, throughput) for i, gain in enumerate((0.1, 0.2, 0.3))]]
    ranks = scheduler.assign(remember(scheduler, past), cohort(4, 32)).ranks
    assert ranks[3] == ranks[1]


@BOTH
def test_the_first_observation_counts_in_full(scheduler):
    """Failure 5: an average that starts at 0 would take one round of 0.3 for 0.09, far below many rounds of 0.2."""
    past = [[report(1, 0.2), report(2, 0.2)]] * 6 + [[report(0, 0.3), report(1, 0.2), report(2, 0.2)]]
    ranks = scheduler.assign(remember(scheduler, past), cohort(3, 24)).ranks
    assert ranks[0] > ranks[1] == ranks[2]


@BOTH
def test_old_reports_are_not_counted_again(scheduler):
    """Failure 6: a client that is not drawn keeps its averages."""
    once = remember(scheduler, [[report(0, 0.1), report(1, 0.5)], [report(0, 0.3)]])
    again = remember(scheduler, [[report(0, 0.1), report(1, 0.5)], [report(0, 0.3)], [], []])
    assert again["gain"] == once["gain"]
    assert again["gain_count"] == [2.0, 1.0] + [0.0] * (CLIENTS - 2)


def test_old_news_fades_to_the_median():
    """Failure 6: 0.1, 0.2 and 0.4 after 50 rounds in which only the middle one reported."""
    past = [[report(0, 0.1), report(1, 0.2), report(2, 0.4)]]
    later = past + [[report(1, 0.2)]] * 50
    assert np.ptp(STAR.assign(remember(STAR, past), cohort(3, 24)).ranks) > 4
    assert np.ptp(STAR.assign(remember(STAR, later), cohort(3, 24)).ranks) <= 1


@BOTH
def test_dropped_clients_lose_rank(scheduler):
    """Failure 7, through the deadline itself: a client that is dropped must be heard of, or the penalty is dead."""
    fleet = Fleet.of([Tier("fast", 3), Tier("slow", 1, compute_factor=0.25)], 4)
    load = Load(tokens=np.full(4, 1000.0), token_seconds=Line(0.01, 0.001), down=Line(0, 0), up=Line(0, 0))
    a, b = compute_model_lines(fleet, load)
    memory, ranks = scheduler.init(4), []
    for round in range(1, 4):
        s = Situation(round, 0, np.arange(4), np.full(4, 2), np.full(4, 16), 32, a=a, b=b)
        given = scheduler.assign(memory, s)
        ranks.append(given.ranks)
        spent = compute_model_times(fleet, load, np.array(given.ranks))
        outcome = apply_deadline(spent, np.full(4, 10), deadline=45.0, policy="drop")
        memory = scheduler.observe(
            memory,
            [
                Report(
                    i,
                    given.ranks[i],
                    spent.total[i],
                    1000,
                    bool(outcome.exceeded[i]),
                    gain=None if outcome.dropped[i] else 0.1,
                )
                for i in range(4)
            ],
        )
    assert ranks[0] == (8, 8, 8, 8)  # (10 + 8) s; 72 s for the slow one, which is dropped
    assert ranks[1][3] <= 5
    assert sum(ranks[1]) == sum(ranks[2]) == 32
    assert ranks[2][3] <= ranks[1][3]


@pytest.mark.parametrize(
    ("late", "rank"),
    [("", 16), ("1", 8), ("11", 4), ("111", 2), ("1111", 2), ("10", 8), ("100", 8), ("1000", 16), ("0110", 4)],
)
def test_violations_count_for_three_rounds_and_multiply(late, rank):
    """Nine clients share 144 units: 144 p / (8 + p) for p = 1, 1/2, 1/4, 1/8 is 16, 8.5, 4.4, 2.2."""
    past = [[report(0, exceeded=x == "1"), *(report(i) for i in range(1, 9))] for x in late]
    assert STAR.assign(remember(STAR, past), cohort(9, 144, low=1, high=1000)).ranks[0] == rank


def test_a_deadline_is_a_cap_for_lite_star():
    """Failure 7: (10 - 1) / 2 leaves rank 4."""
    s = replace(cohort(3, 24), b=np.array([2.0, 0.1, 0.1]), deadline=10.0)
    assert STAR.assign(remember(STAR, [[report(0, 1.0), report(1, 0.1), report(2, 0.1)]]), s).ranks[0] == 4


@pytest.mark.slow
def test_exploration_is_a_share_of_the_rounds_and_says_so():
    """Failure 10."""
    memory = remember(STAR, [[report(0, 0.5), report(1, 0.01)]])
    often = build("scheduler", "lite_star", explore=0.25)
    explored = 0
    for round in range(400):
        given = often.assign(memory, cohort(2, 16, round=round))
        assert given.ranks == ((8, 8) if given.events else STAR.assign(memory, cohort(2, 16)).ranks)
        explored += bool(given.events)
    assert 70 <= explored <= 130  # 100 are expected, with a standard deviation of 9
    always = build("scheduler", "lite_star", explore=1.0)
    assert always.assign(memory, cohort(2, 16)).ranks == (8, 8)


@BOTH
def test_late_clients_lose_rank_also_where_no_gain_was_measured(scheduler):
    """Scores 1/2, 1 and 1 of 25 units."""
    past = [[report(0, None, exceeded=True), report(1, None), report(2, None)]]
    assert scheduler.assign(remember(scheduler, past), cohort(3, 25)).ranks == (5, 10, 10)


def test_no_score_is_below_a_twentieth():
    """0.1 * (1/4, 1, 1) is 0.025, 0.1 and 0.1: the first counts as 0.05, and 25 units are 5, 10 and 10."""
    scheduler = build("scheduler", "lite_star", gain_weight=0.1, throughput_weight=0.0, explore=0.0)
    past = [[report(0, 0.0), report(1, 0.1), report(2, 0.1)]]
    assert scheduler.assign(remember(scheduler, past), cohort(3, 25)).ranks == (5, 10, 10)


def test_weights_of_zero_are_uniform():
    scheduler = build("scheduler", "lite", gain_weight=0.0, throughput_weight=0.0)
    past = [[report(0, 0.5), report(1, 0.1)]]
    assert scheduler.assign(remember(scheduler, past), cohort(2, 16)).ranks == (8, 8)
