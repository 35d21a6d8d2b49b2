"""What the user sees while a run goes on: a live line on a terminal, a bar in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from fedfault.records import ANSWERS, RoundRecord


class Cell:
    """A place in the output of a notebook's cell that is written again and again."""

    def __init__(self, ipython: Any) -> None:
        self.html = ipython.display.HTML
        self.handle = ipython.display.display(self.html(""), display_id=True)

    def show(self, markup: str) -> None:
        """Show this HTML in the place of what was there."""
        self.handle.update(self.html(markup))


def open_cell() -> Cell | None:
    """Open a place in the output of the notebook's cell that runs now; None where this is no notebook."""
    ipython = _find_notebook()
    return None if ipython is None else Cell(ipython)


def _find_notebook() -> Any:
    """The module IPython where this is a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return ipython if hasattr(shell, "kernel") else None


class Bar(RichProgress):
    """A bar of rounds; below it, so that words break between lines and not within, the last round and what goes on now."""

    numbers = phase = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """See `rich.progress.Progress`."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(line, style=style) for line, style in ((self.numbers, ""), (self.phase, "dim")) if line)


class Progress:
    """Prints to standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, force_jupyter=False)
        # In a terminal lines break between words, in a file never
        self.console.soft_wrap = not self.console.is_terminal
        self.total = self.done = 0
        self.targets = "tokens"  # what is counted
        self.started = time.monotonic()
        self.bar: Bar | None = None
        self.cell: Cell | None = None
        self.task = TaskID(0)

    def say(self, line: str) -> None:
        """Print one line of text, in which nothing is markup."""
        self.console.print(Text(line))

    @contextlib.contextmanager
    def track_rounds(self, total: int, before: Sequence[RoundRecord], *, labelled: bool = False) -> Iterator[None]:
        """Within the block, `show_round` reports the rounds of one run; `before` are those of an earlier start.

        labelled: whether labels or scores are learned, so that examples are counted and there is no perplexity.
        """
        self.targets = "examples" if labelled else "tokens"
        self.total, self.done = total, max((r.round for r in before), default=0)
        self.first, self.started = self.done, time.monotonic()
        self.cell = None if self.quiet else open_cell()
        self._show_in_cell("evaluating the base")
        if not self.console.is_terminal or self.quiet or self.cell is not None:
            yield
            return
        with Bar(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=self.console) as self.bar:
            self.task = self.bar.add_task(f"round {self.done}/{total}", total=total, completed=self.done)
            yield
            self.bar.phase = ""

    def show_round(self, record: RoundRecord) -> None:
        """Print a finished round: loss, metrics or perplexity, speed, the time that the rest will take, and its events."""
        self.done = record.round
        line = self._format_round(record)
        if self.bar is not None:
            self.bar.numbers, self.bar.phase = line, ""
            self.bar.update(self.task, completed=record.round, description=f"round {record.round}/{self.total}")
        elif self.cell is not None:
            self._show_in_cell(line)
        else:
            self.say(f"round {record.round}/{self.total}  {line}")
        for event in record.events:
            self.say(f"round {record.round}: {event}")

    def show_phase(self, words: str) -> None:
        """Show on a terminal what the round after the last one is doing: which clients train, evaluation, probes."""
        if self.bar is not None:
            self.bar.phase = (
                f"round {min(self.done + 1, self.total)}: {words}" if self.done or self.bar.numbers else words
            )

    @contextlib.contextmanager
    def show_work(self, words: str) -> Iterator[None]:
        """Within the block, a terminal shows what is being done; a notebook would keep every frame of that."""
        shown = self.console.is_terminal and not self.quiet and _find_notebook() is None
        with self.console.status(words) if shown else contextlib.nullcontext():
            yield

    def _show_in_cell(self, line: str) -> None:
        if self.cell is not None:
            bar = f'<progress value="{self.done}" max="{self.total}"></progress>'
            self.cell.show(f"{bar} round {self.done}/{self.total} &nbsp;{html.escape(line)}")

    def _format_round(self, record: RoundRecord) -> str:
        if (score := record.scores.get("validation")) is not None:
            self.targets = "examples" if score.metrics.keys() - {*ANSWERS} else self.targets
        parts = describe_round(record, self.targets)
        if self.done > self.first:
            left = (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)
            parts.append(
                f"ETA {format_duration(left)}"
                if self.done < self.total
                else f"took {format_duration(time.monotonic() - self.started)}"
            )
        return "  ".join(parts)


def describe_round(record: RoundRecord, targets: str) -> list[str]:
    """Describe a round in a few words each: its loss, its metrics or perplexity, its speed; targets: what is counted."""
    parts = []
    if (score := record.scores.get("validation")) is not None:
        metrics = [f"{name} {value:.3f}" for name, value in score.metrics.items()]
        others = [*([] if targets == "examples" else [f"perplexity {score.perplexity:,.1f}"]), *metrics]
        parts += [f"loss {score.loss:.3f}", *others]
    if record.clients and (spent := record.seconds.get("train")):  # of another program's run nobody told it
        speed = record.tokens / spent
        parts.append(f"{speed:{',.0f' if speed >= 10 else '.2g'}} {targets}/s")
    return parts


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> format_duration(75)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
