"""Several processes give the numbers of one; one that ends, or cannot, ends the job with the reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pair
from fedfault.config import load
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.parallel.distributed import Failure, Greeting, Member, Order, Team
from fedfault.runs.files import read_records
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from small import SMALL

LONG = [*SMALL, "federation.num_rounds=6", "model.precision=fp32", "evaluation.general=none"]


def test_a_process_that_cannot_says_why():
    exp = Experiment.model_validate({"data": {"dataset": "text", "path": "/nowhere"}})
    answer = Member().answer(Order("prepare", (exp.model_dump_json(),)))
    assert isinstance(answer, Failure)
    assert "/nowhere" in answer.why


@pytest.mark.slow
def test_a_process_that_takes_in_other_settings_still_trains_the_one_client_who_has_all_data():
    """It took that one for one of N, with the steps of one: a run on several processes had other numbers after an alarm."""
    exp = load("quickstart", [*SMALL, "federation.centralised=true"]).experiment
    member = Member()
    member.prepare(exp.model_dump_json())
    assert member.prepared is not None
    before = member.prepared.federation
    other = exp.model_copy(update={"training": exp.training.model_copy(update={"lr": 1e-4})})
    member._catch_up(member.prepared, Order("train", (), other.model_dump_json()))
    after = member.prepared.federation
    assert after.work.lr == 1e-4
    assert (after.total_clients, after.work.steps) == (1, before.work.steps)


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


def torchrun(*words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
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
@pytest.mark.long
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
@pytest.mark.long
def test_each_process_trains_its_part(runs):
    here = {name: found["trained here"] for name, found in runs.items()}
    assert here.pop("a lone client") == []
    assert all(clients == [2, 2] for clients in here.values()), here
    assert runs["scaffold"]["memory"].keys() == {"c"}


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_is_killed_ends_the_job_and_torchrun_resumes_it_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    settings = [*LONG, f"logging.results_dir={tmp_path}", "federation.algorithm=scaffold"]
    first, second = started("-m", "fedfault", "run", "quickstart", *settings, "experiment_name=two")
    rounds_file = tmp_path / "two/rounds.jsonl"
    while len(read_records(rounds_file)[0]) < 2:
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
    start_run(load("quickstart", [*settings, "experiment_name=one"]), Progress(quiet=True))
    one, two = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert all(pair.same(one[name], two[name]) for name in one)
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert (manifest["status"], manifest["processes"]) == ("finished", 2)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("phase", ["prepare", "score", "train"])
def test_a_process_that_dies_in_any_phase_is_named_and_the_same_command_goes_on(tmp_path, monkeypatch, phase):
    """While it loads, while the untrained model is scored, while clients train; one process alone goes on."""
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    settings = [*LONG, f"logging.results_dir={tmp_path}", "federation.num_rounds=2"]
    job = started(
        str(Path(pair.__file__).with_name("dying.py")), phase, "run", "quickstart", *settings, "experiment_name=two"
    )
    said = [process.communicate(timeout=120)[1] for process in job]
    assert [process.returncode for process in job] == [2, -signal.SIGKILL], said
    assert "error: process 1 of 2, on " in said[0]
    assert "has ended; `fedfault resume RUN` goes on" in said[0]
    assert "Traceback" not in said[0]
    assert (tmp_path / "two").exists() == (phase != "prepare")
    for name in ("two", "one"):  # the one goes on, the other was never disturbed
        start_run(load("quickstart", [*settings, f"experiment_name={name}"]), Progress(quiet=True))
    one, two = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert all(pair.same(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_help_under_torchrun_is_given_once_and_ends():
    said = [one.communicate(timeout=60)[0] for one in started("-m", "fedfault", "run", "--help")]
    assert ["Usage: " in text for text in said] == [True, False]


@pytest.mark.slow
@pytest.mark.long
def test_bad_input_under_torchrun_is_said_once(tmp_path):
    done = torchrun("run", "quickstart", "federation.num_round=1", f"logging.results_dir={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.count("did you mean 'num_rounds'") == 1
    assert "first process of the job has ended" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.cuda
def test_one_process_of_torchrun_on_a_gpu_gives_the_numbers_of_none(tmp_path, monkeypatch):
    """NCCL wants a GPU of its own for every process; with one GPU the job has one."""
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    settings = [*SMALL, "model.precision=fp32", f"logging.results_dir={tmp_path}", "device=cuda"]
    done = torchrun("run", "quickstart", *settings, "experiment_name=one", processes=1)
    assert done.returncode == 0, done.stderr
    start_run(load("quickstart", [*settings, "experiment_name=none"]), Progress(quiet=True))
    one, none = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "none"))
    assert all(pair.same(one[name], none[name]) for name in one)


@pytest.mark.cuda
def test_as_many_processes_as_gpus_give_the_numbers_of_one_over_nccl(tmp_path, monkeypatch):
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip("needs two GPUs: NCCL refuses two processes on one")
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    settings = [*SMALL, "model.precision=fp32", f"logging.results_dir={tmp_path}", "device=cuda"]
    done = torchrun("run", "quickstart", *settings, "experiment_name=many", processes=min(count, 2))
    assert done.returncode == 0, done.stderr
    start_run(load("quickstart", [*settings, "experiment_name=one"]), Progress(quiet=True))
    many, one = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("many", "one"))
    assert all(pair.same(many[name], one[name]) for name in one)
