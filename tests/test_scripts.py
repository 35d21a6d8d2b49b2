"""The scripts as a user calls them; run_slurm.sh with stand-ins for Python and for Slurm (see test_slurm.py for both)."""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedfault.testing.histories import history
from small import SMALL

ROOT = Path(__file__).parents[1]

PYTHON = """#!/usr/bin/env bash
trap 'echo terminated; exit ${STOPPED:-143}' TERM
echo "$0 $OMP_NUM_THREADS:" "$@"
while [[ -n ${SECONDS_LONG:-} ]]; do sleep 0.05; done
exit ${STATUS:-0}
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in show) printf 'n1\\nn2\\n' ;; *) echo scontrol "$@" ;; esac
"""
SRUN = """#!/usr/bin/env bash
echo srun "$1"
shift
exec "$@"
"""


@pytest.fixture
def run_py(monkeypatch, capsys, tmp_path):
    """Run the script with these words in an empty folder and in this process: (status, output, errors)."""
    monkeypatch.setattr("fedfault.report.gallery.FIGURES", {})
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scripts/run.py", *words])
        try:
            runpy.run_path(str(ROOT / "scripts/run.py"), run_name="__main__")
            status = 0
        except SystemExit as e:
            status = e.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_every_benchmark_says_how_it_is_called(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(script), run_name="__main__")
    assert not e.value.code
    assert capsys.readouterr().out.startswith("usage:")


def test_rules_of_thumb_see_rises_of_the_loss_and_no_falls(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rules = runpy.run_path(str(ROOT / "benchmarks/rules.py"))
    falls, swings, rises, breaks = (
        history(losses)
        for losses in ([5.0, 4.0, 3.0], [4.0, 5.0, 4.0, 4.2], [4.0, 4.1, 4.2, 4.3, 4.0], [4.0, math.nan, 4.0])
    )
    assert [rules["find_spike"](run) for run in (swings, breaks)] == [pytest.approx(0.25), math.inf]
    assert rules["find_spike"](falls) < 0
    assert [rules["count_rises"](run) for run in (falls, swings, rises)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], False),
        ([5.0, 5.2, 5.4, 5.6, 5.8], True),
        ([5.0, 5.1, 5.2, 5.3, 5.4], False),  # 8 %
        ([5.0, 5.2, 5.4, 5.3, 5.8], False),
        ([5.0, 4.0] * 5, True),  # eight turns in ten
        ([5.0, 4.0] * 4 + [3.0, 2.0], False),  # six
        ([5.0 - 0.001 * i for i in range(20)], True),
        ([5.0 - 0.01 * i for i in range(20)], False),
        ([5.0, math.nan], True),
    ],
)
def test_thresholds_of_a_public_study(monkeypatch, losses, told):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert runpy.run_path(str(ROOT / "benchmarks/rules.py"))["alarms_by_a_public_study"](history(losses)) == told


def test_the_loss_alone_tells_by_a_spike_three_rises_or_an_end_above_its_start(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    find = runpy.run_path(str(ROOT / "benchmarks/early.py"))["find_round_of_loss"]
    assert find(history([5.0, 4.0, 3.5, 3.4])) is None
    assert find(history([5.0, 4.0, 4.3, 4.2, 4.3])) is None  # swings, each of them small
    assert find(history([5.0, 4.0, 4.5, 4.2])) == 2  # 12 % at once
    assert find(history([5.0, 4.0, 4.1, 4.2, 4.3])) == 4  # the third rise in a row
    assert find(history([5.0, 4.8, 5.01])) == 2  # above the loss before training
    assert find(history([5.0, math.nan])) == 1


def test_a_healthy_run_is_judged_by_the_others_of_its_folder_and_a_broken_one_by_all(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    judge = runpy.run_path(str(ROOT / "benchmarks/faults.py"))["judge_folder"]

    def keep(name, losses):
        lines = (json.dumps(record.to_json()) + "\n" for record in history(losses))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    for seed in range(3):
        keep(f"fresh-healthy-{seed}", [5.0, 4.5 + 0.01 * seed, 4.2, 4.0])
    keep("lr_x20-0", [5.0, 6.0, 7.0, 8.0])
    healthy, broken = judge(tmp_path)
    assert {c.name for _, _, c in (*healthy, *broken)} == {"demo-healthy"}  # three are too few for one without them
    keep("fresh-healthy-3", [5.0, 4.52, 4.2, 4.0])
    healthy, broken = judge(tmp_path)
    assert [c.controls for _, _, c in healthy] == [3, 3, 3, 3]
    assert [(name, c.controls) for name, _, c in broken] == [("lr_x20", 4)]


def test_a_roc_curve_of_scores_that_tell_runs_apart_goes_through_the_corner(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    trace = runpy.run_path(str(ROOT / "benchmarks/rules.py"))["trace_curve"]
    assert trace([0.1, 0.2], [1.0, 2.0]) == ([0, 0, 0, 0.5, 1], [0, 0.5, 1, 1, 1])
    assert trace([1.0], [1.0]) == ([0, 1], [0, 1])


@pytest.mark.long
def test_the_gpu_benchmark_runs_in_small_on_any_machine(monkeypatch, capsys):
    """Its sides start from the same adapter and see the same batches, so that clients end with the same losses."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--repeat", "1", "--steps", "2"])
    runpy.run_path(str(ROOT / "benchmarks/gpu.py"), run_name="__main__")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| fedfault |")]
    assert len(rows) == 2
    assert all(float(cells[-1]) < 1e-2 for cells in rows)  # bfloat16


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick"])
    with pytest.raises(SystemExit, match="needs a GPU with CUDA, and torch sees none here; `--tiny` runs"):
        runpy.run_path(str(ROOT / "benchmarks/gpu.py"), run_name="__main__")


def test_try_gpu_takes_the_files_with_tests_of_a_gpu_and_keeps_the_path_of_packages(tmp_path):
    """On a machine without network packages are carried along, and not all that other tests import."""
    for file in ("scripts/try_gpu.sh", "tests/backbones/test_replay.py", "tests/test_scripts.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "nvidia-smi"):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\necho "ms a step $PYTHONPATH $@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": "/carried"}
    done = subprocess.run(
        ["bash", tmp_path / "scripts/try_gpu.sh"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (said,) = (line for line in done.stdout.splitlines() if "-m pytest" in line)
    assert said.startswith(f"ms a step {tmp_path}/src:/carried -m pytest -m cuda")
    assert said.endswith("--continue-on-collection-errors tests/backbones/test_replay.py")


@pytest.mark.slow
def test_run_py_is_fedfault_run_from_any_folder(run_py, tmp_path):
    status, out, err = run_py("federation.num_rounds=1", "-q", "--config", "configs/quickstart.yaml", *SMALL)
    assert status == 0, err
    assert out == "report: results/quickstart/report.html\n"
    manifest = (tmp_path / "results/quickstart/manifest.json").read_text()
    assert '"command": "fedfault run configs/quickstart.yaml federation.num_rounds=1 -q' in manifest

    status, _, err = run_py("--config=quickstart", "federation.num_rounds=1", *SMALL)
    assert status == 2
    assert "exists already" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "configs/experiments/lite.yaml"], "'configs/experiments/lite.yaml' is not there"),
        (["--config", "quickstart", "federation.num_round=1"], "did you mean 'num_rounds'"),
        (["--config", "quickstart", "--overwite"], "did you mean '--overwrite'?"),
        (["--config"], "expected one argument"),
        (["quickstart"], "required: --config"),
    ],
)
def test_run_py_says_what_is_wrong_and_ends_with_2(run_py, tmp_path, words, message):
    status, _, err = run_py(*words)
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_py_has_help():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/run.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--config CONFIG [KEY=VALUE]..." in done.stdout


def stand_in(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture
def job(tmp_path):
    """Start a script as Slurm does, from a copy somewhere else."""
    stand_in(tmp_path / "bin/python3", PYTHON)
    stand_in(tmp_path / "bin/scontrol", SCONTROL)
    stand_in(tmp_path / "bin/srun", SRUN)
    stand_in(tmp_path / "checkout/scripts/run_slurm.sh", (ROOT / "scripts/run_slurm.sh").read_text())

    def start(*words: str, name: str = "run_slurm.sh", **variables: str) -> subprocess.Popen[str]:
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "SLURM_SUBMIT_DIR": str(tmp_path / "checkout"), "SLURM_JOB_ID": "42", **variables}
        stand_in(tmp_path / "spool/slurm_script", (ROOT / "scripts" / name).read_text())
        script = [str(tmp_path / "spool/slurm_script"), *words]
        return subprocess.Popen(script, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    said = process.communicate(timeout=60)[0]
    return process.returncode, said.splitlines()


def signalled(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """Status and output of a job that gets a signal while it runs."""
    assert process.stdout is not None
    process.stdout.readline()  # the run has begun
    process.send_signal(number)
    return ended(process)


def test_a_job_runs_its_words_with_the_threads_of_the_job(job, tmp_path):
    assert ended(job("a b.yaml", "seed=%a", SLURM_CPUS_PER_TASK="3")) == (
        0,
        [f"{tmp_path}/bin/python3 3: -m fedfault run a b.yaml seed=%a"],
    )


def test_a_task_of_an_array_knows_its_number(job):
    said = ended(job("quickstart", "seed=%a", "experiment_name=s-%a-%ab", SLURM_ARRAY_TASK_ID="7"))[1]
    assert said[0].endswith("1: -m fedfault run quickstart seed=7 experiment_name=s-7-7b")


def test_the_environment_of_the_checkout_comes_first(job, tmp_path):
    stand_in(tmp_path / "checkout/.venv/bin/python", PYTHON)
    assert ended(job("quickstart"))[1][0].startswith(".venv/bin/python 1: ")


def test_a_failed_run_is_a_failed_job(job):
    assert ended(job("quickstart", STATUS="2"))[0] == 2


def test_near_the_limit_the_run_is_stopped_and_the_job_requeued(job):
    assert signalled(job(SECONDS_LONG="1"), signal.SIGUSR1) == (143, ["terminated", "scontrol requeue 42"])


def test_a_run_that_ends_while_it_is_stopped_is_not_requeued(job):
    assert signalled(job(SECONDS_LONG="1", STOPPED="0"), signal.SIGUSR1) == (0, ["terminated"])


def test_a_cancelled_job_is_not_requeued(job):
    assert signalled(job(SECONDS_LONG="1"), signal.SIGTERM) == (143, ["terminated"])


def test_a_round_that_never_fits_does_not_go_round_for_ever(job):
    status, said = signalled(job(SECONDS_LONG="1", SLURM_RESTART_COUNT="50"), signal.SIGUSR1)
    assert status == 143
    assert "give it more --time" in said[-1]


TWO_NODES = {
    "name": "run_multinode.sh",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_CPUS_PER_TASK": "8",
}


def test_on_several_nodes_each_starts_torchrun_and_meets_at_the_first(job, tmp_path):
    """Four GPUs a node, whose processes share its eight cores."""
    status, (launched, said) = ended(job("a b.yaml", "seed=1", SLURM_GPUS_ON_NODE="4", **TWO_NODES))
    assert (status, launched) == (0, "srun --kill-on-bad-exit=1")
    torchrun = "-m torch.distributed.run --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=42"
    where = f"{torchrun} --rdzv-endpoint=n1:20042 -m fedfault run a b.yaml seed=1"
    assert said == f"{tmp_path}/bin/python3 2: {where}"


def test_nodes_without_gpus_have_a_process_each(job):
    said = ended(job("quickstart", **TWO_NODES))[1][1]
    assert "python3 8: " in said
    assert "--nproc-per-node=1 " in said


def test_near_the_limit_a_run_on_several_nodes_is_stopped_and_the_job_requeued(job):
    process = job(SECONDS_LONG="1", **TWO_NODES)
    process.stdout.readline()  # srun
    assert signalled(process, signal.SIGUSR1) == (143, ["terminated", "scontrol requeue 42"])


def test_every_guard_that_mutate_removes_stands_in_its_file_once():
    """And its tests are there: a mutation that is out of date would be noticed only by who runs them all."""
    for name, mutation in runpy.run_path(str(ROOT / "scripts/mutate.py"))["MUTATIONS"].items():
        text = (ROOT / "src/fedfault" / mutation.file).read_text(encoding="utf-8")
        assert text.count(mutation.guard) == 1, name
        for test in mutation.tests.split():
            file, _, function = test.partition("::")
            assert (ROOT / file).is_file(), name
            assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name
