"""Whatever file operation a kill comes before, the same command goes on to the numbers of the undisturbed run.

Every state that a kill can leave is made once: the process dies before operation 1, 2, ... of a tiny run, a fork, a
continuation, a way back from an alarm, a study. A few of these states are tried in `make test`, all where tests are long.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from crash import QUIET, Lender, die_at, list_operations, load_tiny
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import OVER, find_status
from fedfault.runs.read import read_run
from fedfault.session.fork import fork_run
from fedfault.session.start import resume_run, start_run
from fedfault.storage import is_scratch, write_atomically
from small import final

WILD = ("training.lr=0.5", "training.local_steps=2", "federation.num_rounds=3", "detectors.calibration=none")


@pytest.fixture(scope="module")
def ready():
    return Lender()


@pytest.fixture(autouse=True)
def _quick_report(monkeypatch):
    """A report of one file instead of seconds of drawing; that it is drawn once more is what matters here."""
    monkeypatch.setattr("fedfault.report.render.render_report", draw)


def draw(folder: Path) -> Path:
    write_atomically(folder / "report.html", "a report")
    return folder / "report.html"


@dataclass(frozen=True)
class Command:
    """What is killed, in a folder that `before` has filled, and the run that it is to finish."""

    act: Callable[[Path, Lender], object]
    before: Callable[[Path, Lender], object] = lambda results, ready: None
    name: str = "quickstart"
    again: Callable[[Path, Lender], object] | None = None  # instead of the same command


def start(*changes: str, **options):
    return lambda results, ready: start_run(load_tiny(results, *changes), QUIET, ready=ready, **options)


def resume(*changes: str):
    return lambda results, ready: resume_run(results / "quickstart", QUIET, changes, ready=ready)


def fork(results: Path, ready: Lender):
    return fork_run(results / "quickstart", 1, ["training.lr=0.01", "experiment_name=child"], QUIET)


def fork_or_resume(results: Path, ready: Lender):
    """What its messages say: the same command, or resume once the fork has its parent's past."""
    if find_status(results / "child") in (None, "begun"):
        return fork(results, ready)
    return resume_run(results / "child", QUIET, ready=ready)


COMMANDS = {
    "run": Command(start()),
    "run --overwrite": Command(start(overwrite=True), start("training.lr=0.01")),
    "run that stops at an alarm": Command(start(*WILD, "federation.on_failure=stop")),
    "run that goes back at alarms": Command(start(*WILD, "federation.on_failure=rollback")),
    "resume to more rounds": Command(resume("federation.num_rounds=3"), start()),
    "fork": Command(fork, start("logging.keep_checkpoints=all"), name="child", again=fork_or_resume),
}


def try_state(command: Command, ready: Lender, filled: Path, root: Path, n: int, torn: bool, expected) -> None:
    """Kill the command before its n-th operation, and check what is left and that it goes on to what is expected."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(filled, root)
    die_at(lambda: command.act(root, ready), root, n, torn)
    if find_status(root / command.name) is not None:
        read_run(root / command.name)  # whatever is there can be read
    folder = (command.again or command.act)(root, ready)
    assert find_status(folder.path) in OVER
    assert final(folder) == expected
    assert not [p for p in root.rglob("*") if is_scratch(p.name)]


def try_states(command: Command, ready: Lender, tmp_path: Path, every: int) -> int:
    filled, root = tmp_path / "filled", tmp_path / "results"
    filled.mkdir()
    ready.first or start("experiment_name=first")(tmp_path / "first", ready)
    shutil.copytree(filled, root)
    command.before(root, ready)
    shutil.copytree(root, filled, dirs_exist_ok=True)
    operations = list_operations(lambda: command.act(root, ready), root)
    expected = final(RunFolder(root / command.name))
    states = [(n, torn) for n, kind in enumerate(operations, 1) for torn in (False, True) if kind == "s" or not torn]
    for n, torn in states[every // 2 :: every]:
        try_state(command, ready, filled, root, n, torn, expected)
    return len(states)


@pytest.mark.slow
def test_a_run_goes_on_from_a_kill_before_some_of_its_file_operations(ready, tmp_path):
    assert try_states(COMMANDS["run"], ready, tmp_path, every=15) > 60


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_every_state_that_a_kill_can_leave_goes_on_to_the_same_numbers(ready, tmp_path, name):
    print(f"{name}: {try_states(COMMANDS[name], ready, tmp_path, every=1)} states")
