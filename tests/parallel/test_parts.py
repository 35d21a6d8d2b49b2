"""A cohort that is cut into parts and put together again is the whole, and held once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.parallel.parts import join_results, split_by_cost, split_pairs
from fedfault.registry import build
from fedfault.rounds.clients import train_clients
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation
from pair import same


@pytest.mark.parametrize(
    ("cost", "n", "expected"),
    [
        ([1, 1, 1, 1], 2, [[0, 1], [2, 3]]),
        ([3, 1, 1, 1], 2, [[0], [1, 2, 3]]),
        ([1, 1, 1, 9], 2, [[0, 1, 2], [3]]),
        ([2.5, 2.5], 4, [[], [0], [], [1]]),
        ([7], 2, [[], [0]]),
    ],
)
def test_a_cohort_is_cut_into_runs_of_about_equal_work(cost, n, expected):
    assert split_by_cost(cost, n) == expected


def test_models_and_their_rows_are_cut_by_rows():
    a, b = torch.zeros(1), torch.ones(1)
    parts = split_pairs([(a, torch.arange(3)), (b, torch.arange(10, 13))], 4)
    assert [[(float(x), rows.tolist()) for x, rows in part] for part in parts] == [
        [(0, [0, 1])],
        [(0, [2]), (1, [10])],
        [(1, [11])],
        [(1, [12])],
    ]
    assert split_pairs([(a, torch.arange(1))], 3)[1:] == [[], []]


@pytest.mark.parametrize(
    ("algorithm", "aggregation", "ranks"),
    [
        ("fedavg", "fedit", ()),
        ("scaffold", "zero_pad", (1, 2, 1, 2, 2, 1)),
        ("moon", "fedsa_lora", ()),
        ("ifca", "fedit", ()),
    ],
)
def test_the_parts_of_a_cohort_together_are_the_whole(algorithm, aggregation, ranks):
    probes = {"gradients": build("probe", "gradients")}
    fed = federation(LowRank(), algorithm, aggregation, num_rounds=2, ranks=ranks, work={"steps": 2}, probes=probes)

    def remote(fed, asked):
        return join_results(
            asked, {rank: train_clients(fed, asked.select(rows)) for rank, rows in enumerate(([0], [1, 2, 3], [4, 5]))}
        )

    *_, (whole, expected) = rounds(fed, begin(fed))
    *_, (after, record) = rounds(replace(fed, remote=remote), begin(fed))
    assert same(after.adapter.flat, whole.adapter.flat)
    assert all(same(a.flat, whole.clients[name].flat) for name, a in after.clients.items())
    assert record.probes == pytest.approx(expected.probes, rel=1e-4)
    assert (record.bytes_up, record.bytes_down) == (expected.bytes_up, expected.bytes_down)


def test_memory_that_ran_out_in_one_part_is_said_and_remembered_for_all():
    fed = federation(LowRank(), num_rounds=1)

    def remote(fed, asked):
        parts = {rank: train_clients(fed, asked.select([2 * rank, 2 * rank + 1])) for rank in range(3)}
        parts[1] = replace(parts[1], events=("out of memory: 1 clients in a pass from now on",), clients_per_pass=1)
        return join_results(asked, parts)

    *_, (state, record) = rounds(replace(fed, remote=remote), begin(fed))
    assert record.events == ("process 1: out of memory: 1 clients in a pass from now on",)
    assert state.clients_per_pass == 1


def test_what_is_the_same_in_every_part_is_held_once():
    fed, seen = federation(LowRank(), num_rounds=1), []

    def remote(fed, asked):
        seen.append(
            join_results(asked, {rank: train_clients(fed, asked.select([3 * rank, 3 * rank + 1])) for rank in range(2)})
        )
        return train_clients(fed, asked)

    list(rounds(replace(fed, remote=remote), begin(fed)))
    (done,) = seen
    assert done.up["x"].flat is done.trained.adapter.flat
    assert done.start.stride(0) == 0
