"""What the command line and the scripts at the root share: run a study, say what came of it, write its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fedfault.errors import UserError
from fedfault.report.terminal import echo
from fedfault.session.progress import Progress
from fedfault.storage import expand_home
from fedfault.studies import file
from fedfault.studies.study import FILE, Jobs, StudyPlan


def run_study(
    path: str,
    settings: Sequence[str],
    *,
    plugins: Sequence[str] = (),
    results_dir: str | None = None,
    jobs: Jobs = 1,
    task: int | None = None,
    only_plan: bool = False,
    quiet: bool = False,
) -> int:
    """Run a study and write its report; returns the exit status: 1 if a run failed."""
    plan = file.load_study(path, settings, results_dir, format_command(), plugins)
    if only_plan:
        echo(format_runs(plan))
        return 0
    return run_plan(plan, Progress(quiet=quiet), jobs=jobs, task=task)


def run_plan(plan: StudyPlan, progress: Progress, *, jobs: Jobs = 1, task: int | None = None) -> int:
    """Run what is not done of a plan and, unless it is one run alone, write the report; returns the exit status."""
    from fedfault.studies import runner

    found = runner.run_all(plan, progress, jobs=jobs, task=task)
    if failures := runner.format_failures(found):
        echo(failures, err=True)
    if task is None and any(done.state != "failed" for done in found):
        write_report(plan.folder)
    return int(bool(failures))


def parse_jobs(text: str) -> Jobs:
    """Read what `--jobs` was given: a number, or auto.

    Raises `UserError` for anything else.
    """
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"--jobs {text}: give a number of processes from 1 on, or auto")


def format_runs(plan: StudyPlan) -> str:
    """The runs of a plan with the numbers that `--task` takes."""
    names = plan.study.runs
    width = len(str(len(names)))
    lines = [f"{number:>{width}}  {name}" for number, name in enumerate(names, 1)]
    return "\n".join(
        [*lines, *[f"{len(names)} runs at most: `seeds: auto` ends with the answers"] * plan.study.sequential]
    )


def write_reports(results_dir: str) -> None:
    """Write the report of every study in a folder. Raises `UserError` if there is none."""
    folders = sorted(path.parent for path in expand_home(results_dir, "logging.results_dir").glob(f"*/{FILE}"))
    if not folders:
        raise UserError(f"no study in {results_dir}; `python run_experiments.py --mode quick` makes one")
    for folder in folders:
        write_report(folder)


def write_report(folder: Path) -> None:
    """Write the report of a study's folder, and say its answers and where it is."""
    from fedfault.studies.clients import format_clients
    from fedfault.studies.page import write_page
    from fedfault.studies.results import format_answers

    found, page = write_page(folder)
    echo("\n".join([format_answers(found), *format_clients(found)]))
    print(f"report: {page}")


def format_command() -> str:
    """What was typed, for the report."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
