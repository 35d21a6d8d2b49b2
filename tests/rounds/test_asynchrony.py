"""Asynchronous rounds of the real engine, by hand and from limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from devices import hardware
from fedfault.hardware.clock import Line, Tier
from fedfault.hardware.flight import Asynchrony, read_flights
from fedfault.hardware.traces import Diurnal
from fedfault.rounds.clients import train_clients
from fedfault.rounds.engine import begin
from fedfault.runs.checkpoint import read_about
from fedfault.runs.state import read_state, write_state
from fedfault.testing.toys import LowRank, Quadratic, federation, run_rounds, run_to_end

FAST, SLOW = Tier("fast", 1), Tier("slow", 1, compute_factor=0.4)  # 1 s and 2.5 s of work


def two_clients(**how):
    """Client 0 at 0 takes 1 s, client 1 at 1 takes 2.5 s; both start at 3 and take one step of 0.1."""
    task = Quadratic([[1.0], [1.0]], [[0.0], [1.0]], [4, 4])
    hw = hardware(FAST, SLOW, token_seconds=Line(0.01, 0.0))
    return federation(
        task, num_rounds=3, work={"steps": 1}, hardware=hw, asynchronous=Asynchrony(**{"buffer": 1, **how})
    )


def positions(fed):
    return [state.adapter.flat.item() for state, _ in run_rounds(fed)]


def test_fedbuff_adds_the_change_of_a_stale_client_at_its_discount():
    """Client 0 arrives at 1 s and 2 s, client 1 at 2.5 s with a change of -0.2 from a model that is two rounds old."""
    fed = two_clients()
    assert positions(fed) == pytest.approx([3, 2.7, 2.43, 2.43 - 0.2 / 3**0.5])
    _, records = run_to_end(fed)
    assert [record.clients[0].client for record in records[1:]] == [0, 0, 1]
    assert [record.probes["round_seconds"] for record in records[1:]] == pytest.approx([1, 1, 0.5])
    assert [record.probes["staleness"] for record in records[1:]] == [0, 0, 2]
    assert [record.clients[0].probes["staleness"] for record in records[1:]] == [0, 0, 2]


def test_fedasync_mixes_the_model_of_a_stale_client_in():
    one, two = 3 - 0.6 * 0.3, (3 - 0.6 * 0.3) * (1 - 0.06)
    a = 0.6 / 3**0.5
    assert positions(two_clients(mixes=True, rate=0.6)) == pytest.approx([3, one, two, (1 - a) * two + a * 2.8])


def test_without_a_discount_age_does_not_matter():
    assert positions(two_clients(staleness="constant"))[-1] == pytest.approx(2.43 - 0.2)


def fleet(task=None, **changes):
    """Six clients of three speeds, of which four are at work and two make a round."""
    tiers = (Tier("a", 2), Tier("b", 2, compute_factor=0.5), Tier("c", 2, compute_factor=0.15))
    given = {"cohort_size": 4, "num_rounds": 8, "hardware": hardware(*tiers), "asynchronous": Asynchrony(2)}
    return federation(task or LowRank(r=3), work={"steps": 3, "lr": 0.05}, **{**given, **changes})


def test_where_everybody_is_waited_for_it_is_the_synchronous_federation():
    alike = {"cohort_size": 6, "hardware": hardware(Tier("all", 6)), "num_rounds": 4}
    state, records = run_to_end(fleet(asynchronous=Asynchrony(6), **alike))
    same, _ = run_to_end(fleet(asynchronous=None, **alike))
    torch.testing.assert_close(state.adapter.flat, same.adapter.flat)
    assert all(record.probes["staleness"] == 0 for record in records[1:])


def test_all_that_are_due_train_in_one_pass_from_models_of_their_own():
    seen = []

    def spy(fed, asked):
        seen.append(asked)
        return train_clients(fed, asked)

    run_to_end(fleet(remote=spy))
    assert {len(asked.cohort.clients) for asked in seen} == {2}
    starts = [asked.received["x"].flat for asked in seen]
    assert any(not torch.equal(x[0], x[1]) for x in starts)


@pytest.mark.slow
def test_a_run_that_goes_on_from_any_checkpoint_is_the_uninterrupted_one_to_the_bit(tmp_path):
    """Through the files: the adapter, who is at work with which model, and the clock."""
    whole = run_rounds(fleet())
    for state, _ in whole[:-1]:
        write_state(tmp_path, state, None, "")
        loaded = read_state(tmp_path, read_about(tmp_path, state.round), state.adapter.layout, "cpu")
        end, records = run_to_end(fleet(), loaded)
        assert torch.equal(end.adapter.flat, whole[-1][0].adapter.flat)
        assert end.plans == whole[-1][0].plans
        for (_, before), now in zip(whole[::-1], records[::-1], strict=False):
            assert (before.turns, before.scores, before.round) == (now.turns, now.scores, now.round)


def test_the_models_that_are_kept_are_those_that_somebody_at_work_started_from():
    for state, _ in run_rounds(fleet()):
        versions = {one.version for one in read_flights(state.plans.get("flight", {}))}
        assert (0 if state.versions is None else len(state.versions.flat)) == len(versions)
        assert all(v < state.round for v in versions)


@pytest.mark.slow
def test_the_order_in_which_clients_are_drawn_is_a_function_of_the_seed():
    turns = [[record.turns for _, record in run_rounds(fleet(seed=seed))] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]


def test_a_client_without_memory_for_the_smallest_rank_is_never_sent_out():
    tiers = (Tier("small", 2, memory_mb=5.0), Tier("large", 4))
    _, records = run_to_end(fleet(hardware=hardware(*tiers)))
    assert {c.client for record in records for c in record.clients} == {2, 3, 4, 5}


@pytest.mark.parametrize("asynchronous", [None, Asynchrony(2)])
def test_by_day_the_server_waits_for_the_night(asynchronous):
    """Nobody is there at noon: the round begins with the first who comes, and work takes seconds."""
    hw = replace(hardware(Tier("all", 6)), trace=Diurnal(6, day=1000.0, seed=3))
    fed = fleet(asynchronous=asynchronous, hardware=hw, num_rounds=3)
    start = replace(begin(fed), plans={**begin(fed).plans, "now": {"seconds": [500.0]}})  # noon
    assert not hw.available(1, 500.0).any()
    _, records = run_to_end(fed, start)
    assert records[1].clients
    assert records[1].probes["round_seconds"] > 50
    assert records[2].probes["round_seconds"] < 50


@pytest.mark.parametrize("asynchronous", [None, Asynchrony(1)])
def test_by_day_the_server_waits_for_somebody_who_can_train(asynchronous):
    """At noon a client is there that lacks the memory: time goes on to the first moment of the one that has it."""
    day = Diurnal(6, day=1000.0, seed=3)
    moments = [float(now) for now in range(0, 1000, 10)]
    here = next(
        (now, big)
        for now in moments
        for big in range(6)
        if day.available(1, now).any() and not day.available(1, now)[big]
    )
    now, big = here
    tiers = [Tier(f"t{k}", 1, memory_mb=None if k == big else 1.0) for k in range(6)]
    hw = replace(hardware(*tiers), trace=day)
    fed = fleet(asynchronous=asynchronous, hardware=hw, num_rounds=12, cohort_size=6)
    start = replace(begin(fed), plans={**begin(fed).plans, "now": {"seconds": [now]}})
    _, records = run_to_end(fed, start)
    assert [c.client for c in records[1].clients] == [big]
    came = next(later for later in range(int(now), int(now) + 1000) if day.available(1, float(later))[big])
    assert came - 1 <= now + records[1].probes["round_seconds"] <= came + 30  # and it trains for some seconds
