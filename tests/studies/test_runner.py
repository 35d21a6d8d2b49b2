"""Studies that run: what is done stays, what was killed goes on, what fails is told and stops nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import filelock
import pytest

from fedfault.errors import InUseError, UserError
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import find_status
from fedfault.session.progress import Progress
from fedfault.studies import doors, one, runner
from fedfault.studies.file import load_study
from fedfault.studies.study import read_study
from small import SMALL, final

QUIET = Progress(quiet=True)
ARMS = {"plain": {}, "prox": {"federation.algorithm": "fedprox"}}
WORDS = [w for w in SMALL if "participation" not in w]


@pytest.fixture
def plan(write, tmp_path):
    """A study of two arms and two seeds that takes a few seconds, in a folder of its own."""
    return lambda **more: load_study(write(**{"arms": ARMS, "seeds": 2, **more}), WORDS, str(tmp_path / "results"))


def states(found):
    return [done.state for done in found]


@pytest.fixture
def instant(monkeypatch):
    """Runs that take no time: a call is noted, and the folder says that it is finished."""
    begun = []

    def start(loaded, progress, **_):
        begun.append(loaded.experiment.experiment_name)
        folder = RunFolder.create(doors.Path(loaded.experiment.logging.results_dir) / begun[-1])
        (folder.path / "config.yaml").write_text("{}")
        folder.write_json("metrics.json", {"final": {"validation": {"loss": 4.0}}})
        folder.write_json("manifest.json", {"status": "finished"})

    monkeypatch.setattr(one, "start_run", start)
    return begun


@pytest.mark.slow
def test_finished_runs_are_not_repeated(plan, instant):
    assert states(runner.run_all(plan(), QUIET)) == ["finished"] * 4
    assert states(runner.run_all(plan(), QUIET)) == ["there"] * 4
    assert states(runner.run_all(plan(seeds=3), QUIET)) == ["there"] * 4 + ["finished"] * 2
    assert len(instant) == len(set(instant)) == 6


@pytest.mark.slow
def test_a_run_that_went_on_with_other_settings_since_is_left_out_and_told(plan, instant, capsys):
    """Its twelve rounds were compared with two of the other arm, which turned the answer."""
    runner.run_all(p := plan(), QUIET)
    longer, elsewhere = (p.path(name) for name in p.study.runs[:2])
    for path, key, both in ((longer, "federation.num_rounds", [3, 12]), (elsewhere, "device", ["cpu", "auto"])):
        went_on = {"after": 3, "changes": {key: both}, "versions": {}}
        RunFolder(path).write_json("manifest.json", {"status": "finished", "continued": [went_on]})
    found = runner.run_all(p, Progress())
    assert states(found) == ["failed", "there", "there", "there"]
    told = (
        f"left out, as it went on with other settings (federation.num_rounds 3 -> 12); delete {longer} to have it made"
    )
    assert told in found[0].why
    assert told in capsys.readouterr().err
    shutil.rmtree(longer)
    assert states(runner.run_all(p, QUIET)) == ["finished", "there", "there", "there"]


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ({}, "mean rank 4 (lite) to 8 (fixed)"),
        ({"rank": 4}, None),
        ({"ranks": [2, 6]}, None),
        ({"rank": 3}, "3 (fixed) to 4"),
    ],
)
def test_schedulers_at_unequal_budgets_are_told_before_anything_runs(plan, instant, capsys, ranks, told):
    schedulers = {
        "fixed": {"federation.scheduler": {"name": "fixed", **ranks}},
        "lite": {"federation.scheduler": {"name": "lite", "r_bar": 4}},
    }
    runner.run_all(plan(arms=schedulers, model={"lora": {"r_max": 8, "r_min": 1}}, seeds=1), Progress())
    said = capsys.readouterr().err
    assert ("unequal budgets" in said) == (told is not None)
    assert told is None or told in said


def test_a_second_process_is_told_that_the_study_is_at_work_unless_it_has_a_task(plan, instant):
    """Each called the other's runs failed, and the second wrote an answer of one seed."""
    p = plan()
    p.folder.mkdir(parents=True)
    with filelock.FileLock(p.folder / ".lock"):
        with pytest.raises(UserError, match=f"{p.folder} is in use by another process"):
            runner.run_all(p, QUIET)
        assert [d.state for d in runner.run_all(p, QUIET, task=1)] == ["finished"]
    assert states(runner.run_all(p, QUIET)) == ["there", *["finished"] * 3]


def test_runs_that_a_task_of_an_array_is_making_come_last_and_are_not_called_failed(plan, instant, monkeypatch, capsys):
    """A whole study beside tasks ended with status 1: the runs at work, and those that were made meanwhile, had failed."""
    p, start = plan(), one.start_run
    at_work, faster, late = (p.path(name) for name in p.study.runs[:3])
    at_work.mkdir(parents=True)
    p.study.save(p.folder)
    lock, looks = filelock.FileLock(at_work / ".lock"), []

    def begin(loaded, progress, **more):
        name = loaded.experiment.experiment_name
        if name == late.name and late.name not in looks:
            looks.append(name)
            raise InUseError(f"{late} is in use by another process")  # since it was looked at
        start(loaded, progress, **more)
        if name == faster.name:
            raise UserError(f"{faster} exists already: this very run, finished")

    def end(seconds):
        assert not lock.release()
        RunFolder(at_work).write_json("metrics.json", {"final": {"validation": {"loss": 5.0}}})
        RunFolder(at_work).write_json("manifest.json", {"status": "finished"})

    monkeypatch.setattr(one, "start_run", begin)
    monkeypatch.setattr(runner.time, "sleep", end)
    with lock:
        lock.acquire()
        found = runner.run_all(p, Progress())
    assert states(found) == ["there", "there", "finished", "finished"]
    told = capsys.readouterr().err
    assert f"other processes are making {at_work.name}; waiting for them" in told
    assert "run 4/4" in told.splitlines()[-1]
    assert at_work.name in told.splitlines()[-1]
    assert instant == [name for name in p.study.runs[1:4] if name != late.name] + [late.name]


def test_a_task_of_an_array_runs_one_run(plan, instant):
    p = plan()
    assert [d.name for d in runner.run_all(p, QUIET, task=3)] == [p.study.runs[2]] == instant
    with pytest.raises(UserError, match="runs 1 to 4"):
        runner.run_all(p, QUIET, task=5)


@pytest.mark.slow
def test_a_failure_stops_nothing_and_is_told(plan, instant, monkeypatch, tmp_path):
    p, start = plan(), one.start_run

    def bad(loaded, progress, **more):
        name = loaded.experiment.experiment_name
        if name == p.study.runs[0]:
            raise UserError("no such corpus")
        if name == p.study.runs[1]:
            raise ZeroDivisionError("of a bug")
        start(loaded, progress, **more)

    monkeypatch.setattr(one, "start_run", bad)
    found = runner.run_all(p, QUIET)
    assert states(found) == ["failed", "failed", "finished", "finished"]
    told = runner.format_failures(found)
    assert "2 of 4 runs failed" in told
    assert "no such corpus" in told
    assert "ZeroDivisionError: of a bug" in told
    (trace,) = (p.folder / "failures").iterdir()
    assert "Traceback" in trace.read_text()
    monkeypatch.setattr(one, "start_run", start)
    assert states(runner.run_all(p, QUIET)) == ["finished", "finished", "there", "there"]


def test_progress_says_what_is_done_and_how_long_the_rest_takes(plan, instant, capsys):
    runner.run_all(plan(), Progress())
    lines = capsys.readouterr().err.splitlines()
    assert "2 cells x 2 seeds, 4 runs" in lines[0]
    assert [line.split()[1] for line in lines[1:]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("ETA" in line for line in lines[1:4])
    assert "loss 4.000" in lines[4]
    assert "took" in lines[4]


def test_parts_that_cannot_be_combined_are_refused_before_the_first_run(plan, instant):
    arms = {"plain": {}, "bad": {"federation.algorithm": "scaffold", "federation.aggregation": "flora"}}
    with pytest.raises(UserError, match=r"cell bad: .*cannot be combined"):
        runner.run_all(plan(arms=arms), QUIET)
    assert instant == []


def test_what_a_kill_left_before_the_manifest_is_begun_anew(plan, instant):
    p = plan()
    left = p.path(p.study.runs[0])
    (left / "checkpoint").mkdir(parents=True)
    (left / "config.yaml").write_text("{}")
    p.study.save(p.folder)
    other = p.path(p.study.runs[1])
    other.mkdir()
    (other / "thesis.tex").write_text("")
    assert states(runner.run_all(p, QUIET))[0] == "finished"
    assert (other / "thesis.tex").exists()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_give_the_numbers_of_one(plan, write, tmp_path):
    p = plan(arms={"plain": {}})
    apart = load_study(write(name="apart", arms={"plain": {}}, seeds=2), WORDS, str(tmp_path / "results"))
    assert states(runner.run_all(p, QUIET)) == ["finished"] * 2
    assert states(runner.run_all(apart, QUIET, jobs=2)) == ["finished"] * 2
    for name in p.study.runs:
        assert final(RunFolder(p.path(name))) == final(RunFolder(apart.path(name)))


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_study_goes_on_to_the_same_numbers(plan, write, tmp_path, jobs):
    whole = plan(arms={"plain": {}})
    runner.run_all(whole, QUIET)
    file = write(name="killed", arms={"plain": {}}, seeds=2)
    words = [sys.executable, "-m", "fedfault", "study", str(file), *WORDS, "--results-dir", str(tmp_path / "results")]
    words += ["--jobs", str(jobs)]
    killed = load_study(file, WORDS, str(tmp_path / "results"))
    first = killed.path(killed.study.runs[0])
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (first / "rounds.jsonl").is_file() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert find_status(first)
    if jobs == 1:
        assert not killed.path(killed.study.runs[1]).exists()
    for folder in (killed.folder / "runs").iterdir():  # until the workers have noticed the end of their parent
        with filelock.FileLock(folder / ".lock", timeout=60):
            pass
    assert states(runner.run_all(killed, QUIET)) == ["finished"] * 2
    for name in whole.study.runs:
        assert final(RunFolder(whole.path(name))) == final(RunFolder(killed.path(name)))


@pytest.mark.slow
def test_another_study_of_the_same_name_does_not_take_the_folder(plan, instant):
    """It replaced study.json and the reports of the first without a word."""
    runner.run_all(first := plan(question="Is it?"), QUIET)
    other = plan(arms={"plain": {"training.lr": 0.5}, "prox": {"training.lr": 0.6}})
    with pytest.raises(
        UserError, match=r"holds another study \(Is it\?\) with 4 finished runs, of which this one needs none"
    ):
        runner.run_all(other, QUIET)
    assert read_study(first.folder) == first.study
    more = plan(arms={**ARMS, "adam": {"federation.algorithm": "fedadam"}})
    assert states(runner.run_all(more, QUIET)).count("there") == 4  # the same study with an arm more goes on
