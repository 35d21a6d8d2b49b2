"""The page of a run while it goes on: written between rounds, at intervals so long that training loses 2 % at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from fedfault.report.render import render_live, render_picture
from fedfault.saying import Say

WORDS, PICTURE = 0.005, 0.015  # shares of the time since the start that each may take
FIRST_WORDS, FIRST_PICTURE = 3.0, 100.0  # seconds after the start; how long each takes is not known before
SHORTEST, LONGEST = 10, 120  # seconds after which an open page is loaded again


class LivePage:
    """Keeps report.html of a run up to date between rounds, and says in it that the run was interrupted if it is.

    The words of the page come first; the picture of the losses takes longer. A page that cannot be written is no reason
    to end a run: it is said once, and no other is tried.
    """

    def __init__(
        self,
        folder: Path,
        say: Say,
        *,
        wanted: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """wanted: False where no page is to be written; clock: seconds."""
        self.folder, self.say, self.clock = folder, say, clock
        start = clock()
        self.next_words, self.next_picture = start + FIRST_WORDS, start + FIRST_PICTURE
        self.figures: list[dict[str, Any]] = []
        self.shown, self.off = False, not wanted

    def __enter__(self) -> LivePage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where an error or a signal ends the run, say so in the page that is open somewhere."""
        if kind is not None and self.shown:
            self._try(lambda: render_live(self.folder, self.figures, "interrupted", LONGEST))

    def update(self) -> None:
        """Write the page again if that is due. Call it when a round is recorded."""
        if self.clock() >= self.next_picture:
            self.next_picture = self.clock() + self._try(self._draw) / PICTURE
        if self.clock() >= self.next_words:
            self.next_words = self.clock() + self._try(self._write) / WORDS

    def _draw(self) -> None:
        self.figures = render_picture(self.folder)

    def _write(self) -> None:
        wait = max(SHORTEST, min(LONGEST, round(self.next_picture - self.clock())))
        render_live(self.folder, self.figures, "running", wait)
        self.shown = True

    def _try(self, work: Callable[[], None]) -> float:
        """Do a piece of work and return the seconds that it took."""
        before = self.clock()
        if not self.off:
            try:
                work()
            except Exception as e:
                self.off = True
                self.say(
                    f"note: no page of the run while it goes on ({type(e).__name__}: {e}); the report comes at its end"
                )
        return self.clock() - before
