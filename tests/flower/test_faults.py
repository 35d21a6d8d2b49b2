"""Bad updates, bad nodes, nodes that go and come: refused by name with the reason, and the round goes on with the rest."""

from __future__ import annotations

import io
import logging
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedfault.errors import UserError
from fedfault.flower.nodes import DataSize
from fedfault.flower.server import check_remote
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation
from flowers import Bad, grid_of, kept_c, last, over, restarted, same

FED = federation(LowRank(), "scaffold", num_rounds=3, work={"steps": 1})
P = FED.task.layout.size


def outcome(bad, fed=FED, **options):
    """The run in which node 3, which is client 2, sends a bad update in round 2: state, its events, who was used."""
    there, nodes = over(fed, Bad.of(grid_of(fed), {(3, "2"): bad}), **options)
    state, records = last(there)
    assert [r.events for r in records if r.round != 2] == [(), (), ()]
    return state, records[2].events, [c.client for c in records[2].clients], nodes


def replaced(name, array):
    return lambda content: content["arrays"].__setitem__(name, array)


def said(record, **changes):
    return lambda content: content[record].update(changes)


def raw(data, dtype="float32", shape=(P,), stype="numpy.ndarray"):
    return Array(dtype, shape, stype, data)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def lying_header(shape):
    """An array whose header promises more than there is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"\0" * 4 * P


class Bomb:
    """Says so when it is unpickled."""

    went_off = False

    def __reduce__(self):
        return setattr, (Bomb, "went_off", True)


PICKLE = npy(np.array([Bomb()], object), allow_pickle=True)
ONES = np.ones(P, np.float32)
NAN = np.where(np.arange(P) == 3, np.nan, ONES)
BAD = {
    "nan": (replaced("x", Array(NAN)), f"'x' is not finite in 1 of {P} numbers"),
    "infinite": (replaced("dc", Array(ONES * np.float32(np.inf))), f"'dc' is not finite in {P} of {P} numbers"),
    "long": (replaced("x", Array(np.ones(P + 1, np.float32))), f"'x' is numpy.ndarray of float32 ({P + 1},), not"),
    "length one": (replaced("x", Array(np.ones(1, np.float32))), "'x' is numpy.ndarray of float32 (1,), not"),
    "other precision": (replaced("x", Array(np.ones(P))), "'x' is numpy.ndarray of float64"),
    "oversized": (replaced("x", raw(npy(np.ones(10**6, np.float32)))), "'x' has 4,000,128 bytes, not the"),
    "lying header": (
        replaced("x", raw(lying_header((10**11,)))),
        "'x' has another header than numpy writes for float32",
    ),
    "lying metadata": (replaced("x", raw(npy(np.ones(3, np.float32)))), "'x' has 140 bytes, not the"),
    "cut short": (replaced("x", raw(npy(ONES)[:-4])), f"'x' has {4 * P + 124:,} bytes, not the {4 * P + 128:,} of"),
    "no header": (replaced("x", raw(b"\0" * (4 * P + 128))), "'x' has another header than"),
    "pickle": (replaced("x", raw(PICKLE)), f"'x' has {len(PICKLE):,} bytes, not the"),
    "torch file": (replaced("x", raw(b"PK", stype="torch")), "'x' is torch of float32"),
    "further array": (
        replaced("../../etc/x", Array(ONES)),
        "has the arrays ['../../etc/x', 'dc', 'x'], not ['dc', 'x']",
    ),
    "missing array": (lambda content: content["arrays"].pop("dc"), "has the arrays ['x'], not ['dc', 'x']"),
    "no metrics": (
        lambda content: content.pop("metrics"),
        "its update has the records {'arrays': 'ArrayRecord', 'reply'",
    ),
    "other records": (
        lambda content: content.update(metrics=ConfigRecord({})),
        "its update has the records {'arrays': 'ArrayRecord', 'metrics': 'ConfigRecord'",
    ),
    "stale": (said("reply", round=1), "its update is stale: of round 1, not 2"),
    "another client's": (said("reply", client=4), "its update says that it is of client 4"),
    "another layout": (said("reply", layout="abc"), "its update has the layout abc, not"),
    "negative weight": (said("metrics", **{"num-examples": -5.0}), "its update says num-examples -5.0"),
    "more weight": (
        said("metrics", **{"num-examples": 1e18}),
        "its update says that its weight is 1e+18; it joined with",
    ),
    "loss not a number": (said("metrics", loss=float("nan")), "its update says loss nan"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=list(BAD))
def test_a_bad_update_is_refused_with_the_client_and_its_node_named(bad, reason):
    _, (event,), used, _ = outcome(bad)
    assert event.startswith(f"client 2 (node 3) is left out: {reason}")
    assert used == [0, 1, 3, 4, 5]
    assert not Bomb.went_off


@pytest.mark.slow
def test_a_refused_update_leaves_no_trace_in_the_run():
    """Not in the model, and not in what SCAFFOLD remembers: the client goes back to its memory of round 1."""
    refused, _, _, nodes = outcome(BAD["nan"][0])
    silent, (event,), _, _ = outcome(None)
    assert event == "client 2 (node 3) is left out: no answer within 3600 seconds (flower.deadline)"
    assert torch.equal(refused.adapter.flat, silent.adapter.flat)
    p = torch.tensor(refused.weights, dtype=torch.float64) / sum(refused.weights)
    assert same(refused.memory["c"].flat, p.to(refused.adapter.flat) @ kept_c(nodes.grid, nodes, FED.task.init(0)))


@pytest.mark.slow
def test_a_poisoned_update_is_refused_by_its_norm():
    far = replaced("x", Array(1000 * ONES))
    assert outcome(far, max_update_norm=50.0)[1][0].startswith(
        "client 2 (node 3) is left out: its update has the norm 4"
    )
    assert outcome(None, max_update_norm=50.0)[2] == [0, 1, 3, 4, 5]
    _, events, used, _ = outcome(lambda content: None, max_update_norm=50.0)
    assert (events, used) == ((), [0, 1, 2, 3, 4, 5])


def test_with_too_few_usable_updates_a_round_changes_nothing():
    there, _ = over(FED, Bad.of(grid_of(FED), {(n, "2"): BAD["nan"][0] for n in (1, 2, 3)}), min_clients=4)
    _, records = last(there)
    assert records[2].events[-2:] == (
        "3 usable updates, fewer than flower.min_clients=4", "nothing was aggregated; the model stays as it is",
    )  # fmt: skip
    assert records[2].clients == ()
    assert records[2].scores == records[1].scores
    assert len(records[3].clients) == 6


@pytest.mark.slow
def test_a_run_ends_after_three_rounds_in_a_row_that_change_nothing():
    fed = federation(LowRank(), num_rounds=9)
    there, _ = over(fed, Bad.of(grid_of(fed), {(n, str(t)): None for n in range(1, 7) for t in (2, 4, 5, 6)}))
    with pytest.raises(UserError, match="that makes 3 such rounds in a row; the run can be resumed"):
        last(there)


@pytest.mark.slow
def test_a_node_that_dies_in_a_round_is_left_out_until_it_is_back():
    for new in (None, 9):  # under its key, or as a stranger
        grid = Bad.of(grid_of(federation(LowRank())), {(3, "2"): None})
        fed = federation(LowRank(), num_rounds=5)
        there, nodes = over(fed, grid)
        seen, before = [], there.task.evaluate

        def evaluate(adapter, personal=None, grid=grid, new=new, seen=seen, before=before):
            seen.append(1)
            if len(seen) == 3:  # after round 2, in which it died
                grid.offline.add(3)
            if len(seen) == 4:
                grid.offline.clear()
                restarted(grid, 3, new)
            return before(adapter, personal)

        there.task.evaluate = evaluate
        _, records = last(there)
        assert [2 in [c.client for c in r.clients] for r in records] == [False, True, False, False, True, True]
        assert records[3].events == ("client 2 is not connected",)
        downs = [r.bytes_down * 6 // records[1].bytes_down for r in records[1:]]
        assert downs == [6, 6, 5, 6, 6]  # it was sent the model when it died, and nothing while it was away
        assert nodes.ids[2] == (new or 3)
        assert records[4].events == ()


def join_events(grid, **options):
    said = []
    there, nodes = over(FED, grid, say=said.append, **options)
    return said, there, nodes


@pytest.mark.parametrize(
    ("fact", "value"), [("layout", "0123456789abcdef"), ("torch", "1.13"), ("fedfault", "0.0.9")], ids=str
)
def test_a_site_that_does_not_fit_is_refused_with_the_reason_on_both_sides(fact, value, caplog):
    grid = grid_of(FED, facts={1: {fact: value}})
    with caplog.at_level(logging.ERROR, "flwr"):
        logging.getLogger("flwr").propagate = True
        told, there, nodes = join_events(grid)
    assert told[0].startswith(f"node 2 is refused: {fact} ")
    assert value in told[0]
    assert told[1] == "have not joined, and take no part in this run: client 1"
    assert any("fedfault: refused" in m and value in m for m in caplog.messages)
    _, records = last(there)
    assert [c.client for c in records[-1].clients] == [0, 2, 3, 4, 5]
    assert 2 not in nodes.ids.values()


def test_the_server_checks_what_a_node_says_of_itself():
    """A node that is silent about the difference does not get in by it."""

    class Liar(Bad):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            for reply in replies:
                if reply.metadata.message_type == "query" and reply.metadata.src_node_id == 2 and reply.has_content():
                    reply.content["config"]["layout"] = "forged"
            return replies

    told, _, nodes = join_events(Liar.of(grid_of(FED), {}))
    assert "layout forged at the node" in told[0]
    assert 1 not in nodes.ids


def test_two_nodes_that_are_the_same_client_are_both_refused(caplog):
    grid = grid_of(FED, clients=[0, 1, 2, 2, 3, 4])
    with caplog.at_level(logging.ERROR, "flwr"):
        logging.getLogger("flwr").propagate = True
        told, there, nodes = join_events(grid)
    assert told[0] == "node 3 is refused: nodes 3, 4 all say that they are client 2; only one may"
    assert sum("nodes 3, 4 all say that they are client 2" in m for m in caplog.messages) == 2  # each node's own log
    _, records = last(there)
    assert [c.client for c in records[-1].clients] == [0, 1, 3, 4]
    assert sorted(nodes.ids.values()) == [1, 2, 5, 6]


def test_a_second_node_of_a_client_that_is_here_is_refused_as_long_as_it_is():
    grid = grid_of(FED)
    there, nodes = over(FED, grid)
    grid.contexts[7] = grid_of(FED, clients=[0]).contexts[1]
    _, records = last(there)
    assert all(e == ("node 7 is refused: nodes 1, 7 all say that they are client 0; only one may",) for e in
               (r.events for r in records[1:]))  # fmt: skip
    assert nodes.ids[0] == 1
    grid.offline.add(1)
    assert nodes.admit_nodes() == []
    assert nodes.ids[0] == 7


def test_a_node_that_was_refused_may_come_back_mended():
    fed = federation(LowRank())
    grid = grid_of(fed, clients=[0, "empty", 2, 3, 4, 5])
    _, nodes = over(fed, grid)
    grid.offline.add(2)
    assert nodes.admit_nodes() == []
    grid.contexts[2].node_config["partition-id"] = 1
    grid.offline.clear()
    assert nodes.admit_nodes() == []
    assert nodes.ids[1] == 2


def test_a_node_that_is_only_silent_is_not_refused_for_good():
    class Slow(Bad):
        def pull_messages(self, message_ids):
            return [m for m in super().pull_messages(message_ids) if self.awake or m.metadata.src_node_id != 2]

    grid = Slow.of(grid_of(FED), {})
    grid.awake = False
    _, nodes = over(FED, grid, join_seconds=0.01)
    nodes.join_seconds = 7.0
    assert 1 not in nodes.ids
    assert nodes.admit_nodes() == ["node 2 does not join: no answer within 7 seconds (flower.join_seconds)"]
    grid.awake = True
    assert nodes.admit_nodes() == []
    assert nodes.ids[1] == 2


def test_a_site_without_data_is_refused():
    fed = federation(LowRank())
    told, _, nodes = join_events(grid_of(fed, clients=[0, "empty", 2, 3, 4, 5]))
    assert told[0] == "node 2 is refused: client 1 has no training data"
    assert 1 not in nodes.ids


def test_other_data_than_a_client_joined_with_is_refused():
    """A weight that changes on the way would make another mean of the same run."""
    _, nodes = over(FED, Bad.of(grid_of(FED), {}))
    nodes.sizes[2] = DataSize(1, 5, 5)
    nodes.ids.pop(2)
    (event,) = nodes.admit_nodes()
    assert event.startswith("node 3 is refused: client 2 joined with 1 examples (5 tokens) and now has 16")


def test_the_text_of_an_exception_stays_at_the_site():
    told, _, _ = join_events(grid_of(FED, clients=[0, "broken", 2, 3, 4, 5]))
    assert told[0] == "node 2 is refused: RuntimeError at the client; its log says more"


def test_too_few_clients_end_the_run_before_its_first_round():
    with pytest.raises(UserError, match="2 of 6 clients have joined in 0 seconds, missing 1, 3, 4, 5"):
        over(FED, grid_of(FED, clients=[0, 2]), min_clients=3)


def test_a_node_checks_what_the_server_sends():
    grid = grid_of(FED)
    over(FED, grid)
    config = ConfigRecord({"server-round": 1, "experiment": "{}"})
    wrong = {"x": Array(np.ones(3, np.float32)), "c": Array(ONES)}
    message = Message(RecordDict({"config": config, "arrays": ArrayRecord(wrong)}), 1, "train")
    (reply,) = grid.send_and_receive([message])
    assert "'x' is numpy.ndarray of float32 (3,)" in reply.error.reason


def test_what_no_server_can_do_is_refused_before_the_first_round():
    from fedfault.config.schema import Experiment

    for algorithm, aggregation, why in (
        ("ifca", "fedit", "needs at the server what clients keep"),
        ("clustered", "fedit", "needs at the clients what no message says"),
        ("fedavg", "flora", "adds to the frozen weights"),
    ):
        parts = {"algorithm": algorithm, "aggregation": {"name": aggregation}}
        exp = Experiment.model_validate({"federation": parts})
        with pytest.raises(UserError, match=why):
            check_remote(exp, federation(LowRank(), algorithm, aggregation))


def test_rounds_over_nodes_take_milliseconds():
    fed = federation(LowRank(), num_rounds=1, cohort_size=2)
    there, _ = over(fed, grid_of(fed))
    began = time.perf_counter()
    last(there)
    assert time.perf_counter() - began < 2  # 0.03 s on an idle machine


@pytest.mark.parametrize("weighting", ["examples", "tokens", "uniform"])
def test_who_joins_after_the_start_takes_no_part_and_is_told_so(weighting):
    """Weights are agreed at the start; a late client was trained in every round, and thrown away or averaged."""
    fed = federation(LowRank(), num_rounds=3)
    fed = replace(fed, work=replace(fed.work, weighting=weighting))
    grid = grid_of(fed)
    grid.offline.add(3)
    there, nodes = over(fed, grid)
    records = []
    for _, record in rounds(there, begin(there)):
        records.append(record)
        grid.offline.clear()
    assert nodes.ids[2] == 3
    for record in records[1:]:
        assert [c.client for c in record.clients] == [0, 1, 3, 4, 5]
    why = "client 2 takes no part: it had not joined when the run began, and weights are agreed then"
    assert records[-1].events == (why,)


def test_a_node_that_hangs_does_not_hold_the_start_longer_than_it_may_nor_keep_others_out(monkeypatch):
    """It held it for flower.deadline, an hour by default."""
    clock, asked = [0.0], []
    monkeypatch.setattr("fedfault.flower.server.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("fedfault.flower.server.time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    class Hangs(Bad):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            asked.append(timeout)
            replies = super().send_and_receive([m for m in messages if m.metadata.dst_node_id != 3])
            clock[0] += timeout * any(m.metadata.dst_node_id == 3 for m in messages)
            self.offline.discard(5)  # comes while the first answers are waited for
            return replies

    grid = Hangs.of(grid_of(FED), {})
    grid.offline.add(5)
    _, nodes = over(FED, grid, join_seconds=600.0)
    assert sorted(nodes.ids) == [0, 1, 3, 4, 5]
    assert asked[0] == 300
    assert clock[0] == pytest.approx(600, abs=2)


def test_a_node_that_hung_when_it_joined_holds_a_round_only_where_a_client_is_missing():
    """It was asked again in every round, and held each of them for flower.join_seconds."""
    joins = []

    class Hangs(Bad):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            joins.extend(m.metadata.dst_node_id for m in messages if m.metadata.group_id == "join")
            return super().send_and_receive([m for m in messages if m.metadata.dst_node_id not in hanging])

    hanging = {3}
    grid = Hangs.of(grid_of(FED), {})
    there, _ = over(FED, grid, join_seconds=0.05)
    joins.clear()
    at = iter(rounds(there, begin(there)))
    next(at)
    next(at)
    assert joins == []
    grid.offline.add(5)  # client 4 is away: node 3 might be it
    next(at)
    assert joins == [3]
