"""The weights by which a server has averaged, solved for: found where it has averaged, and nothing said where it has not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedfault.monitor.files import diagnose_files
from fedfault.monitor.server import compare_shares, measure_average, name_lone_client, sends_updates, solve_average
from fedfault.runs.read import read_run


def solve(server, seed=0, clients=4, size=200, copies=False):
    """The average of a server, a function of the model before (P,) and of the clients' (K, P), in one round."""
    g = np.random.default_rng(seed)
    start = g.normal(size=size)
    sent = start + 0.05 * (g.normal(size=(clients, size)) + g.normal(size=size))
    sent[1] = sent[0] if copies else sent[1]
    rows = np.stack([*(sent - start), server(start, sent) - start, start])
    return solve_average(rows @ rows.T, clients, size)


def weigh(*weights):
    return lambda x, y: np.average(y, axis=0, weights=weights)


@pytest.mark.parametrize(
    ("server", "weights", "kept", "total"),
    [
        (weigh(1, 1, 1, 1), [0.25] * 4, 0, 1),
        (weigh(1, 2, 3, 4), [0.1, 0.2, 0.3, 0.4], 0, 1),
        (lambda x, y: y[0], [1, 0, 0, 0], 0, 1),
        (lambda x, y: y.sum(0), [1] * 4, 0, 4),
        (lambda x, y: y.sum(0) / 5, [0.2] * 4, 0, 0.8),
        (lambda x, y: y[:3].sum(0) / 4, [0.25, 0.25, 0.25, 0], 0, 0.75),
        (lambda x, y: x + 2 * (y.mean(0) - x), [0.5] * 4, -1, 1),
        (lambda x, y: x - (y.mean(0) - x), [-0.25] * 4, 2, 1),
        (lambda x, y: 0.5 * x + 0.5 * y.mean(0), [0.125] * 4, 0.5, 1),
        (lambda x, y: x + y.mean(0), [0.25] * 4, 1, 2),
    ],
)
def test_weights_are_found_with_what_is_kept_of_the_model_before(server, weights, kept, total):
    found = solve(server)
    assert found.weights == pytest.approx(weights, abs=1e-6)
    assert (found.kept, found.total) == (pytest.approx(kept, abs=1e-6), pytest.approx(total, abs=1e-6))


@pytest.mark.parametrize(
    "server",
    [
        lambda x, y: np.median(y, axis=0),
        lambda x, y: y.mean(0) + 0.01 * np.random.default_rng(1).normal(size=x.shape),
        lambda x, y: x + 0.01 * np.sign(y.mean(0) - x),
        lambda x, y: x,
        lambda x, y: x * np.nan,
    ],
    ids=["median", "noise", "signs", "still", "not finite"],
)
def test_a_server_that_does_something_else_is_not_said_to_average(server):
    assert solve(server) is None


def test_what_rounding_leaves_is_no_excess():
    """Rounding of 0.95 % of the step, and by chance 0.6 % of it along the model: weights that add up to 1 leave over 1 %."""

    def rounded(x, y):
        step = y.mean(0) - x
        noise = np.random.default_rng(5).normal(size=x.shape)
        basis = np.linalg.qr(np.stack([*(y - x), x]).T)[0]
        noise -= basis @ (basis.T @ noise)
        along = x - (y - x).T @ np.linalg.lstsq((y - x).T, x, rcond=None)[0]
        length = np.linalg.norm(step)
        rest = 0.0095 * noise / np.linalg.norm(noise) + 0.006 * along / np.linalg.norm(along)
        return x + step + length * rest

    assert solve(rounded) is None


def test_where_two_clients_sent_the_same_or_numbers_are_few_nobody_can_tell():
    assert solve(weigh(1, 1, 1, 1), copies=True) is None
    assert solve(weigh(1, 1, 1, 1), size=16) is None


def test_of_a_client_that_sent_what_it_got_the_weight_is_not_known():
    found = solve(lambda x, y: (x + y[1:].sum(0)) / 4)
    assert found.weights == pytest.approx([0, 0.25, 0.25, 0.25], abs=1e-6)
    rows = np.stack([np.zeros(50), *np.eye(3, 50), np.eye(3, 50).sum(0) / 4])
    assert np.isnan(solve_average(rows @ rows.T, 4, 50).weights).tolist() == [True, False, False, False]


def test_averages_of_the_parts_say_what_is_wrong_with_them():
    right, other, first = solve(weigh(1, 1, 1, 1)), solve(weigh(1, 1, 1, 5)), solve(lambda x, y: y[0])
    assert measure_average({}) == {}
    fine = {"average_total": 1.0, "average_split": 0.0, "average_step": pytest.approx(1.0)}
    assert measure_average({"lora_A": right, "lora_B": right}) == fine
    assert measure_average({"lora_A": right, "lora_B": other})["average_split"] == pytest.approx(0.375)
    assert measure_average({"lora_A": right, "lora_B": first})["average_split"] == 0.0  # B stays with its client
    assert measure_average({"lora_A": solve(lambda x, y: y.sum(0))})["average_total"] == pytest.approx(4.0)
    assert (name_lone_client({"lora_A": first, "lora_B": first}), name_lone_client({"lora_A": right})) == (0, None)
    assert sends_updates({"lora_A": solve(lambda x, y: x + y.mean(0))})
    assert not sends_updates({"lora_A": right})


def test_shares_that_are_not_those_that_were_told_are_named():
    told = compare_shares(solve(weigh(1, 1, 1, 1)), [1, 1, 1, 5], [7, 8, 9, 3])
    assert "client 7 by 0.25 and not by 0.12" in told
    assert "client 3 by 0.25 and not by 0.62" in told
    assert compare_shares(solve(weigh(1, 1, 1, 5)), [10, 10, 10, 50], range(4)) is None
    assert compare_shares(None, [1, 1], range(2)) is None


def write(folder, A, B):
    folder.mkdir(parents=True)
    names = ("base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight")
    save_file(dict(zip(names, (A, B), strict=True)), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


SERVERS = {
    "mean": (lambda x, y, part: y.mean(0), "by weights 0.25, in 4 of 4 rounds", None),
    "first": (lambda x, y, part: y[0], "took the adapter of client 0 alone, in 4 of 4 rounds", None),
    "without the last": (lambda x, y, part: y[:3].mean(0), "client 3 has no weight in the server's adapter", None),
    "twice": (lambda x, y, part: 2 * y.mean(0) - x, "-1 times the one before and 2 times the clients' mean", None),
    "median": (lambda x, y, part: np.median(y, axis=0), "no mean of the clients' by whatever weights", None),
    "one more": (lambda x, y, part: y.sum(0) / 5, "0 times the one before and 0.8 times", "add up to 0.8 and not to 1"),
    "backwards": (lambda x, y, part: 2 * x - y.mean(0), "2 times the one before", "moves against what clients"),
    "A otherwise": (
        lambda x, y, part: np.average(y, axis=0, weights=[1, 1, 1, 5 - 4 * part]),
        "by weights 0.125 to 0.625",
        "averages the factors of the adapters by weights of their own",
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_what_the_server_made_of_the_adapters_is_said(tmp_path, name):
    server, line, alarm = SERVERS[name]
    g = np.random.default_rng(0)
    start = [g.normal(size=(2, 40)), 0.1 * g.normal(size=(30, 2))]
    write(tmp_path / "a" / "round_0" / "server", *start)
    for t in range(1, 5):
        sent = [0.05 * g.normal(size=(4, *x.shape)) + x for x in start]
        for k in range(4):
            write(tmp_path / "a" / f"round_{t}" / f"client_{k}", *(y[k] for y in sent))
        start = [server(x, y, part) for part, (x, y) in enumerate(zip(start, sent, strict=True))]
        write(tmp_path / "a" / f"round_{t}" / "server", *start)
    assert line in diagnose_files(tmp_path / "a", out=tmp_path / "out")
    alarms = [f for f in read_run(tmp_path / "out").findings if f.level == "alarm"]
    assert [f.detector for f in alarms] == ([] if alarm is None else ["wrong_average"])
    assert alarm is None or (alarm in alarms[0].sentence and alarms[0].round == 2)


@pytest.mark.parametrize(
    ("begins", "said", "alarms"),
    [
        ("from it", "the server's adapters are those that rounds began with", []),
        ("from the one before", "it is a round late", ["no_federation"]),
    ],
)
def test_an_adapter_that_a_round_began_with_is_told_from_a_server_that_is_late(tmp_path, begins, said, alarms):
    """Both save the mean of the round before; clients start from it, or from the mean of the round before that."""
    g = np.random.default_rng(0)
    server = [g.normal(size=(2, 40)), np.zeros((30, 2))]
    start = server
    for t in range(1, 6):
        write(tmp_path / "a" / f"round_{t}" / "server", *server)
        sent = [0.05 * g.normal(size=(4, *x.shape)) + x for x in (server if begins == "from it" else start)]
        for k in range(4):
            write(tmp_path / "a" / f"round_{t}" / f"client_{k}", *(y[k] for y in sent))
        start, server = server, [y.mean(0) for y in sent]
    told = diagnose_files(tmp_path / "a", out=tmp_path / "out")
    assert said in told
    run = read_run(tmp_path / "out")
    assert [f.detector for f in run.findings if f.level == "alarm"] == alarms
    if not alarms:
        assert "by weights 0.25, in 4 of 4 rounds" in told
        assert [r.probes.get("server_norm") is not None for r in run.records if r.round] == [True] * 4 + [False]


@pytest.mark.parametrize("adds", [False, True])
def test_clients_that_send_updates_in_the_place_of_adapters_are_told(tmp_path, adds):
    """The server adds their mean to what it has, as it should with updates, or takes it for the adapter."""
    g = np.random.default_rng(0)
    start = [g.normal(size=(2, 40)), np.zeros((30, 2))]
    write(tmp_path / "a" / "round_0" / "server", *start)
    for t in range(1, 5):
        sent = [0.05 * g.normal(size=(4, *x.shape)) for x in start]
        for k in range(4):
            write(tmp_path / "a" / f"round_{t}" / f"client_{k}", *(y[k] for y in sent))
        start = [adds * x + y.mean(0) for x, y in zip(start, sent, strict=True)]
        write(tmp_path / "a" / f"round_{t}" / "server", *start)
    told = diagnose_files(tmp_path / "a", out=tmp_path / "out")
    said = "it is updates and no adapters" if adds else "all clients sent less than half of what they got, in 1 of 4"
    assert said in told
    assert not [f for f in read_run(tmp_path / "out").findings if f.level == "alarm"]
