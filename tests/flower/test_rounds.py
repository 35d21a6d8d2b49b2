"""Rounds over nodes are the engine's rounds: the same numbers, and what clients keep stays with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

import torch

from devices import hardware
from fedfault.algebra import mask_factor
from fedfault.flower.memory import Memory
from fedfault.rounds.engine import begin
from fedfault.rounds.exchange import OWN
from fedfault.testing.toys import LowRank, federation
from flowers import Bad, grid_of, kept_c, last, over, restarted, same
from scripted import HALVES, SIX, fed_of, scripted

UNEQUAL = (1, 2, 1, 2, 2, 1)


CASES = [
    ("fedavg", "fedit", ()),
    ("fedavg", "hetlora", UNEQUAL),
    ("fedavg", "ffa_lora", UNEQUAL),
    ("fedavg", "rolora", ()),
    (("fedprox", {"mu": 1.0}), "fedit", UNEQUAL),
    ("scaffold", "fedit", ()),
    ("scaffold", "zero_pad", UNEQUAL),
    (("scaffold", {"option": "I"}), "flexlora", ()),
    ("feddyn", "fedit", ()),
    ("fednova", "zero_pad", UNEQUAL),
    ("fedadam", "flexlora", UNEQUAL),
    ("moon", "fedit", UNEQUAL),
    ("ditto", "fedit", ()),
    ("apfl", "fedit", ()),  # whose clients keep one number beside their model
]


@pytest.mark.parametrize(("algorithm", "aggregation", "ranks"), CASES, ids=str)
def test_nodes_train_what_one_process_trains(algorithm, aggregation, ranks):
    fed = federation(LowRank(), algorithm, aggregation, cohort_size=4, num_rounds=3, ranks=ranks, work={"steps": 2})
    agree(fed)


def agree(fed):
    """A run over nodes has the numbers of one process; its records."""
    there, _ = over(fed, grid_of(fed))
    (mine, records), (theirs, over_flower) = last(fed), last(there)
    assert same(theirs.adapter.flat, mine.adapter.flat)
    assert [(r.bytes_up, r.bytes_down, r.events) for r in over_flower] == [
        (r.bytes_up, r.bytes_down, r.events) for r in records
    ]
    for a, b in zip(records, over_flower, strict=True):
        for one, other in zip(a.clients, b.clients, strict=True):
            assert (one.client, one.steps, one.tokens) == (other.client, other.steps, other.tokens)
            assert (one.loss, one.grad_norm, one.weight) == pytest.approx(
                (other.loss, other.grad_norm, other.weight), rel=1e-5
            )

    return over_flower


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "aggregation"), [("fedavg", "blockwise"), ("fedprox", "fedit"), ("scaffold", "zero_pad")]
)
def test_nodes_train_the_ranks_that_a_scheduler_gives_them_in_each_round(algorithm, aggregation):
    """SCAFFOLD's c_i has to keep what a client does not train in a round of low rank."""
    ranks = scripted((1, 1, 1, 2, 2, 2), (3, 0, 3, 1, 1, 1), (2, 2, 1, 1, 3, 3))
    fed = fed_of(replace(hardware(SIX), scheduler=ranks), algorithm=algorithm, aggregation=aggregation)
    records = agree(fed)
    assert [[c.rank for c in r.clients] for r in records[1:]] == [
        [1, 1, 1, 2, 2, 2],
        [3, 3, 1, 1, 1],
        [2, 2, 1, 1, 3, 3],
    ]
    assert [t.fate for t in records[2].turns] == ["done", "excluded", *["done"] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["exact", "lite"])
def test_a_budget_of_ranks_is_spent_alike_over_nodes(scheduler):
    records = agree(fed_of(hardware(*HALVES, scheduler=scheduler, options={"r_bar": 2}, r_max=3)))
    assert all(sum(c.rank for c in r.clients) == 12 for r in records[1:])
    assert len({c.rank for c in records[3].clients}) > 1


@pytest.mark.slow
def test_a_client_that_has_to_stop_early_does_so_at_its_node():
    """A slow one needs 10.1 s for its steps at rank 1, and has 6."""
    fed = fed_of(hardware(*HALVES, deadline=6.0, policy="use_partial"), task=LowRank(r=1))
    record = agree(fed)[1]
    assert [t.fate for t in record.turns] == ["done"] * 3 + ["partial"] * 3
    assert [c.steps < steps for c, steps in zip(record.clients, fed.hardware.steps, strict=True)] == [False] * 3 + [
        True
    ] * 3


def test_what_travels_is_the_active_slices():
    """Rank 1 of 3: a row of A and a column of B, 4 + 5 numbers, and the bias, 5; both ways."""
    sizes = []

    class Weighing(Bad):
        def push_messages(self, messages):
            messages = list(messages)
            self.weigh(messages)
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            self.weigh(replies)
            return replies

        def weigh(self, messages):
            asked = [m for m in messages if m.metadata.message_type == "train"]
            sizes.append([m.content["arrays"]["x"].shape for m in asked])

    fed = fed_of(replace(hardware(SIX), scheduler=scripted((1, 1, 2, 2, 3, 3))), num_rounds=1)
    last(over(fed, Weighing.of(grid_of(fed), {}))[0])
    assert sizes[-2:] == [[(14,), (14,), (23,), (23,), (32,), (32,)]] * 2


@pytest.mark.slow
def test_a_node_that_is_lost_is_a_turn_that_was_dropped():
    fed = fed_of(replace(hardware(SIX), scheduler=scripted((2,) * 6)))
    there, _ = over(fed, Bad.of(grid_of(fed), {(3, "2"): None}))
    _, records = last(there)
    assert [t.fate for t in records[2].turns] == ["done", "done", "dropped", "done", "done", "done"]
    assert (records[2].turns[2].share, len(records[2].clients)) == (0.0, 5)
    assert records[2].bytes_down == records[1].bytes_down  # it was sent the model all the same


@pytest.mark.slow
def test_what_is_private_never_leaves_a_node():
    """FedSA shares A only: the server's B stays as it began, and the nodes' own B are those of one process."""
    fed = federation(LowRank(), "fedavg", "fedsa_lora", cohort_size=4, num_rounds=3)
    grid = grid_of(fed)
    there, nodes = over(fed, grid)
    (mine, records), (theirs, _) = last(fed), last(there)
    A, B, x0 = mask_factor(fed.task.layout, "A"), mask_factor(fed.task.layout, "B"), fed.task.init(0)
    assert same(theirs.adapter.flat[A], mine.adapter.flat[A])
    assert torch.equal(theirs.adapter.flat[B], x0.flat[B])
    for k in sorted({c.client for r in records for c in r.clients}):
        kept = Memory(grid.contexts[k + 1], "run", x0, None, k).versions[nodes.find_last_used(k)][OWN].flat
        assert same(kept[B], mine.clients[OWN].flat[k][B])


def test_the_servers_control_variate_is_the_mean_of_those_at_the_nodes():
    fed = federation(LowRank(), "scaffold", cohort_size=3, num_rounds=4)
    grid = grid_of(fed)
    there, nodes = over(fed, grid)
    state, _ = last(there)
    p = torch.tensor(state.weights, dtype=torch.float64) / sum(state.weights)
    mean = p.to(state.adapter.flat) @ kept_c(grid, nodes, fed.task.init(0))
    assert same(state.memory["c"].flat, mean)
    assert state.clients == {}


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["fedit", "fedsa_lora"])
def test_memory_survives_the_restart_of_a_node(aggregation, tmp_path):
    fed = federation(LowRank(), "scaffold" if aggregation == "fedit" else "fedavg", aggregation, num_rounds=4)
    grid = grid_of(fed, memory=tmp_path)
    there, _ = over(replace(fed, num_rounds=2), grid)
    state, _ = last(there)
    restarted(grid, 3)
    state, records = last(replace(there, num_rounds=fed.num_rounds), state)
    assert same(state.adapter.flat, last(over(fed, grid_of(fed))[0])[0].adapter.flat)
    assert not any(r.events for r in records)


@pytest.mark.slow
def test_a_node_whose_memory_is_gone_says_so_and_is_left_out():
    fed = federation(LowRank(), "scaffold", num_rounds=3)
    grid = grid_of(fed)
    there, _ = over(replace(fed, num_rounds=2), grid)
    state, _ = last(there)
    restarted(grid, 3)
    _, records = last(replace(there, num_rounds=fed.num_rounds), state)
    (event,) = records[-1].events
    assert event.startswith("client 2 (node 3) is left out: what this client kept after round 2 is gone")
    assert [c.client for c in records[-1].clients] == [0, 1, 3, 4, 5]


def test_memory_of_another_run_or_a_damaged_file_is_not_used(tmp_path):
    x = LowRank().init(0)
    context = grid_of(federation(LowRank())).contexts[1]
    Memory(context, "run", x, tmp_path, 0).store_version(3, {"c": x}, used=0)
    assert set(Memory(context, "run", x, None, 0).versions) == {3}
    assert Memory(context, "another", x, None, 0).versions == {}
    (file,) = tmp_path.iterdir()
    empty = grid_of(federation(LowRank())).contexts[1]
    assert torch.equal(Memory(empty, "run", x, tmp_path, 0).versions[3]["c"].flat, x.flat)
    file.write_bytes(file.read_bytes()[:-8])
    assert Memory(empty, "run", x, tmp_path, 0).versions == {}


def test_a_run_over_nodes_begins_without_the_clients_memory():
    fed = federation(LowRank(), "scaffold")
    assert begin(over(fed, grid_of(fed))[0]).clients == {}
    assert set(begin(fed).clients) == {"c"}
