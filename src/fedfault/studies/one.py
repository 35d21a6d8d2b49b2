"""One run of a study: begun, continued where a kill left it, or left alone when it is there already."""

from __future__ import annotations

import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedfault.backbones.load import Say, quiet
from fedfault.config.loading import Loaded
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.runs.folder import RunFolder, is_run
from fedfault.session import start as session
from fedfault.session.progress import Progress
from fedfault.setup.experiment import Prepared, prepare

DONE = ("finished", "stopped")  # states of a run that is not repeated
BEGUN = {".lock", "checkpoint", "config.yaml"}  # all that a run killed before its manifest can have left


@dataclass(frozen=True)
class Task:
    """What a worker needs to know of a run."""

    name: str
    path: Path
    loaded: Loaded
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What became of a run."""

    name: str
    state: Literal["there", "finished", "failed"]
    seconds: float = 0.0
    loss: float | None = None  # of validation, at the end
    why: str = ""  # of a failure, in a line
    trace: str = ""  # of a failure that is no user's error


class Lender:
    """Hands model and data of the last run to the next one that needs the same."""

    def __init__(self) -> None:
        self.last: Prepared | None = None

    def prepare(self, exp: Experiment, say: Say = quiet) -> Prepared:
        """As `experiment.prepare`."""
        self.last = prepare(exp, say, like=self.last)
        return self.last


def status(path: Path) -> str | None:
    """Of the run in a folder: running, finished or stopped; None without a run."""
    return str(RunFolder.open(path).read_json("manifest.json").get("status")) if is_run(path) else None


def execute(task: Task, lender: Lender) -> Done:
    """Run it, unless it is finished; whatever goes wrong is told, not raised, so that other runs go on."""
    clock = time.monotonic()
    try:
        there = status(task.path) in DONE
        if not there:
            _train(task, lender)
        state: Literal["there", "finished"] = "there" if there else "finished"
        return Done(task.name, state, time.monotonic() - clock, _loss(task.path))
    except UserError as e:
        return Done(task.name, "failed", time.monotonic() - clock, why=str(e))
    except Exception as e:
        lender.last = None  # it may be what is broken
        told = f"{type(e).__name__}: {e}".splitlines()[0]
        return Done(task.name, "failed", time.monotonic() - clock, why=told, trace=traceback.format_exc())


def _train(task: Task, lender: Lender) -> None:
    progress = Progress(quiet=True)
    if is_run(task.path):
        session.resume(task.path, progress, ready=lender.prepare, draw=False)
        return
    if task.path.is_dir() and {p.name for p in task.path.iterdir()} <= BEGUN:
        with RunFolder(task.path).locked():
            shutil.rmtree(task.path)
    session.start(task.loaded, progress, argv=task.argv, ready=lender.prepare, draw=False)


def _loss(path: Path) -> float | None:
    metrics = RunFolder(path).read_json("metrics.json")
    found: float | None = metrics.get("final", {}).get("validation", {}).get("loss")
    return found
