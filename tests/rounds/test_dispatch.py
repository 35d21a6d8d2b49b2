"""Rounds of the real engine on simulated hardware: ranks by round, deadlines, bytes, and what is remembered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from devices import hardware
from fedfault.algebra import mask
from fedfault.hardware.clock import Line, Tier
from fedfault.hardware.traces import Change, Trace
from fedfault.rounds.dispatch import foresee_times
from fedfault.rounds.engine import begin, rounds
from fedfault.scheduling import Scheduler
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter
from scripted import HALVES, SIX, fed_of, scripted


def run(fed):
    return list(rounds(fed, begin(fed)))


def slices(adapter: Adapter) -> torch.Tensor:
    """A_j and B_:j of the one site side by side, (..., r, 9)."""
    pair = adapter.layout.pair(adapter.flat, adapter.layout.sites[0])
    return torch.cat([pair.A, pair.B.mT], -1)


def test_each_round_has_the_ranks_that_the_scheduler_assigned():
    fed = fed_of(replace(hardware(SIX), scheduler=scripted((1, 1, 1, 2, 2, 2), (3, 3, 3, 3, 1, 1))), num_rounds=2)
    (s0, _), (s1, r1), (s2, r2) = run(fed)
    assert [c.rank for c in r1.clients] == [1, 1, 1, 2, 2, 2]
    assert [c.rank for c in r2.clients] == [3, 3, 3, 3, 1, 1]
    x0, x1, x2 = (slices(s.adapter) for s in (s0, s1, s2))
    assert not torch.equal(x1[0], x0[0])
    assert not torch.equal(x1[1], x0[1])
    assert torch.equal(x1[2], x0[2])  # nobody has trained it: it waits, and is not dead when its round comes
    assert not torch.equal(x2[2], x1[2])


def test_a_low_rank_now_does_not_bind_a_client_later():
    """A public implementation adds a gradient mask at every visit and removes none: ranks can only fall."""
    fed = fed_of(replace(hardware(SIX), scheduler=scripted((1,) * 6, (3,) * 6)), num_rounds=2)
    (_, _), (s1, _), (s2, _) = run(fed)
    changed = (slices(s2.adapter) != slices(s1.adapter)).any(-1)
    assert changed.tolist() == [True, True, True]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_slices_beyond_the_rank_of_a_client_do_not_move_whatever_the_optimizer(optimizer):
    fed = fed_of(
        replace(hardware(SIX), scheduler=scripted((2,) * 6)), work={"optimizer": optimizer, "lr": 0.05}, num_rounds=2
    )
    (s0, _), (s1, _), (s2, _) = run(fed)
    for after in (s1, s2):
        assert torch.equal(slices(after.adapter)[2], slices(s0.adapter)[2])


def test_only_active_slices_are_sent_and_counted():
    fed = fed_of(replace(hardware(SIX), scheduler=scripted((1, 1, 2, 2, 3, 3))), num_rounds=1)
    _, (_, record) = run(fed)
    sizes = [4 * (rank * (4 + 5) + 5) for rank in (1, 1, 2, 2, 3, 3)]  # A and B of each slice, and the bias, in fp32
    assert [c.bytes_up for c in record.clients] == sizes
    assert [c.bytes_down for c in record.clients] == sizes
    assert [t.bytes_down for t in record.turns] == sizes


@pytest.mark.slow
def test_simulated_transfers_take_the_bytes_that_are_counted():
    """From the second round on uploads are known too; SCAFFOLD sends twice the numbers down and up."""
    link = Tier("link", 6, bandwidth_up_mbps=8e-3, bandwidth_down_mbps=16e-3)  # 1000 and 2000 bytes a second
    for algorithm in ("fedavg", "scaffold", "moon"):
        fed = fed_of(replace(hardware(link), scheduler=scripted((1, 1, 2, 2, 3, 3))), algorithm=algorithm)
        for _, record in run(fed)[2:]:
            for turn, client in zip(record.turns, record.clients, strict=True):
                assert turn.up == pytest.approx(client.bytes_up / 1000)
                assert turn.down == pytest.approx(client.bytes_down / 2000)


@pytest.mark.parametrize("name", ["rolora", "fedsvd", "flora", "ffa_lora", "fedex_lora", "fedsa_lora"])
@pytest.mark.parametrize("cohort_size", [6, 2])
def test_simulated_downloads_are_what_is_sent_where_ranks_are_below_the_largest(name, cohort_size):
    """RoLoRA sends the other factor than it trains, FLoRA no factor at all, and whoever was away more than the others."""
    link = Tier("link", 6, bandwidth_down_mbps=16e-3)
    hw = replace(hardware(link), scheduler=scripted((2,) * 6))
    fed = fed_of(hw, aggregation=name, cohort_size=cohort_size, num_rounds=4)
    for _, record in run(fed)[1:]:
        assert [t.bytes_down for t in record.turns] == [c.bytes_down for c in record.clients]
        assert [t.down for t in record.turns] == pytest.approx([c.bytes_down / 2000 for c in record.clients])


def test_a_deadline_drops_the_slow_and_they_reach_the_records():
    fed = fed_of(hardware(*HALVES, deadline=5.0, policy="drop"), num_rounds=1)
    _, (state, record) = run(fed)
    assert [c.client for c in record.clients] == [0, 1, 2]
    assert [t.fate for t in record.turns] == ["done"] * 3 + ["dropped"] * 3
    assert record.probes["compliance"] == 0.5
    assert record.probes["round_seconds"] == 5
    assert record.bytes_down == 6 * record.clients[0].bytes_down  # they were sent the model all the same
    assert state.seen == (1,) * 6


def test_a_client_that_stops_at_the_deadline_has_done_its_first_steps():
    """10 s for 5 steps and 4 s: two of them, and the same two that it begins with when it has the time."""
    hw = hardware(*HALVES, deadline=4.0, policy="use_partial", token_seconds=Line(0.01, 0.0))
    fed = fed_of(hw, num_rounds=1)
    _, (_, record) = run(fed)
    assert [c.steps for c in record.clients] == [5, 5, 5, 2, 2, 2]
    assert [t.share for t in record.turns] == [1, 1, 1, 0.4, 0.4, 0.4]
    short = replace(fed, hardware=None, effort=lambda t, k: 1.0 if k < 3 else 0.4)
    assert torch.equal(run(fed)[-1][0].adapter.flat, run(short)[-1][0].adapter.flat)


def test_waiting_changes_no_number_but_the_time():
    plain = fed_of(hardware(*HALVES))
    waiting = fed_of(hardware(*HALVES, deadline=1.0, policy="wait"))
    for (a, ra), (b, rb) in zip(run(plain), run(waiting), strict=True):
        assert torch.equal(a.adapter.flat, b.adapter.flat)
        assert ra.probes.get("round_seconds") == rb.probes.get("round_seconds")
    assert {t.fate for t in rb.turns} == {"late"}


def test_a_round_from_which_nothing_arrives_changes_nothing_and_says_so():
    fed = fed_of(hardware(SIX, deadline=0.1, policy="drop"), num_rounds=2)
    (s0, _), (s1, r1), (s2, _) = run(fed)
    assert torch.equal(s2.adapter.flat, s0.adapter.flat)
    assert (s1.round, s2.round) == (1, 2)
    assert r1.clients == ()
    assert "validation" in r1.scores
    assert r1.events[-1] == "nothing was aggregated; the model stays as it is"
    assert [t.fate for t in r1.turns] == ["dropped"] * 6


def test_who_is_away_is_not_drawn():
    trace = Trace(6, tuple(Change(2, k, available=False, bandwidth=np.nan) for k in range(5)))
    fed = fed_of(hardware(SIX, trace=trace), cohort_size=3, num_rounds=2)
    _, (_, r1), (_, r2) = run(fed)
    assert len(r1.clients) == 3
    assert [c.client for c in r2.clients] == [5]


def test_a_round_in_which_nobody_is_there_passes():
    trace = Trace(6, tuple(Change(2, k, available=False, bandwidth=np.nan) for k in range(6)))
    fed = fed_of(hardware(SIX, trace=trace, scheduler="lite", options={"r_bar": 2.0}), num_rounds=2)
    (_, _), (s1, _), (s2, r2) = run(fed)
    assert torch.equal(s2.adapter.flat, s1.adapter.flat)
    assert (s2.round, r2.clients, r2.turns, r2.bytes_down) == (2, (), (), 0)


def test_the_gain_is_that_over_the_whole_model_which_the_server_had():
    """With next to no training the client of rank 1 has lost what it was cut by, and the others nothing."""
    task, seen = LowRank(r=3), []
    spy = Scheduler(
        scripted((1, 3, 3, 3, 3, 3)).assign, observe=lambda m, r: seen.append(r) or m, r_bar=1.0, needs_gain=True
    )
    fed = fed_of(replace(hardware(SIX), scheduler=spy), task, num_rounds=1, work={"lr": 1e-9})
    x = Adapter(task.layout, torch.randn(task.layout.size, generator=torch.Generator().manual_seed(0)))
    list(rounds(fed, begin(fed, x)))
    cut = x.flat.where(mask(task.layout, torch.tensor([1]))[0], 0.0)
    whole, less = (float(task.held_out(flat[None], torch.tensor([0]))) for flat in (x.flat, cut))
    assert [r.gain for r in seen[0]] == pytest.approx([whole - less, 0, 0, 0, 0, 0], abs=1e-5)


def test_a_scheduler_that_needs_no_gains_costs_no_evaluation():
    class Refusing(LowRank):
        def held_out(self, params, clients):
            raise AssertionError

    assert len(run(fed_of(hardware(SIX), Refusing(r=3), num_rounds=1))) == 2


def test_a_resumed_run_goes_on_to_the_same_ranks():
    hw = hardware(*HALVES, scheduler="lite_star", options={"r_bar": 2.0}, deadline=30.0, policy="use_partial")
    fed = fed_of(hw, num_rounds=4, cohort_size=4)
    whole = run(fed)
    halfway = whole[2][0]
    again = list(rounds(fed, halfway))
    assert [r.turns for _, r in again] == [r.turns for _, r in whole[3:]]
    assert torch.equal(again[-1][0].adapter.flat, whole[-1][0].adapter.flat)


def test_a_measured_clock_has_seconds_from_the_first_round_on():
    fed = fed_of(hardware(SIX, measured=True), num_rounds=2)
    for state, record in run(fed)[1:]:
        assert 0 < record.probes["round_seconds"] < 3  # six clients of a toy, not the 13 s of the model
        assert state.plans["clock"]["scale"][0] > 0


def test_what_is_foreseen_for_the_first_round_comes_true():
    link = Tier("link", 6, bandwidth_up_mbps=8e-3, bandwidth_down_mbps=16e-3)
    fed = fed_of(replace(hardware(link), scheduler=scripted((1, 1, 2, 2, 3, 3))), num_rounds=1)
    a, b = foresee_times(fed, fed.hardware, begin(fed))
    turns = run(fed)[1][1].turns
    assert [t.needed for t in turns] == pytest.approx((a + b * [t.rank for t in turns]).tolist())


def test_clients_that_train_layers_in_full_take_part_on_simulated_hardware():
    """Such layers have no rank: nobody is left out for having none, and none is recorded."""
    task = Quadratic([[1.0]] * 2, [[0.0], [1.0]], [4, 4])
    fed = federation(task, num_rounds=1, hardware=hardware(Tier("a", 1), Tier("b", 1, compute_factor=0.5)))
    _, (_, record) = run(fed)
    assert [(c.client, c.rank) for c in record.clients] == [(0, None), (1, None)]
    assert [turn.fate for turn in record.turns] == ["done", "done"]
