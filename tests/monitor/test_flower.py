"""`Watched` around Flower's own FedAvg: in Flower's simulation with a tiny PEFT model, and hook by hook."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
)

import fedfault as ff
from fedfault.flower.local import LocalGrid
from fedfault.runs.read import read_run

ALONE = ["unshare", "-n", "--"]  # only loopback, and that only once it is up


def make_grid(steps, losses, **told):
    """Nodes in this process: each moves the weight by its own step, and has the loss of the round.

    told: metrics of training in the place of a loss of 1 and of k + 1 examples; what is a function of the node's number k
    is told of evaluation, too.
    """
    app = ClientApp()

    def of_node(k):
        return {name: value(k) for name, value in told.items() if callable(value)}

    @app.train()
    def train(message, context):
        k = context.node_config["partition-id"]
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + steps[k])})
        metrics = MetricRecord({"train_loss": 1.0, "num-examples": k + 1} | told | of_node(k))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        loss = losses[message.content["config"]["server-round"]]
        own = of_node(context.node_config["partition-id"])
        metrics = MetricRecord({"eval_loss": loss if isinstance(loss, list) else float(loss), "num-examples": 1} | own)
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return LocalGrid(app, [{"partition-id": k} for k in range(len(steps))])


def start(strategy, steps, losses, told=(), **options):
    first = ArrayRecord({"w": Array(np.zeros(2))})
    return strategy.start(make_grid(steps, losses, **dict(told)), first, num_rounds=len(losses) - 1, **options)


@pytest.mark.slow
def test_a_strategy_that_is_watched_gives_the_same_arrays(tmp_path):
    steps, losses = [np.array([3.0, 0.0]), np.array([0.0, 6.0])], [4.0, 3.0, 2.0]
    plain = start(FedAvg(), steps, losses)
    watched = start(ff.Watched(FedAvg(), "mine", results_dir=tmp_path), steps, losses)
    assert np.array_equal(plain.arrays["w"].numpy(), watched.arrays["w"].numpy())
    record = read_run(tmp_path / "mine").records[1]
    seen = sorted((c.weight, c.loss, c.update_norm) for c in record.clients)
    assert seen == [(pytest.approx(1 / 3), 1.0, 3.0), (pytest.approx(2 / 3), 1.0, 6.0)]
    assert record.probes["server_norm"] == pytest.approx(np.hypot(1.0, 4.0))  # a third of 3, two thirds of 6
    assert record.scores["validation"].loss == 3.0
    assert record.scores["client/1"].loss == 3.0


@pytest.mark.slow
def test_a_loss_that_diverges_is_told_in_flowers_log(tmp_path, caplog):
    strategy = ff.Watched(FedAvg(), "mine", results_dir=tmp_path)
    with caplog.at_level("WARNING", logger="flwr"):
        start(strategy, [np.ones(2)] * 2, [0, 4.0, 3.0, 3.5, 4.0])
    assert "round 4: alarm: divergence" in caplog.text
    assert strategy.monitor.verdict["state"] == "failed"
    assert ff.open(tmp_path / "mine").verdict.state == "failed"


def test_the_loss_of_evaluate_fn_counts_where_there_is_one(tmp_path):
    strategy = ff.Watched(FedAvg(fraction_evaluate=0.0), "mine", results_dir=tmp_path)
    start(strategy, [np.ones(2)] * 2, [0, 0, 0], evaluate_fn=lambda round, arrays: MetricRecord({"loss": 4.0 - round}))
    assert read_run(tmp_path / "mine").losses("validation") == ([0, 1, 2], [4.0, 3.0, 2.0])


def test_rounds_that_evaluate_fn_leaves_out_have_no_loss_and_not_the_clients(tmp_path):
    strategy = ff.Watched(FedAvg(), "mine", results_dir=tmp_path)
    every_third = {0: MetricRecord({"loss": 4.0}), 3: MetricRecord({"loss": 3.0})}
    start(strategy, [np.ones(2)] * 2, [0, 2.0, 2.0, 2.0, 2.0], evaluate_fn=lambda round, arrays: every_third.get(round))
    run = read_run(tmp_path / "mine")
    assert run.losses("validation") == ([0, 3], [4.0, 3.0])
    assert run.losses("client/0") == ([1, 2, 3, 4], [2.0] * 4)
    assert run.findings == ()


def test_an_evaluate_fn_without_a_loss_is_told_once(tmp_path, caplog):
    strategy = ff.Watched(FedAvg(), "mine", results_dir=tmp_path)
    with caplog.at_level("WARNING", logger="flwr"):
        start(
            strategy, [np.ones(2)] * 2, [0, 2.0, 2.0], evaluate_fn=lambda round, arrays: MetricRecord({"accuracy": 0.5})
        )
    assert (
        caplog.text.count("evaluate_fn returned accuracy, none of which is taken for the loss: name it by loss=") == 1
    )
    assert read_run(tmp_path / "mine").losses("validation") == ([], [])


STRATEGIES = {
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1),
    "Krum": lambda: Krum(num_malicious_nodes=0),
    "FedAdam": FedAdam,
    "clipping": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_updates_are_measured_as_they_were_sent_whatever_the_strategy_does_to_the_replies(tmp_path, name):
    strategy = ff.Watched(STRATEGIES[name](), "mine", results_dir=tmp_path)
    start(strategy, [np.array([3.0, 0.0]), np.array([0.0, 6.0]), np.array([0.0, 30.0])], [0, 2.0])
    record = read_run(tmp_path / "mine").records[1]
    assert sorted(c.update_norm for c in record.clients) == pytest.approx([3.0, 6.0, 30.0])
    assert record.events == ()


@pytest.mark.parametrize(
    "around", [lambda own: own, lambda own: DifferentialPrivacyServerSideFixedClipping(own, 0.0, 100.0, 2)]
)
def test_clients_count_by_the_metric_that_the_strategy_weighs_them_by(tmp_path, around):
    strategy = ff.Watched(around(FedAvg(weighted_by_key="tokens")), "mine", results_dir=tmp_path)
    told = {"tokens": lambda k: 10**k, "eval_loss": lambda k: 12.0 + 11 * k}
    start(strategy, [np.ones(2)] * 2, [0, 2.0], told)
    record = read_run(tmp_path / "mine").records[1]
    assert sorted(c.weight for c in record.clients) == pytest.approx([1 / 11, 10 / 11])
    assert record.scores["validation"].loss == pytest.approx(22.0)


class Factors(FedAvg):
    """A strategy that makes the server's factors of the clients' by a function of its own."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def aggregate_train(self, server_round, replies):
        records = [m.content["arrays"] for m in replies]
        sent = {name: np.stack([r[name].numpy() for r in records]) for name in records[0]}
        return ArrayRecord({name: Array(self.make(name, y)) for name, y in sent.items()}), MetricRecord()


@pytest.mark.parametrize(
    ("make", "alarm"),
    [
        (lambda name, y: y.mean(0), None),
        (lambda name, y: np.median(y, 0), None),
        (lambda name, y: y.sum(0) / 4, "add up to 0.75 and not to 1"),
        (lambda name, y: y.mean(0) if "_A" in name else np.average(y, 0, [1, 1, 4]), "by weights of their own"),
    ],
)
def test_a_strategy_that_makes_no_average_is_named(tmp_path, make, alarm):
    app = ClientApp()

    @app.train()
    def train(message, context):
        k, t = context.node_config["partition-id"], message.content["config"]["server-round"]
        g = np.random.default_rng((k, t))
        moved = {n: Array(a.numpy() + 0.1 * g.normal(size=60)) for n, a in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    names = ("q_proj.lora_A.weight", "q_proj.lora_B.weight")
    first = ArrayRecord({n: Array(np.random.default_rng(9).normal(size=60)) for n in names})
    strategy = ff.Watched(Factors(make), "mine", results_dir=tmp_path)
    grid = LocalGrid(app, [{"partition-id": k} for k in range(3)])
    strategy.strategy.fraction_evaluate = 0.0
    strategy.start(grid, first, num_rounds=3)
    alarms = [f for f in read_run(tmp_path / "mine").findings if f.level == "alarm"]
    assert [f.detector for f in alarms] == ([] if alarm is None else ["wrong_average"])
    assert alarm is None or alarm in alarms[0].sentence


def test_clients_that_send_updates_in_the_place_of_arrays_are_told(tmp_path, caplog):
    app = ClientApp()

    @app.train()
    def train(message, context):
        g = np.random.default_rng(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": 1})
        moved = ArrayRecord({"w": Array(0.1 * g.normal(size=60))})
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    strategy = ff.Watched(FedAvg(fraction_evaluate=0.0), "mine", results_dir=tmp_path)
    grid = LocalGrid(app, [{"partition-id": k} for k in range(3)])
    with caplog.at_level("WARNING", logger="flwr"):
        strategy.start(grid, ArrayRecord({"w": Array(np.ones(60))}), num_rounds=2)
    assert caplog.text.count("all clients sent less than half of what they got") == 1


class Fixed(FedAvg):
    """A strategy that takes arrays of any shape."""

    def aggregate_train(self, server_round, replies):
        return ArrayRecord({"w": Array(np.array([3.0, 4.0]))}), MetricRecord()


def test_a_client_whose_arrays_have_another_shape_is_named_and_keeps_its_share(tmp_path, caplog):
    strategy = ff.Watched(Fixed(), "mine", results_dir=tmp_path)
    with caplog.at_level("WARNING", logger="flwr"):
        start(strategy, [np.ones((2, 2)), np.ones(2)], [0, 2.0])
    record = read_run(tmp_path / "mine").records[1]
    assert [(c.client, c.weight) for c in record.clients] == [(0, pytest.approx(1 / 3)), (1, pytest.approx(2 / 3))]
    (event,) = record.events
    assert re.fullmatch(
        r"updates not measured, as arrays have other shapes than those that were sent: client 0 \(node \d+\)", event
    )
    assert event in caplog.text
    assert "update_norm" not in record.probes
    assert record.probes["server_norm"] == 5.0


def test_a_loss_that_is_a_list_is_left_out_and_told_once(tmp_path, caplog):
    strategy = ff.Watched(FedAvg(), "mine", results_dir=tmp_path)
    with caplog.at_level("WARNING", logger="flwr"):
        start(strategy, [np.ones(2)] * 2, [0, [3.0, 2.0], 2.0], {"train_loss": [1.5, 1.0]})
    assert caplog.text.count("train_loss is a list, and a loss is one number, so that it is left out") == 1
    assert caplog.text.count("eval_loss is a list") == 1
    first, second = read_run(tmp_path / "mine").records[1:]
    assert [c.weight for c in first.clients] == pytest.approx([1 / 3, 2 / 3])
    assert all(math.isnan(c.loss) for c in first.clients)
    assert not first.scores
    assert second.scores["validation"].loss == 2.0


def test_clients_count_equally_where_the_examples_of_one_are_not_known():
    from fedfault.monitor.flower import _read_sizes

    assert _read_sizes([{"num-examples": 3}, {"num-examples": 1.0}]) == [3.0, 1.0]
    for odd in ({}, {"num-examples": [1, 2]}, {"num-examples": -1}, {"num-examples": math.inf}):
        assert _read_sizes([{"num-examples": 300}, odd]) is None
    assert _read_sizes([{"num-examples": 0}]) is None


def test_a_strategy_inside_keeps_its_own_attributes(tmp_path):
    strategy = ff.Watched(FedAvg(fraction_train=0.5), "mine", results_dir=tmp_path)
    assert strategy.fraction_train == 0.5
    arrays = ArrayRecord({"w": Array(np.zeros(1))})
    assert len(list(strategy.configure_train(1, arrays, ConfigRecord(), make_grid([np.ones(1)] * 4, [])))) == 2


def namespaces() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "fedfault[flower]"')
@pytest.mark.skipif(not namespaces(), reason="this user may not make a network namespace (unshare -n)")
def test_in_flowers_simulation_it_finds_a_divergence_and_is_silent_on_three_iid_runs(tmp_path):
    home = {"FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    runs = ["iid-1:1", "iid-2:2", "iid-3:3", "bad:4:broken"]
    script = [sys.executable, str(Path(__file__).with_name("flowered.py")), str(tmp_path / "results"), *runs]
    command = [*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "-", *script]
    done = subprocess.run(
        command, env={**os.environ, **home, **path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {run.name: run for run in ff.runs(tmp_path / "results")}
    for name in ("iid-1", "iid-2", "iid-3"):
        assert found[name].data.findings == (), name
        losses = found[name].data.losses("validation")[1]
        assert losses[-1] < losses[0]
    assert "divergence" in {f.detector for f in found["bad"].data.findings if f.level == "alarm"}
    assert "alarm: divergence" in done.stderr + done.stdout
