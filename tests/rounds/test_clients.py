"""What clients do is a function of what they are asked: wherever they are, and whoever else is in the cohort."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from devices import hardware
from fedfault.registry import build
from fedfault.rounds.clients import init_client_memory, train_clients
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import OWN
from fedfault.testing.toys import LowRank, federation
from scripted import SIX, fed_of, scripted


def without(*lost: int, after: int = 0, reached: bool = True):
    """Clients elsewhere: after so many rounds, what these do does not arrive, or they are not even reached."""

    def remote(fed, asked):
        rows = [i for i, k in enumerate(asked.cohort.clients) if asked.round <= after or k not in lost]
        away = frozenset() if reached else frozenset(asked.cohort.clients) - {asked.cohort.clients[i] for i in rows}
        done = train_clients(fed, asked.select(rows)) if rows else train_clients(fed, asked)
        return replace(done, cohort=asked.cohort.select(rows), unreached=away)

    return remote


@pytest.mark.parametrize(
    ("algorithm", "aggregation"),
    [("fedavg", "fedit"), ("scaffold", "zero_pad"), ("fedprox", "fedsa_lora"), ("ifca", "fedit")],
)
def test_a_client_alone_does_what_it_does_in_a_cohort(algorithm, aggregation):
    seen = []

    def remote(fed, asked):
        whole = train_clients(fed, asked)
        for i, k in enumerate(asked.cohort.clients):
            one = train_clients(fed, asked.select([i]))
            seen.append(k)
            assert one.cohort.clients == [k]
            assert torch.allclose(one.up["x"].flat[0], whole.up["x"].flat[i], rtol=1e-5, atol=1e-7)
            assert one.home.keys() == whole.home.keys()
            for name, kept in one.home.items():
                assert torch.allclose(kept.flat[0], whole.home[name].flat[i], rtol=1e-5, atol=1e-7)
            assert (one.trained.num_steps[0], one.trained.weight[0]) == (whole.trained.num_steps[i], asked.weight[i])
        return whole

    ranks = (1, 2, 1, 2, 2, 1) if aggregation == "zero_pad" else ()
    fed = federation(LowRank(), algorithm, aggregation, num_rounds=2, cohort_size=4, ranks=ranks, work={"steps": 2})
    list(rounds(replace(fed, remote=remote), begin(fed)))
    assert len(seen) == 8


def test_a_newcomer_remembers_what_the_algorithm_and_the_aggregation_leave_with_it():
    x = LowRank().init(0)
    assert init_client_memory(federation(LowRank()), x) == {}
    mine = init_client_memory(federation(LowRank(), "scaffold", "fedsa_lora"), x)
    assert mine.keys() == {"c", OWN}
    assert torch.equal(mine[OWN].flat, x.flat)
    assert not mine["c"].flat.any()


def test_a_client_whose_work_does_not_arrive_is_left_out_and_keeps_what_it_had():
    fed = federation(LowRank(), "scaffold", num_rounds=2)
    (_, _), (before, first), (after, second) = rounds(replace(fed, remote=without(2, after=1)), begin(fed))
    assert [c.client for c in second.clients] == [0, 1, 3, 4, 5]
    assert sum(c.weight for c in second.clients) == pytest.approx(1)
    assert torch.equal(after.clients["c"].flat[2], before.clients["c"].flat[2])
    assert not torch.equal(after.clients["c"].flat[3], before.clients["c"].flat[3])
    assert second.bytes_down == first.bytes_down  # it was sent the model all the same
    assert second.bytes_up == first.bytes_up * 5 / 6
    assert after.seen == (2,) * 6
    assert after.stored == (2, 2, 1, 2, 2, 2)


def in_round_2(remote):
    """These clients in round 2, all of them in every other."""
    return lambda fed, asked: remote(fed, asked) if asked.round == 2 else train_clients(fed, asked)


@pytest.mark.parametrize("on", ["no hardware", "simulated hardware"])
def test_a_client_that_is_not_reached_is_sent_nothing_and_later_what_it_has_missed(on):
    """RoLoRA trains one factor a round: who was not there in round 2 is sent both in round 3, who was only the other."""
    fed = federation(LowRank(), "fedavg", "rolora", num_rounds=3)
    if on == "simulated hardware":
        fed = fed_of(hardware(SIX), aggregation="rolora", num_rounds=3)
    for reached in (True, False):
        away = in_round_2(without(2, reached=reached))
        (_, _), _, (state, second), (_, third) = rounds(replace(fed, remote=away), begin(fed))
        assert (state.seen[2], state.stored[2]) == (2 if reached else 1, 1)
        assert second.bytes_down == (6 if reached else 5) * second.clients[0].bytes_down
        assert (third.clients[2].bytes_down == third.clients[0].bytes_down) == reached
        assert sum(t.bytes_down for t in second.turns) in (0, second.bytes_down)


def test_a_client_whose_work_is_lost_has_chosen_no_cluster_and_its_control_variate_ages():
    fed = federation(LowRank(), "ifca", num_rounds=1)
    *_, (state, _) = rounds(replace(fed, remote=without(2)), begin(fed))
    assert torch.equal(fed.algorithm.personal(state).flat[2], state.adapter.flat)
    fed = federation(LowRank(), "scaffold", num_rounds=3, probes={"gradients": build("probe", "gradients")})
    *_, (_, record) = rounds(replace(fed, remote=in_round_2(without(2))), begin(fed))
    assert [c.probes["control_age"] for c in record.clients] == [1, 1, 2, 1, 1, 1]


def test_a_round_from_which_nothing_arrives_counts_and_changes_nothing():
    fed = federation(LowRank(), num_rounds=3)
    (_, _), (s1, r1), (s2, r2), (_, r3) = rounds(replace(fed, remote=without(*range(6), after=1)), begin(fed))
    assert (s2.round, r2.clients, r2.bytes_up, r2.bytes_down) == (2, (), 0, r1.bytes_down)
    assert torch.equal(s2.adapter.flat, s1.adapter.flat)
    assert r2.scores == r1.scores
    assert r2.events == ("nothing was aggregated; the model stays as it is",) == r3.events


def test_on_simulated_hardware_work_that_does_not_arrive_is_a_dropped_turn():
    fed = fed_of(replace(hardware(SIX), scheduler=scripted((1, 2, 3, 1, 2, 3))), num_rounds=2)
    (_, _), (_, first), (state, second) = rounds(replace(fed, remote=without(1, after=1)), begin(fed))
    assert [t.fate for t in second.turns] == ["done", "dropped", "done", "done", "done", "done"]
    assert [t.share for t in second.turns] == [1, 0, 1, 1, 1, 1]
    assert [c.rank for c in second.clients] == [1, 3, 1, 2, 3]
    assert second.bytes_down == first.bytes_down
    assert state.seen == (2,) * 6
