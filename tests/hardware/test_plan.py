"""A round on unequal hardware, against numbers by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from devices import hardware
from fedfault.hardware.clock import Line, Tier
from fedfault.hardware.plan import MessageSizes, make_plan, observe_round
from fedfault.hardware.traces import Change, Trace

FAST, SLOW = Tier("fast", 1), Tier("slow", 1, compute_factor=0.5)
BOTH = np.array([0, 1])
FREE = MessageSizes(Line(0, 0), Line(0, 0), Line(np.zeros(2), np.zeros(2)))


def planned(hw, plans=None, clients=BOTH, limits=None, wire=FREE, round=1):
    limits = np.full(len(clients), hw.r_max) if limits is None else np.array(limits)
    wire = wire._replace(missed=Line(*(np.resize(part, len(clients)) for part in wire.missed)))
    return make_plan(hw, hw.init_memory() if plans is None else plans, round, 0, clients, limits, wire)


def test_time_is_tokens_by_rank_over_speed():
    made = planned(hardware(FAST, SLOW))
    assert made.ranks.tolist() == [8, 8]
    assert [t.needed for t in made.turns] == pytest.approx([1.8, 3.6])  # 100 * (0.01 + 8 * 0.001)
    assert [(t.client, t.tier, t.fate, t.share) for t in made.turns] == [(0, "fast", "done", 1), (1, "slow", "done", 1)]
    assert made.readings["round_seconds"] == pytest.approx(3.6)
    assert made.readings["compliance"] == 1
    assert made.training == [0, 1]


def test_bytes_take_time_in_both_directions_and_what_was_missed_too():
    narrow = Tier("narrow", 2, bandwidth_up_mbps=8, bandwidth_down_mbps=16)  # 1 and 2 MB a second
    missed = Line(np.array([0.0, 4e6]), np.array([0.0, 1e6]))
    made = planned(hardware(narrow), wire=MessageSizes(Line(1e6, 1e6), Line(0, 5e5), missed))
    assert [(t.down, t.up) for t in made.turns] == [pytest.approx((4.5, 4.0)), pytest.approx((10.5, 4.0))]
    assert [t.bytes_down for t in made.turns] == [9_000_000, 21_000_000]
    assert made.slope[1] - made.slope[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("policy", "fate", "share", "seconds", "training"),
    [
        ("wait", "late", 1.0, 3.6, [0, 1]),
        ("drop", "dropped", 0.0, 2.0, [0]),
        ("use_partial", "partial", 0.5, 1.8, [0, 1]),  # 5 of 10 steps at 0.36 s
    ],
)
def test_a_deadline_makes_a_client_late(policy, fate, share, seconds, training):
    made = planned(hardware(FAST, SLOW, deadline=2.0, policy=policy))
    assert made.turns[0].fate == "done"
    late = made.turns[1]
    assert (late.fate, late.share, late.seconds) == (fate, share, pytest.approx(seconds))
    assert late.needed == pytest.approx(3.6)
    assert made.training == training
    assert made.readings["compliance"] == 0.5


def test_a_scheduler_without_a_budget_says_nothing_of_one():
    assert planned(hardware(FAST, SLOW, options={"rank": 4}, r_min=2)).events == ()


def test_memory_and_limits_cap_the_rank_and_who_has_no_room_is_left_out():
    small, none = Tier("small", 1, memory_mb=13.5), Tier("none", 1, memory_mb=10.5)
    made = planned(hardware(small, none, FAST), clients=np.arange(3), limits=[8, 8, 2])
    assert made.ranks.tolist() == [3, 0, 2]
    assert [t.fate for t in made.turns] == ["done", "excluded", "done"]
    assert [t.memory_mb for t in made.turns] == [13, 0, 12]
    assert made.turns[1].seconds == 0
    assert made.turns[1].bytes_down == 0
    assert "client 1 left out" in made.events[0]
    assert made.training == [0, 2]


def test_a_round_in_which_nobody_has_room_is_empty_and_says_so():
    made = planned(hardware(Tier("none", 2, memory_mb=1)))
    assert made.training == []
    assert made.readings == {"round_seconds": 0.0, "compliance": 1.0}
    assert made.events[-1] == "nobody can take part"


def test_the_budget_is_spent_whatever_the_scheduler():
    for name in ("exact", "cvx", "lite", "lite_star", "fah"):
        made = planned(hardware(FAST, SLOW, scheduler=name, options={"r_bar": 4.0}))
        assert made.ranks.sum() == 8
        assert made.readings["mean_rank"] == 4


def test_regret_is_the_round_over_the_shortest_one_of_the_same_ranks_in_all():
    """A fast and a slow client: 4 and 4 take 100 * 0.014 * 2 = 2.8 s, 7 and 1 take 2.2 s."""
    hw = hardware(FAST, SLOW, options={"rank": 4})
    assert planned(hw).readings["regret"] == pytest.approx(2.8 / 2.2)
    # That a scheduler is fixed is no excuse
    assert planned(hw, limits=[4, 4]).readings["regret"] == pytest.approx(2.8 / 2.2)
    best = hardware(FAST, SLOW, scheduler="exact", options={"r_bar": 4.0})
    assert planned(best).ranks.tolist() == [7, 1]
    assert planned(best).readings["regret"] == pytest.approx(1)


def test_what_was_observed_corrects_what_the_tiers_promise():
    """The link of client 0 is a hundredth of what its tier says: after a few rounds the exact scheduler knows."""
    link = Tier("link", 2, bandwidth_up_mbps=80)
    trace = Trace(2, (Change(1, 0, available=True, bandwidth=0.8), Change(1, 1, available=True, bandwidth=80.0)))
    hw = hardware(link, scheduler="exact", options={"r_bar": 4.0})
    wire, plans = MessageSizes(Line(0, 0), Line(0, 1e5), Line(np.zeros(2), np.zeros(2))), hw.init_memory()
    assert planned(hw, plans, wire=wire).ranks.tolist() == [4, 4]
    slow = hardware(link, scheduler="exact", options={"r_bar": 4.0}, trace=trace)
    for t in range(1, 8):
        plans = observe_round(hw, plans, planned(slow, plans, wire=wire, round=t), {})
    ranks = planned(hw, plans, wire=wire).ranks.tolist()
    assert ranks[0] < 4 < ranks[1]


def test_a_dropped_client_reaches_the_scheduler():
    """Lite halves the score of who was late, also if it was dropped: half of the rank, to rounding."""
    hw = hardware(
        FAST, SLOW, scheduler="lite", options={"r_bar": 3.0, "throughput_weight": 0.0}, deadline=2.0, policy="drop"
    )
    first = planned(hw)
    assert [t.fate for t in first.turns] == ["done", "dropped"]
    plans = observe_round(hw, hw.init_memory(), first, {0: (0.1, None)})
    assert planned(hw, plans).ranks.tolist() == [4, 2]


def test_plans_survive_json():
    hw = hardware(FAST, SLOW, scheduler="lite_star", options={"r_bar": 4.0})
    plans = observe_round(hw, hw.init_memory(), planned(hw), {0: (0.2, None), 1: (0.1, None)})
    back = json.loads(json.dumps(plans))
    assert planned(hw, back).ranks.tolist() == planned(hw, plans).ranks.tolist()
    assert back == plans


def test_a_measured_clock_takes_its_scale_from_the_last_measurement_and_a_modelled_one_never():
    measured, modelled = hardware(FAST, SLOW, measured=True), hardware(FAST, SLOW)
    # 200 tokens with rank 8 should take 3.6 s; they took 7.2
    assert [
        t.needed for t in planned(measured, measured.rescale_clock(measured.init_memory(), 7.2, 200, 8)).turns
    ] == pytest.approx([3.6, 7.2])
    assert modelled.rescale_clock(modelled.init_memory(), 7.2, 200, 8) == modelled.init_memory()


def test_a_trace_says_who_is_there():
    trace = Trace(2, (Change(3, 1, available=False, bandwidth=np.nan),))
    hw = hardware(FAST, SLOW, trace=trace)
    assert hw.available(2, 0.0).tolist() == [True, True]
    assert hw.available(3, 0.0).tolist() == [True, False]
    assert hardware(FAST, SLOW).available(3, 0.0).tolist() == [True, True]
