"""`fedfault watch`: a run as another process makes it, in a terminal that only looks on; its end ends the looking."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedfault.diagnosis.watch import describe_finding
from fedfault.report.status import describe_phase, estimate_seconds_left, find_activity
from fedfault.report.summary import describe_end
from fedfault.report.terminal import draw_sparkline
from fedfault.runs.files import ROUNDS
from fedfault.runs.manifest import MANIFEST, check_run
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.session.progress import describe_round, format_duration

EVERY = 1.0  # seconds between two looks
FINDINGS_SHOWN = 4


def follow_run(folder: Path, console: Console, wait: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it is over or was interrupted, and then how it ended; nothing in its folder is changed.

    A terminal shows one screen that changes; anything else gets a line for every round and finding. Raises `UserError` if
    the folder holds no run or is damaged.
    """
    check_run(folder)
    with _open_screen(console) as show:
        run = read_run(folder)
        show(run)
        while find_activity(run) == "running":
            seen = _look(folder)
            while find_activity(run) == "running" and _look(folder) == seen:
                wait(EVERY)
            run = read_run(folder)
            show(run)
    if find_activity(run) == "interrupted":
        console.print(Text(f"interrupted after round {run.rounds_done}"))
    for line in describe_end(run):
        console.print(Text(line), soft_wrap=not console.is_terminal)


def _look(folder: Path) -> list[tuple[int, int]]:
    """Return what changes when the run gets further: time and size of its records, findings and manifest."""
    files = [folder / name for name in (ROUNDS, "findings.jsonl", MANIFEST)]
    return [(s.st_mtime_ns, s.st_size) for s in (f.stat() for f in files if f.is_file())]


@contextlib.contextmanager
def _open_screen(console: Console) -> Iterator[Callable[[RunData], None]]:
    """Give a function that shows a run within the block: in one place of a terminal, or in new lines."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield lambda run: live.update(draw_screen(run))
        return
    told = set[str]()

    def tell(run: RunData) -> None:
        for line in list_lines(run):
            if line not in told:
                told.add(line)
                console.print(Text(line), soft_wrap=True)

    yield tell


def list_lines(run: RunData) -> list[str]:
    """List a line for every recorded round, with its events and findings after it."""
    lines = []
    for r in run.records:
        if r.round or r.scores:
            planned = "" if run.rounds_planned is None else f"/{run.rounds_planned}"
            lines.append(f"round {r.round}{planned}  {'  '.join(describe_round(r, run.targets))}".rstrip())
        lines += [f"round {r.round}: {event}" for event in r.events]
        lines += [describe_finding(f) for f in run.findings if f.round == r.round]
    return lines


def draw_screen(run: RunData) -> RenderableType:
    """Draw what is known of a run for a terminal: phase, bar, loss, what the detectors saw, and the time that is left."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    done, planned = run.rounds_done, run.rounds_planned or run.rounds_done
    activity = find_activity(run)
    grid.add_row("phase", describe_phase(run) if activity == "running" else activity or run.status)
    grid.add_row(
        "rounds", Group(Text(f"{done} of {planned}"), ProgressBar(total=planned or 1, completed=done, width=40))
    )
    _, losses = run.losses("validation")
    if losses:
        grid.add_row("loss", f"{draw_sparkline(losses)}  {losses[0]:.3f} to {losses[-1]:.3f} {run.short_unit}")
    if run.records:
        grid.add_row("last", Text("  ".join(describe_round(run.records[-1], run.targets))))
    left = estimate_seconds_left(run)
    if left and activity == "running":
        grid.add_row("left", f"about {format_duration(left)}")
    for finding in run.leading_findings()[:FINDINGS_SHOWN]:
        grid.add_row(finding.level, Text(describe_finding(finding)))
    return Group(Text(run.name, style="bold"), grid)
