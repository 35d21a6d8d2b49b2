"""Hardware, simulated time and deadlines, against numbers by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.allocation.bounds import largest_rank_within
from fedfault.errors import UserError
from fedfault.hardware.clock import (
    Fleet,
    Line,
    Load,
    Tier,
    Times,
    apply_deadline,
    check_deadline,
    check_memory,
    check_ranks,
    check_tiers,
    compute_model_lines,
    compute_model_times,
    rank_caps,
    simulate_times,
    token_cost,
)
from seeded import seeded, seeds

TIERS = [
    Tier("gpu_fast", 2, memory_mb=24_000, bandwidth_up_mbps=80, bandwidth_down_mbps=800),
    Tier("gpu_medium", 1, compute_factor=0.5, memory_mb=900, bandwidth_up_mbps=8, bandwidth_down_mbps=16),
    Tier("cpu_slow", 1, compute_factor=0.25),
]
FLEET = Fleet.of(TIERS, 4)
# 2 s and 0.5 s a rank at speed 1 for 100 tokens; 1 MB and 0.1 MB a rank down, 2 MB and 0.2 MB a rank up
LOAD = Load(np.full(4, 100.0), Line(0.02, 0.005), down=Line(1e6, 1e5), up=Line(2e6, 2e5))


def fleets(seed: int) -> tuple[Fleet, Load, np.ndarray]:
    """Random hardware, work and ranks."""
    g = np.random.default_rng(seed)
    tiers = [
        Tier(f"tier {i}", int(g.integers(1, 4)), *g.uniform(0.1, 4, size=4).tolist()) for i in range(g.integers(1, 4))
    ]
    n = sum(tier.count for tier in tiers)
    costs = [Line(*g.uniform(0, 1, size=2).tolist()) for _ in range(3)]
    return Fleet.of(tiers, n), Load(g.integers(0, 50, size=n) * 1.0, *costs), g.integers(1, 17, size=n)


def test_clients_take_the_tiers_in_order():
    assert FLEET.tier == ("gpu_fast", "gpu_fast", "gpu_medium", "cpu_slow")
    assert FLEET.compute_factor.tolist() == [1, 1, 0.5, 0.25]
    assert FLEET.memory_mb.tolist() == [24_000, 24_000, 900, np.inf]


def test_time_is_work_over_speed_plus_bytes_over_bandwidth():
    """Rank 4: (2 + 2) s of work, 1.4 MB = 11.2 Mbit down, 2.8 MB = 22.4 Mbit up; no limits for the slow tier."""
    spent = compute_model_times(FLEET, LOAD, np.full(4, 4))
    np.testing.assert_allclose(spent.down, [0.014, 0.014, 0.7, 0])
    np.testing.assert_allclose(spent.compute, [4, 4, 8, 16])
    np.testing.assert_allclose(spent.up, [0.28, 0.28, 2.8, 0])
    np.testing.assert_allclose(spent.total, [4.294, 4.294, 11.5, 16])


def test_measured_seconds_are_divided_by_speed_and_wires_are_not():
    two = FLEET.select_clients(np.array([3, 2]))
    spent = simulate_times(two, np.array([1.0, 3.0]), bytes_down=np.array([0.0, 2e6]), bytes_up=np.array([0.0, 1e6]))
    assert spent.compute.tolist() == [4, 6]
    assert spent.down.tolist() == [0, 1]
    assert spent.up.tolist() == [0, 1]


def test_a_and_b_by_hand():
    a, b = compute_model_lines(FLEET, LOAD)
    np.testing.assert_allclose(a, [2 + 0.01 + 0.2, 2.21, 4 + 0.5 + 2, 8])
    np.testing.assert_allclose(b, [0.5 + 0.001 + 0.02, 0.521, 1 + 0.05 + 0.2, 2])


@pytest.mark.slow
@seeded
@given(seeds)
def test_modelled_time_is_a_plus_b_r(seed):
    fleet, load, ranks = fleets(seed)
    a, b = compute_model_lines(fleet, load)
    np.testing.assert_allclose(a + b * ranks, compute_model_times(fleet, load, ranks).total, rtol=1e-12)


def test_a_bandwidth_of_the_moment_replaces_that_of_the_tier():
    now = FLEET.select_clients(np.array([2, 0, 3]), bandwidth_mbps=np.array([4.0, np.nan, 1.0]))
    assert now.tier == ("gpu_medium", "gpu_fast", "cpu_slow")
    assert now.up_mbps.tolist() == [4, 80, 1]
    assert now.down_mbps.tolist() == [4, 800, 1]


def test_the_cost_of_a_token_counts_operations():
    """A layer of 100 x 50 and an adapter on it: 4 * 5000 and 6 * 150 operations, at 1000 a second."""
    assert token_cost(frozen=5000, per_rank=150, flops=1000) == Line(20, 0.9)
    assert token_cost(5000, 150, 1000, full=2000, again=3000, adapters_again=1) == Line(20 + 12 + 6, 1.2)


@pytest.mark.parametrize(("d", "share"), [(128, 0.19), (768, 0.031)])
def test_rank_8_adds_little_to_the_work_of_a_square_layer(d, share):
    line = token_cost(frozen=d * d, per_rank=2 * d, flops=1e9)
    assert 8 * line.per_rank / line.fixed == pytest.approx(share, abs=0.003)


def test_memory_caps_the_rank():
    """500 MB and 100 a rank: 900 MB hold rank 4; a tier without a limit holds r_max; 400 MB hold nothing."""
    assert rank_caps(FLEET, Line(500, 100), r_max=16).tolist() == [16, 16, 4, 16]
    assert rank_caps(FLEET, Line(500, 0), r_max=16).tolist() == [16, 16, 16, 16]
    assert rank_caps(FLEET, Line(901, 100), r_max=16).tolist() == [16, 16, -1, 16]
    assert rank_caps(FLEET, Line(900, 100), r_max=16).tolist() == [16, 16, 0, 16]


# down, compute, up; done at 4, 11 and 9.5 s
SPENT = Times(np.array([1.0, 2.0, 8.0]), np.array([2.0, 8.0, 1.0]), np.array([1.0, 1.0, 0.5]))
STEPS = np.array([10, 10, 10])


def test_without_a_deadline_everybody_finishes():
    done = apply_deadline(SPENT, STEPS, None, "drop")
    assert done.steps.tolist() == [10, 10, 10]
    assert done.round_seconds == 11
    assert done.compliance == 1
    assert not done.dropped.any()


def test_wait_takes_as_long_as_the_slowest_and_says_who_was_late():
    done = apply_deadline(SPENT, STEPS, 9.0, "wait")
    assert done.steps.tolist() == [10, 10, 10]
    assert done.round_seconds == 11
    assert done.exceeded.tolist() == [False, True, True]
    assert done.compliance == pytest.approx(1 / 3)
    assert not done.dropped.any()


def test_drop_ends_the_round_at_the_deadline():
    done = apply_deadline(SPENT, STEPS, 9.0, "drop")
    assert done.steps.tolist() == [10, 0, 0]
    assert done.dropped.tolist() == done.exceeded.tolist() == [False, True, True]
    assert done.seconds.tolist() == [4, 9, 9]
    assert done.round_seconds == 9


def test_a_round_that_all_make_ends_before_the_deadline():
    done = apply_deadline(SPENT, STEPS, 60.0, "drop")
    assert done.round_seconds == 11
    assert done.compliance == 1


def test_use_partial_counts_the_steps_that_are_done_in_time_to_be_sent():
    """Client 1 has 9 - 2 - 1 = 6 s for steps of 0.8 s: 7, sent at 2 + 5.6 + 1. Client 2 has 0.5 s for steps of 0.1 s."""
    done = apply_deadline(SPENT, STEPS, 9.0, "use_partial")
    assert done.steps.tolist() == [10, 7, 5]
    np.testing.assert_allclose(done.seconds, [4, 8.6, 9])
    assert done.exceeded.tolist() == [False, True, True]
    assert not done.dropped.any()
    assert done.round_seconds == pytest.approx(9)


def test_use_partial_drops_who_gets_no_step_done():
    """Client 2 would have 0.05 s for a step of 0.1 s; at 8 s it cannot even send."""
    for deadline in (8.55, 8.0):
        done = apply_deadline(SPENT, STEPS, deadline, "use_partial")
        assert done.steps[2] == 0
        assert done.dropped.tolist() == [False, False, True]
        assert done.seconds[2] == done.round_seconds == deadline


def test_nobody_trained_is_a_round_of_no_time():
    none = Times(np.zeros(0), np.zeros(0), np.zeros(0))
    done = apply_deadline(none, np.zeros(0, dtype=int), 9.0, "drop")
    assert (done.round_seconds, done.compliance) == (0.0, 1.0)


@pytest.mark.slow
@seeded
@given(seeds, st.sampled_from(["drop", "wait", "use_partial"]), st.floats(0.01, 30))
def test_deadlines_are_kept_and_partial_work_is_as_much_as_fits(seed, policy, deadline):
    fleet, load, ranks = fleets(seed)
    spent = compute_model_times(fleet, load, ranks)
    steps = np.random.default_rng(seed).integers(1, 20, size=len(ranks))
    done = apply_deadline(spent, steps, deadline, policy)
    nearly = deadline * (1 + 1e-6)
    assert ((done.steps == steps) | done.exceeded).all()
    assert (done.dropped <= done.exceeded).all()
    if policy == "wait":
        np.testing.assert_array_equal(done.seconds, spent.total)
        return
    assert done.round_seconds <= nearly
    assert (done.steps[done.exceeded] < steps[done.exceeded]).all()
    assert ((done.steps == 0) == done.dropped).all()
    if policy == "use_partial":
        one_more = spent.down + spent.compute * (done.steps + 1) / steps + spent.up
        assert (one_more[done.exceeded] > deadline * (1 - 1e-6)).all()


@pytest.mark.slow
@seeded
@given(seeds, st.floats(0.1, 30))
def test_a_rank_planned_to_the_last_second_meets_the_deadline(seed, deadline):
    """The cap of the schedulers and the judgement of the clock agree, rounding included."""
    fleet, load, _ = fleets(seed)
    a, b = compute_model_lines(fleet, load)
    most = largest_rank_within(a, b, deadline)
    able = most >= 0
    ranks = np.clip(most, 0, 10_000)
    exceeded = apply_deadline(
        compute_model_times(fleet, load, ranks), np.ones(len(a), dtype=int), deadline, "drop"
    ).exceeded
    assert not exceeded[able].any()
    assert exceeded[~able].all()
    more = apply_deadline(
        compute_model_times(fleet, load, ranks + 1), np.ones(len(a), dtype=int), deadline, "drop"
    ).exceeded
    assert more[able & (most < 10_000)].all()


def test_tenths_of_seconds_that_add_up_to_the_deadline_meet_it():
    """0.1 i + 0.1 j r is not the tenth of i + j r in doubles, to either side."""
    alone = Fleet.of([Tier("one", 1)], 1)
    for i, j, r in itertools.product(range(1, 10), range(1, 10), range(1, 17)):
        deadline = (i + j * r) / 10
        spent = compute_model_times(
            alone, Load(np.ones(1), Line(i * 0.1, j * 0.1), Line(0, 0), Line(0, 0)), np.array([r])
        )
        assert largest_rank_within(np.array([i * 0.1]), np.array([j * 0.1]), deadline).tolist() == [r]
        assert not apply_deadline(spent, np.ones(1, dtype=int), deadline, "drop").exceeded


def test_steps_of_a_tenth_of_a_second_are_counted_whole():
    for n, k in itertools.combinations(range(1, 40), 2):
        spent = Times(np.zeros(1), np.array([k * 0.1]), np.zeros(1))
        assert apply_deadline(spent, np.array([k]), n * 0.1, "use_partial").steps.tolist() == [n]


def refused(what, *given) -> str:
    with pytest.raises(UserError) as error:
        what(*given)
    return str(error.value)


def test_counts_that_do_not_match_the_clients_are_explained():
    text = refused(Fleet.of, TIERS, 10)
    assert "2 gpu_fast + 1 gpu_medium + 1 cpu_slow make 4 clients" in text
    assert "total_clients is 10" in text
    assert "no tier make 0 clients" in refused(check_tiers, [], 2)


@pytest.mark.parametrize(
    ("tier", "hints"),
    [
        (Tier("x", -1), ["count -1"]),
        (Tier("x", 1, compute_factor=0.0), ["x has compute_factor 0.0", "above 0"]),
        (Tier("x", 1, memory_mb=-5), ["memory_mb -5", "no limit"]),
        (Tier("x", 1, bandwidth_up_mbps=float("nan")), ["bandwidth_up_mbps nan"]),
    ],
)
def test_impossible_hardware_is_refused(tier, hints):
    text = refused(check_tiers, [tier], 1)
    assert all(hint in text for hint in hints)


def test_two_tiers_of_one_name_are_refused():
    assert "same name" in refused(check_tiers, [Tier("x", 1), Tier("x", 1)], 2)


@pytest.mark.parametrize(
    ("given", "hints"),
    [
        ((8, 4, None, 6), ["r_min 8", "r_max 4", "r_min <= r_max"]),
        ((0, 4, None, 6), ["r_min 0"]),
        ((2, 16, 1.5, 6), ["r_bar 1.5", "budget of a round, 9", "below 6 * r_min = 12"]),
        ((2, 16, 17.0, 6), ["r_bar 17", "102", "above 6 * r_max = 96"]),
    ],
)
def test_ranks_and_budgets_that_cannot_be_are_explained(given, hints):
    text = refused(check_ranks, *given)
    assert all(hint in text for hint in hints)


@pytest.mark.parametrize("r_bar", [2.0, 16.0, 7.3, None])
def test_budgets_at_and_between_the_bounds_are_fine(r_bar):
    check_ranks(2, 16, r_bar, 6)


def test_a_deadline_that_nobody_can_meet_is_explained():
    """The fast tier needs 2.21 + 2 * 0.521 s with rank 2."""
    text = refused(check_deadline, FLEET, *compute_model_lines(FLEET, LOAD), 2, 3.2)
    assert all(hint in text for hint in ("deadline.seconds 3.2", "gpu_fast", "3.25 s", "rank 2"))
    check_deadline(FLEET, *compute_model_lines(FLEET, LOAD), 2, 3.3)


def test_a_model_that_fits_nowhere_is_explained():
    small = Fleet.of([Tier("small", 2, memory_mb=600), Tier("smaller", 1, memory_mb=100)], 3)
    text = refused(check_memory, small, Line(500, 100), 2)
    assert all(hint in text for hint in ("rank 2 takes 700 MB", "small, has 600 MB"))
    check_memory(small, Line(400, 100), 2)
