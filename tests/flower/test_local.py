"""Flower's own strategies and ClientApps in this process, unchanged."""

from __future__ import annotations

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import FedAvg, FedMedian

from fedfault.config.loading import load
from fedfault.flower.local import LocalGrid
from fedfault.setup.experiment import prepare
from fedfault.testing.toys import LowRank, Quadratic, federation
from flowers import grid_of, last, over, same


def counting() -> ClientApp:
    """As a Flower user writes it: client k moves by k + 1, has k + 1 examples, and remembers how often it was asked."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        k = int(context.node_config["partition-id"]) + 1
        if k == context.node_config.get("broken"):
            raise RuntimeError("broken")
        times = context.state["times"]["n"] + 1 if "times" in context.state else 1
        context.state["times"] = MetricRecord({"n": times})
        moved = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + k)})
        return Message(
            RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": k, "times": times})}),
            reply_to=message,
        )

    return app


def run(grid, strategy=FedAvg, rounds=2, x=None, config=None, **options):
    made = strategy(**{"fraction_evaluate": 0.0, "min_available_nodes": 3, "min_train_nodes": 3, **options})
    arrays = ArrayRecord({"w": Array(np.zeros(4, np.float32))}) if x is None else x
    return made.start(grid, arrays, num_rounds=rounds, train_config=config, evaluate_config=config)


def test_a_flower_strategy_gives_the_mean_by_hand():
    """(1*1 + 2*2 + 3*3) / 6 = 7/3 a round; the median of 1, 2, 3 is 2."""
    found = run(LocalGrid(counting(), LocalGrid.partitions(3)))
    assert found.arrays["w"].numpy() == pytest.approx([14 / 3] * 4)
    assert found.train_metrics_clientapp[2]["times"] == 2
    assert run(LocalGrid(counting(), LocalGrid.partitions(3)), FedMedian).arrays["w"].numpy() == pytest.approx(
        [4.0] * 4
    )


def test_two_runs_are_the_same_to_the_bit():
    ends = [run(LocalGrid(counting(), LocalGrid.partitions(9)), rounds=3).arrays["w"].numpy() for _ in range(2)]
    assert ends[0].tobytes() == ends[1].tobytes()


def test_a_client_app_that_raises_is_an_error_reply():
    configs = [{**c, "broken": 2} for c in LocalGrid.partitions(3)]
    grid = LocalGrid(counting(), configs)
    message = Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(4))})}), 2, "train")
    (reply,) = grid.send_and_receive([message])
    assert (reply.error.code, reply.error.reason, reply.metadata.src_node_id) == (2, "broken", 2)
    assert run(LocalGrid(counting(), configs)).arrays["w"].numpy() == pytest.approx([2 * (1 + 9) / 4] * 4)


def test_nodes_answer_in_their_order_and_once():
    grid = LocalGrid(counting(), LocalGrid.partitions(3))
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(4))})})
    ids = grid.push_messages([Message(content, node, "train") for node in (3, 1, 2)])
    assert [m.metadata.src_node_id for m in grid.pull_messages(ids)] == [1, 2, 3]
    assert grid.pull_messages(ids) == []
    grid.offline.add(2)
    assert list(grid.get_node_ids()) == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", ("fedprox", {"mu": 1.0})])
def test_flowers_fedavg_drives_our_clients_to_our_numbers(algorithm):
    """An unmodified strategy knows nothing of runs, ranks and layouts: `x` in, `x` and a weight out."""
    fed = federation(LowRank(), algorithm, num_rounds=3)
    x = ArrayRecord({"x": Array(fed.task.init(0).flat.numpy())})
    counts = {"min_available_nodes": 6, "min_train_nodes": 6, "min_evaluate_nodes": 6, "fraction_evaluate": 1.0}
    found = run(grid_of(fed), rounds=3, x=x, config=ConfigRecord({"experiment": "{}"}), **counts)
    state, records = last(fed)
    assert same(torch.from_numpy(found.arrays["x"].numpy()), state.adapter.flat)
    assert found.evaluate_metrics_clientapp[3]["loss"] == pytest.approx(records[-1].scores["validation"].loss, rel=1e-4)


def test_flowers_mods_see_the_updates_of_training():
    """Fixed clipping as a mod, here without noise: a round moves the mean by no more than the norm."""
    fed = federation(LowRank(), num_rounds=1)
    start = fed.task.init(0).flat
    free, _ = last(over(fed, grid_of(fed))[0])
    kept, _ = last(over(fed, grid_of(fed, mods=[LocalDpMod(0.01, 0.0, 1.0, 1e-5)]))[0])
    assert float((free.adapter.flat - start).norm()) > 0.02
    assert 0.001 < float((kept.adapter.flat - start).norm()) <= 0.01 + 1e-6


@pytest.mark.long
def test_conversations_over_nodes_give_the_numbers_and_the_answers_of_one_process():
    given = (
        "federation.total_clients=2 federation.participation_rate=1.0 federation.num_rounds=2 training.local_steps=2 "
        "evaluation.every=2 evaluation.generate=1 evaluation.max_blocks=1 evaluation.general=none data.max_samples=80 "
        "model.precision=fp32 training.optimizer=sgd training.lr=0.1"  # Adam makes a step of a gradient of rounding
    )
    fed = prepare(load("instruct/quick", given.split()).experiment).federation
    one, records = last(fed)
    state, found = last(over(fed, grid_of(fed))[0])
    assert same(state.adapter.flat, one.adapter.flat)
    here, there = records[-1].scores["validation"], found[-1].scores["validation"]
    assert there.loss == pytest.approx(here.loss, rel=1e-5)
    assert there.metrics == here.metrics
    assert "exact_match" in here.metrics


def test_numbers_of_double_precision_travel_in_double_precision():
    fed = federation(Quadratic([[1.0], [2.0]], [[0.1], [1.0]], [3, 5]), num_rounds=3)
    assert torch.equal(last(over(fed, grid_of(fed))[0])[0].adapter.flat, last(fed)[0].adapter.flat)
