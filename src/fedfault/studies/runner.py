"""Run a study: what is finished is not repeated, what was killed goes on, what fails is told at the end."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.compare.pairs import explain_budgets
from fedfault.diagnosis.watch import Watch
from fedfault.errors import UserError, join_names
from fedfault.report.words import format_count
from fedfault.runs.files import is_in_use, lock_folder
from fedfault.runs.manifest import OVER, find_status
from fedfault.session.claim import claim_folder
from fedfault.session.progress import Progress, format_duration
from fedfault.setup.combinations import check_parts
from fedfault.setup.equipment import build_scheduler
from fedfault.storage import write_atomically
from fedfault.studies.one import Lender, RunResult, RunTask, execute_run, find_result
from fedfault.studies.references import check_citations
from fedfault.studies.stopping import run_until_answered
from fedfault.studies.study import RUNS, Jobs, StudyPlan, read_study
from fedfault.studies.together import group_runs, run_together
from fedfault.studies.workers import run_side_by_side

FAILURES = "failures"  # folder of the study with a traceback for each run that failed by a bug
POLL = 1.0  # seconds between two looks at runs that other processes are making


def run_all(plan: StudyPlan, progress: Progress, *, jobs: Jobs = 1, task: int | None = None) -> list[RunResult]:
    """All runs of a plan, or the one numbered `task` from 1 on; returns what became of each.

    jobs: processes side by side; auto: one, in which runs that can train together where the device has room.
    With `seeds: auto` all runs that its hypotheses need, which is known only as results come.
    A run that fails does not stop the others. Runs that other processes are making, by their `task`, come last, when these
    have ended. Raises `UserError` before the first run when parts do not fit together, and where another process, which is
    not at a single task, makes the runs of the same folder.
    """
    names = plan.study.runs
    if task is not None:
        if not 1 <= task <= len(names):
            raise UserError(f"--task {task}: the study has runs 1 to {len(names)}")
        if plan.study.sequential:
            raise UserError(
                "--task: with `seeds: auto` results say which run is next; leave --task out, or give seeds=N"
            )
        names = [names[task - 1]]
    if jobs != "auto" and jobs < 1:
        raise UserError(f"--jobs {jobs}: give 1 or more, or auto")
    check_plan(plan)
    claim_folder(plan.folder, "study")
    with lock_folder(plan.folder) if task is None else contextlib.nullcontext():
        return _run_claimed(plan, names, progress, jobs)


def _run_claimed(plan: StudyPlan, names: Sequence[str], progress: Progress, jobs: Jobs) -> list[RunResult]:
    """Make the runs of these names in a folder that is this study's alone, but for runs that are tasks of an array."""
    _write_study(plan)
    missing = [name for name in names if find_status(plan.path(name)) not in OVER]
    progress.say(f"study {plan.study.name}: {_describe_plan(plan, names, len(missing))}")
    for sentence in _foresee_budgets(plan):
        progress.say(f"note: {sentence}")
    lender = Lender()
    if plan.study.sequential:
        return run_until_answered(plan, lambda some: _run_missing(plan, some, progress, jobs, lender), progress.say)
    return _run_missing(plan, names, progress, jobs, lender)


def _run_missing(
    plan: StudyPlan, names: Sequence[str], progress: Progress, jobs: Jobs, lender: Lender
) -> list[RunResult]:
    """Make those of these runs that are not there; returns what became of all of them, in their order."""
    tasks = [RunTask(name, plan.path(name), plan.configs[name], tuple(_make_argv(plan, name))) for name in names]
    found = {t.name: result for t in tasks if (result := find_result(t)) is not None}
    missing = [t for t in tasks if t.name not in found]
    for one in found.values():
        if one.state == "failed":
            progress.say(f"note: {one.name} is {one.why}")
    clock, coming = time.monotonic(), _execute_all(missing, jobs, progress, lender)
    for number in range(1, len(missing) + 1):
        with progress.show_work(f"run {number}/{len(missing)}"):
            done = next(coming)
        found[done.name] = done
        progress.say(_format_result(done, number, len(missing), time.monotonic() - clock))
        _keep_trace(plan.folder, done)
    return [found[name] for name in names]


def check_plan(plan: StudyPlan) -> None:
    """Refuse parts that cannot be combined, calibrations that do not fit and papers without an entry, in any run."""
    wrong: dict[str, str] = {}
    for cell in plan.study.cells:
        loaded = plan.configs[cell.runs[0]]
        try:
            check_parts(loaded.experiment)
            Watch(loaded.resolved)
            check_citations(functools.partial(_look_up, loaded.resolved))
        except UserError as e:
            wrong.setdefault(str(e), cell.name)
    if wrong:
        raise UserError("\n".join(f"cell {cell}: {line}" for line, cell in wrong.items()))


def _foresee_budgets(plan: StudyPlan) -> list[str]:
    """Explain, before anything runs, that the cells' schedulers will have unequal budgets."""
    asked: dict[str, float | None] = {}
    names = []
    for cell in plan.study.cells:
        exp = plan.configs[cell.runs[0]].experiment
        scheduler = build_scheduler(exp)
        ranks = (scheduler.r_bar, scheduler.asked, float(exp.model.lora.r_max))
        asked[cell.name] = next(rank for rank in ranks if rank is not None)
        names.append(exp.federation.scheduler.name)
    return explain_budgets(asked, names)


def _look_up(settings: Mapping[str, Any], *path: str) -> Any:
    for key in path:
        settings = settings[key]
    return settings


def format_failures(found: Sequence[RunResult]) -> str:
    """A table of the runs that failed; nothing if none did."""
    lost = [d for d in found if d.state == "failed"]
    if not lost:
        return ""
    width = max(len(d.name) for d in lost)
    head = f"{len(lost)} of {format_count(len(found), 'run')} failed; the same command tries them again:"
    return "\n".join([head, *(f"  {d.name:<{width}}  {d.why}" for d in lost)])


def _make_argv(plan: StudyPlan, name: str) -> list[str]:
    """The command that makes this run alone."""
    return ["run", str(plan.path(name) / "config.yaml")]


def _check_same_study(plan: StudyPlan) -> None:
    """Raise `UserError` where the folder holds another study, that is, finished runs of which none is one of this study."""
    try:
        before = read_study(plan.folder)
    except UserError:
        return  # there is none, or its file is damaged and will be whole again
    there = {name for name in before.runs if find_status(plan.path(name)) in OVER}
    if there and not there & set(plan.configs):
        asked = f" ({before.question})" if before.question else ""
        raise UserError(
            f"{plan.folder} holds another study{asked} with {format_count(len(there), 'finished run')}, of which this one "
            "needs none: its report would be replaced. Give experiment_name=NAME, or another --results-dir"
        )


def _write_study(plan: StudyPlan) -> None:
    """Write into the study's folder, unless another study has runs there, what the report needs to know."""
    _check_same_study(plan)
    try:
        plan.study.save(plan.folder)
        (plan.folder / RUNS).mkdir(exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write to {plan.folder}: {e.strerror}; choose another --results-dir") from e


def _describe_plan(plan: StudyPlan, names: Sequence[str], missing: int) -> str:
    s = plan.study
    seeds = f"{'up to ' * s.sequential}{format_count(len(s.seeds), 'seed')}"
    shape = (
        f"{format_count(len(s.cells), 'cell')} x {seeds}, {'at most ' * s.sequential}{format_count(len(names), 'run')}"
    )
    there = len(names) - missing
    return f"{shape}{f', {there} of them done before' if there else ''}; in {plan.folder}"


def _execute_all(tasks: Sequence[RunTask], jobs: Jobs, progress: Progress, lender: Lender) -> Iterator[RunResult]:
    """Results as they come; those of runs that other processes are making when these have let go of them."""
    left, told = {task.name: task for task in tasks}, set[str]()
    while left:
        free = [task for task in left.values() if not is_in_use(task.path)]
        for done in _execute_free(free, jobs, progress, lender):
            if done.state != "busy":
                del left[done.name]
                yield done
        if not free:
            if new := left.keys() - told:
                progress.say(f"other processes are making {join_names(sorted(new), 3)}; waiting for them")
                told |= new
            time.sleep(POLL)


def _execute_free(tasks: Sequence[RunTask], jobs: Jobs, progress: Progress, lender: Lender) -> Iterator[RunResult]:
    if jobs != "auto" and min(jobs, len(tasks)) > 1:
        with contextlib.closing(run_side_by_side(tasks, min(jobs, len(tasks)))) as found:
            yield from found
        return
    for group in group_runs(tasks) if jobs == "auto" else [[task] for task in tasks]:
        if len(group) == 1:
            yield execute_run(group[0], lender)
            continue
        lender.last = None  # its model would take room from those that train together
        progress.say(f"{len(group)} runs train together, as many at once as the device has room for")
        with contextlib.closing(run_together(group)) as found:
            yield from found


def _format_result(done: RunResult, number: int, total: int, spent: float) -> str:
    """One finished run, and the time that the rest will take."""
    loss = "" if done.state == "failed" else f"  loss {'not finite' if done.loss is None else format(done.loss, '.3f')}"
    told = f"  FAILED: {done.why.splitlines()[0]}" if done.state == "failed" else loss
    rest = spent / number * (total - number)
    left = f"ETA {format_duration(rest)}" if number < total else f"took {format_duration(spent)}"
    return f"run {number}/{total}  {done.name}{told}  {done.seconds:.1f} s  {left}"


def _keep_trace(folder: Path, done: RunResult) -> None:
    if done.trace:
        (folder / FAILURES).mkdir(exist_ok=True)
        write_atomically(folder / FAILURES / f"{done.name}.txt", done.trace)
