"""Commands that are killed in a folder, and what has to be true of the folder afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crash import QUIET, TINY, Lender, die_at, fork_process, list_operations, load_tiny
from fedfault.report.render import render_report
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import OVER, find_status
from fedfault.runs.read import read_run
from fedfault.session.fork import fork_run
from fedfault.session.start import resume_run, start_run
from fedfault.storage import is_scratch, write_atomically
from fedfault.studies import runner
from fedfault.studies.file import load_study
from fedfault.studies.mitigate import mitigate
from small import final

WILD = ("training.lr=0.5", "training.local_steps=2", "federation.num_rounds=3", "detectors.calibration=none")
PRIVATE = (
    "federation.algorithm=fedavg", "federation.weighting=uniform", "privacy.unit=client", "privacy.epsilon=8",
    "privacy.delta=0.01", "privacy.canaries=5", "privacy.secret=known",
)  # fmt: skip
STUDY = "experiment_name: pair\narms: {scaffold: {federation.algorithm: scaffold}, plain: {}}\nseeds: 1\n"


def draw(folder: Path) -> Path:
    read_run(folder)
    write_atomically(folder / "report.html", "a report")
    return folder / "report.html"


Act = Callable[[Path, Lender], object]


def start(*changes: str, **options) -> Act:
    return lambda results, ready: start_run(load_tiny(results, *changes), QUIET, ready=ready, **options)


def resume(*changes: str) -> Act:
    return lambda results, ready: resume_run(results / "quickstart", QUIET, changes, ready=ready)


def fork(results: Path, ready: Lender) -> object:
    """What the messages say: the same command, or resume once the fork has its parent's past."""
    if find_status(results / "child") in (None, "begun"):
        return fork_run(results / "quickstart", 1, ["training.lr=0.01", "experiment_name=child"], QUIET)
    return resume_run(results / "child", QUIET, ready=ready)


def study(results: Path, ready: Lender) -> object:
    (results.parent / "pair.yaml").write_text(STUDY)
    words = [word for word in TINY if not word.startswith("federation.algorithm")]  # which the arms differ in
    done = runner.run_all(load_study(results.parent / "pair.yaml", words, str(results)), QUIET)
    assert [one.state for one in done if one.state == "failed"] == []
    return done


def mend(results: Path, ready: Lender) -> object:
    status = mitigate(load_tiny(results), quiet=True)
    assert status == 0
    return status


def report(results: Path, ready: Lender) -> object:
    return render_report(results / "quickstart")  # the whole one, with its plots


@dataclass(frozen=True)
class Command:
    """What is killed, in a folder that `before` has filled."""

    act: Act
    before: Act = lambda results, ready: None


COMMANDS = {
    "run": Command(start()),
    "run --overwrite": Command(start(overwrite=True), start("training.lr=0.01")),
    "run that stops at an alarm": Command(start(*WILD, "federation.on_failure=stop")),
    "run that goes back at alarms": Command(start(*WILD, "federation.on_failure=rollback")),
    "run with clients' own models": Command(start("federation.algorithm=ditto")),
    "private run": Command(start(*PRIVATE)),
    "resume to more rounds": Command(resume("federation.num_rounds=3"), start()),
    "fork": Command(fork, start("logging.keep_checkpoints=all")),
    "study": Command(study),
    "mitigate": Command(mend),
    "report": Command(report, start(draw=False)),
}


def find_runs(root: Path) -> list[Path]:
    """Every folder below the root that says of itself that it is a run."""
    return [file.parent for file in sorted(root.rglob("manifest.json"))]


def read_numbers(root: Path) -> dict[str, object]:
    """What the runs below the root came to, of those that are over, and which reports and plots are there."""
    found: dict[str, object] = {
        str(path.relative_to(root)): final(RunFolder(path)) for path in find_runs(root) if find_status(path) in OVER
    }
    drawn = [p for p in root.rglob("*") if p.name == "report.html" or p.suffix == ".png"]
    return found | {str(p.relative_to(root)): "there" for p in drawn if not is_scratch(p.name)}


class Trial:
    """A command, the folder in which it is killed again and again, and the numbers that it is to come to."""

    def __init__(self, command: Command, ready: Lender, tmp_path: Path) -> None:
        self.command, self.ready = command, ready
        self.filled, self.root = tmp_path / "filled", tmp_path / "results"
        if ready.first is None:
            start("experiment_name=first")(tmp_path / "first", ready)
        self.root.mkdir(parents=True)
        command.before(self.root, ready)
        shutil.copytree(self.root, self.filled)
        clock = time.monotonic()
        self.operations = list_operations(self.act, self.root)
        self.seconds = time.monotonic() - clock
        self.expected = read_numbers(self.root)

    def act(self) -> None:
        self.command.act(self.root, self.ready)

    def is_done(self) -> bool:
        """Whether there is nothing left to do: a kill can come too late."""
        return read_numbers(self.root) == self.expected

    def begin_again(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.filled, self.root)

    def check_what_is_left(self) -> int:
        """Everything can be read, not more than the round at work is lost, and the command goes on to the same numbers.

        Returns how many recorded rounds the worst run has to train again.
        """
        lost = 0
        for path in find_runs(self.root):
            records, kept = read_run(path).records, RunFolder(path).list_checkpoints()
            back = '"done": false' in (path / "manifest.json").read_text()  # it gives rounds up on purpose
            if not back and find_status(path) != "begun":
                lost = max(lost, len(records) - 1 - max(kept, default=-1))
        assert lost <= 1
        if not self.is_done():
            self.act()
        assert self.is_done()
        assert not [p for p in self.root.rglob("*") if is_scratch(p.name)]
        return lost

    def die_before_every(self, step: int) -> int:
        """Die before every `step`-th operation, where it waits for the disk also within the write; returns how many."""
        kinds = enumerate(self.operations, 1)
        states = [(n, torn) for n, kind in kinds for torn in (False, True) if kind == "s" or not torn]
        for n, torn in states[step // 2 :: step]:
            self.begin_again()
            die_at(self.act, self.root, n, torn)
            self.check_what_is_left()
        return len(states)

    def kill(self, delay: float) -> bool:
        """Send SIGKILL to the command after so many seconds; returns whether it was still at work."""
        pid = fork_process(self.act)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
