"""What the user sees while a run goes on: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fedfault.records import RoundRecord


class Progress:
    """Prints to standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.total = self.done = 0
        self.targets = "tokens"  # what is counted
        self.started = time.monotonic()
        self.bar: Bar | None = None
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
        if not self.console.is_terminal or self.quiet:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=self.console) as self.bar:
            self.task = self.bar.add_task("round 0", total=total, completed=self.done, numbers="evaluating the base")
            yield

    def show_round(self, record: RoundRecord) -> None:
        """Print a finished round: loss, metrics or perplexity, speed, the time that the rest will take, and its events."""
        self.done = record.round
        line = self._format_round(record)
        if self.bar is not None:
            self.bar.update(
                self.task, completed=record.round, description=f"round {record.round}/{self.total}", numbers=line
            )
        else:
            self.say(f"round {record.round}/{self.total}  {line}")
        for event in record.events:
            self.say(f"round {record.round}: {event}")

    def _format_round(self, record: RoundRecord) -> str:
        parts = []
        if (score := record.scores.get("validation")) is not None:
            metrics = [f"{name} {value:.3f}" for name, value in score.metrics.items()]
            self.targets = "examples" if metrics else self.targets
            others = metrics if self.targets == "examples" else [f"perplexity {score.perplexity:,.1f}"]
            parts += [f"loss {score.loss:.3f}", *others]
        if record.clients:
            parts.append(f"{record.tokens / record.seconds['train']:,.0f} {self.targets}/s")
        if self.done > self.first:
            left = (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)
            parts.append(
                f"ETA {format_duration(left)}"
                if self.done < self.total
                else f"took {format_duration(time.monotonic() - self.started)}"
            )
        return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> format_duration(75)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
