"""Several processes give the numbers of one; one that ends, or cannot, ends the job with the reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pair
from fedfault import session
from fedfault.clients import at_clients
from fedfault.config import load
from fedfault.config.schema import Experiment
from fedfault.distributed import Failure, Greeting, Member, Order, Team, cut, shares, together
from fedfault.engine import begin, rounds
from fedfault.errors import UserError
from fedfault.progress import Progress
from fedfault.registry import build
from fedfault.runs import read_records
from test_session import SMALL
from toys import LowRank, federation

LONG = [*SMALL, "federation.num_rounds=6", "model.precision=fp32", "evaluation.general=none"]


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
    assert shares(cost, n) == expected


def test_models_and_their_rows_are_cut_by_rows():
    a, b = torch.zeros(1), torch.ones(1)
    parts = cut([(a, torch.arange(3)), (b, torch.arange(10, 13))], 4)
    assert [[(float(x), rows.tolist()) for x, rows in part] for part in parts] == [
        [(0, [0, 1])],
        [(0, [2]), (1, [10])],
        [(1, [11])],
        [(1, [12])],
    ]
    assert cut([(a, torch.arange(1))], 3)[1:] == [[], []]


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
        return together(
            asked, {rank: at_clients(fed, asked.only(rows)) for rank, rows in enumerate(([0], [1, 2, 3], [4, 5]))}
        )

    *_, (whole, expected) = rounds(fed, begin(fed))
    *_, (after, record) = rounds(replace(fed, remote=remote), begin(fed))
    assert pair.same(after.adapter.flat, whole.adapter.flat)
    assert all(pair.same(a.flat, whole.clients[name].flat) for name, a in after.clients.items())
    assert record.probes == pytest.approx(expected.probes, rel=1e-4)
    assert (record.bytes_up, record.bytes_down) == (expected.bytes_up, expected.bytes_down)


def test_memory_that_ran_out_in_one_part_is_said_and_remembered_for_all():
    fed = federation(LowRank(), num_rounds=1)

    def remote(fed, asked):
        parts = {rank: at_clients(fed, asked.only([2 * rank, 2 * rank + 1])) for rank in range(3)}
        parts[1] = replace(parts[1], events=("out of memory: 1 clients in a pass from now on",), clients_per_pass=1)
        return together(asked, parts)

    *_, (state, record) = rounds(replace(fed, remote=remote), begin(fed))
    assert record.events == ("process 1: out of memory: 1 clients in a pass from now on",)
    assert state.clients_per_pass == 1


def test_what_is_the_same_in_every_part_is_held_once():
    fed, seen = federation(LowRank(), num_rounds=1), []

    def remote(fed, asked):
        seen.append(together(asked, {rank: at_clients(fed, asked.only([3 * rank, 3 * rank + 1])) for rank in range(2)}))
        return at_clients(fed, asked)

    list(rounds(replace(fed, remote=remote), begin(fed)))
    (done,) = seen
    assert done.up["x"].flat is done.trained.adapter.flat
    assert done.start.stride(0) == 0


def test_a_process_that_cannot_says_why():
    exp = Experiment.model_validate({"data": {"dataset": "text", "path": "/nowhere"}})
    answer = Member().answer(Order("prepare", (exp.model_dump_json(),)))
    assert isinstance(answer, Failure)
    assert "/nowhere" in answer.why


def test_machines_with_other_files_are_refused():
    team = Team({1: Greeting("b", 0)})
    with pytest.raises(UserError, match=r"process 1 of 2, on b, has another corpus x, not y; give all machines"):
        team._check(1, {"model": "m", "corpus": "y"}, {"model": "m", "corpus": "x"})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(*words: str, **variables: str) -> list[subprocess.Popen[str]]:
    """Two processes as torchrun starts them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    found = []
    for rank in range(2):
        env = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, *words]
        found.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return found


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "fedfault",
        *words,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """Of every run in `pair.RUNS`: how training in two processes compares with training in one."""
    file = tmp_path_factory.mktemp("pair") / "found.json"
    both = started(str(Path(pair.__file__)), str(file), FEDFAULT_CACHE=str(file.parent))
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[1] == ""
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("run", pair.RUNS)
def test_two_processes_give_the_numbers_of_one(runs, run):
    found = runs[run]
    assert found["adapter"]
    assert found["moved"]
    assert all(found["memory"].values())
    for numbers in ("scores", "probes"):
        assert all(two == pytest.approx(one, rel=1e-4, abs=1e-6) for one, two in found[numbers].values())
    assert found["bytes"][0] == found["bytes"][1]


@pytest.mark.slow
def test_each_process_trains_its_part(runs):
    here = {name: found["trained here"] for name, found in runs.items()}
    assert here.pop("a lone client") == []
    assert all(clients == [2, 2] for clients in here.values()), here
    assert runs["scaffold"]["memory"].keys() == {"c"}


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_job_and_torchrun_resumes_it_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render", lambda path: path / "report.html")
    settings = [*LONG, f"logging.results_dir={tmp_path}", "federation.algorithm=scaffold"]
    first, second = started("-m", "fedfault", "run", "quickstart", *settings, "experiment_name=two")
    rounds_file = tmp_path / "two/rounds.jsonl"
    while len(read_records(rounds_file)) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second.kill()
    said = first.communicate(timeout=60)[1]  # it would wait for a day
    second.communicate()
    assert (first.returncode, second.returncode) == (2, -signal.SIGKILL)
    assert "error: process 1 of 2, on " in said
    assert "has ended; `fedfault resume RUN` goes on from the last finished round" in said
    assert "Traceback" not in said

    done = torchrun("resume", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'two' / 'report.html'}"
    assert done.stderr.count("continuing after round") == 1
    session.start(load("quickstart", [*settings, "experiment_name=one"]), Progress(quiet=True))
    one, two = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert all(pair.same(one[name], two[name]) for name in one)
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert (manifest["status"], manifest["processes"]) == ("finished", 2)


@pytest.mark.slow
def test_bad_input_under_torchrun_is_said_once(tmp_path):
    done = torchrun("run", "quickstart", "federation.num_round=1", f"logging.results_dir={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.count("did you mean 'num_rounds'") == 1
    assert "first process of the job has ended" not in done.stderr
    assert not list(tmp_path.iterdir())
