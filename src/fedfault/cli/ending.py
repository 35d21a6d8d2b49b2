"""How commands end: at a signal, and with what is printed last."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer

from fedfault.report.terminal import echo, find_width, format_table

SAME = "the same command goes on where it was stopped"
NOTHING = "nothing was trained or changed"


@contextlib.contextmanager
def end_on_signal(on: str | None = None) -> Iterator[None]:
    """End the process with status 130 at an interrupt and 143 at SIGTERM, and say how to go on: `on`, or its note."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as e:
        told = on or next(iter(getattr(e, "__notes__", ())), NOTHING)
        echo(f"stopped; {told}", err=True)
        raise typer.Exit(128 + (e.args[0] if e.args else signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # Slurm sends it to every process of a job, and the job's script once more
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def show_work(words: str, *, quiet: bool = False) -> Iterator[None]:
    """Within the block, a terminal shows what is being done, unless quiet: imports of torch and matplotlib take seconds."""
    from fedfault.session.progress import Progress

    with Progress(quiet=quiet).show_work(words):
        yield


def print_table(table: Any) -> None:
    """Print a table of a report; None: nothing could be measured, and that is said."""
    typer.echo("nothing was measured" if table is None else "\n".join(format_table(table, find_width())))


def tell_end(folder: Path, progress: Any) -> None:
    """Say how a run ended and what can be done with it; its report is the only line on standard output."""
    from fedfault.report.summary import describe_end
    from fedfault.runs.read import read_run

    for line in describe_end(read_run(folder)):
        progress.say(line)
    typer.echo(f"report: {folder / 'report.html'}")
