"""One run of a study: begun, continued where a kill left it, or left alone when it is there already."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedfault import registry
from fedfault.config.loading import Loaded
from fedfault.config.schema import Experiment
from fedfault.errors import InUseError, UserError
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import OVER, find_status, read_manifest
from fedfault.saying import Say, say_nothing
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from fedfault.setup.experiment import Prepared, prepare
from fedfault.studies.study import describe_other_settings


@dataclass(frozen=True)
class RunTask:
    """What a worker needs to know of a run."""

    name: str
    path: Path
    loaded: Loaded
    argv: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """What became of a run."""

    name: str
    state: Literal["there", "finished", "failed", "busy"]  # busy: another process is making it
    seconds: float = 0.0
    loss: float | None = None  # of validation, at the end
    why: str = ""  # of a failure, in a line
    trace: str = ""  # of a failure that is no user's error


class Lender:
    """Hands model and data of the last run to the next one that needs the same.

    spread: what becomes of every experiment, as `Prepared.spread`.
    """

    def __init__(self, spread: Callable[[Prepared], Prepared] = lambda p: p) -> None:
        self.last: Prepared | None = None
        self.spread = spread

    def prepare(self, exp: Experiment, say: Say = say_nothing) -> Prepared:
        """As `experiment.prepare`."""
        self.last = prepare(exp, say, like=self.last)
        return self.spread(self.last)


def find_result(task: RunTask) -> RunResult | None:
    """Find what became of a run before: it is there, or it is another one by now; None where it is not over."""
    if find_status(task.path) not in OVER:
        return None
    if other := describe_other_settings(task.path, read_manifest(task.path)):
        return RunResult(task.name, "failed", why=other)
    return RunResult(task.name, "there")


def execute_run(task: RunTask, lender: Lender) -> RunResult:
    """Run it, unless it is finished or busy; whatever goes wrong is told, not raised, so that other runs go on."""
    clock = time.monotonic()
    try:
        registry.activate(task.loaded.experiment.plugins)
        if (there := _find_result_and_loss(task)) is not None:
            return there
        start_run(task.loaded, Progress(quiet=True), argv=task.argv, ready=lender.prepare, draw=False)
        return RunResult(task.name, "finished", time.monotonic() - clock, _read_loss(task.path))
    except InUseError:
        return RunResult(task.name, "busy")
    except UserError as e:
        with contextlib.suppress(UserError):
            if (there := _find_result_and_loss(task)) is not None:  # by now: another process has made it
                return there
        return RunResult(task.name, "failed", time.monotonic() - clock, why=str(e))
    except Exception as e:
        lender.last = None  # it may be what is broken
        told = f"{type(e).__name__}: {e}".splitlines()[0]
        return RunResult(task.name, "failed", time.monotonic() - clock, why=told, trace=traceback.format_exc())


def _find_result_and_loss(task: RunTask) -> RunResult | None:
    there = find_result(task)
    return there if there is None or there.state == "failed" else replace(there, loss=_read_loss(task.path))


def _read_loss(path: Path) -> float | None:
    metrics = RunFolder(path).read_json("metrics.json")
    found: float | None = metrics.get("final", {}).get("validation", {}).get("loss")
    return found
