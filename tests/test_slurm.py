"""scripts/run_slurm.sh on a real Slurm of one node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import one_node
from fedfault.runs.files import read_records
from small import SMALL

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def slurm() -> Iterator[one_node.Slurm]:
    with one_node.started() as cluster:
        yield cluster


@pytest.fixture
def sbatch(slurm, tmp_path, monkeypatch):
    """Submit a run as a user does, from the checkout: the number of the job."""
    monkeypatch.chdir(ROOT)

    def submit(config: str, *settings: str, options: tuple[str, ...] = ("--cpus-per-task=1",)) -> str:
        words = ("scripts/run_slurm.sh", config, *SMALL, f"logging.results_dir={tmp_path}", *settings)
        return slurm("sbatch", "--parsable", f"--output={tmp_path}/%j.out", *options, *words)

    return submit


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_a_job_leaves_a_finished_run_and_has_the_threads_that_it_asked_for(slurm, sbatch, tmp_path):
    (job,) = slurm.ended(sbatch("configs/quickstart.yaml", options=("--cpus-per-task=2",)))
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0")
    assert manifest(tmp_path / "quickstart")["status"] == "finished"
    assert manifest(tmp_path / "quickstart")["threads"] == 2
    assert (tmp_path / "quickstart/report.html").is_file()


def test_a_bad_setting_fails_the_job_with_the_message_in_its_output(slurm, sbatch, tmp_path):
    (job,) = slurm.ended(sbatch("quickstart", "federation.num_round=1"))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    output = tmp_path / f"{job['JobId']}.out"
    assert "did you mean 'num_rounds'" in output.read_text()
    assert list(tmp_path.iterdir()) == [output]


def test_each_task_of_an_array_is_a_run_of_its_own(slurm, sbatch, tmp_path):
    options = ("--cpus-per-task=1", "--array=0-1")
    words = ("quickstart", "seed=%a", "experiment_name=seed-%a", "federation.num_rounds=1")
    jobs = slurm.ended(sbatch(*words, options=options))
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 2
    assert [manifest(tmp_path / f"seed-{i}")["seed"] for i in range(2)] == [0, 1]


def test_near_its_time_limit_a_job_goes_back_to_the_queue_and_on_from_the_last_round(slurm, sbatch, tmp_path):
    job = sbatch("quickstart", "federation.num_rounds=12")
    rounds = tmp_path / "quickstart/rounds.jsonl"
    while len(read_records(rounds)[0]) < 2:
        assert slurm.shown(job)[0]["JobState"] in ("PENDING", "RUNNING")
        time.sleep(0.1)
    slurm("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 does
    (ended,) = slurm.ended(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert [r.round for r in read_records(rounds)[0]] == list(range(13))
    output = (tmp_path / f"{job}.out").read_text()
    assert "stopped; " in output
    assert "was stopped before its end and goes on" in output
    assert int(re.search(r"continuing after round (\d+) of 12", output)[1]) >= 1
