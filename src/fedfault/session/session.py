"""What one process holds of a run while it trains it: where it is written, who judges it, and who is told of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedfault.diagnosis.watch import Watch
from fedfault.report.live import LivePage
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST
from fedfault.session.progress import Progress
from fedfault.session.trackers import Trackers


@dataclass(frozen=True)
class Session:
    """A run in the hands of this process. Experiment and state, which change on a way back, go in and out of functions.

    The folder is locked and holds config.yaml.
    """

    folder: RunFolder
    manifest: dict[str, Any]  # changed, and written whenever the run gets further
    watch: Watch
    progress: Progress
    trackers: Trackers
    page: LivePage

    def set_status(self, status: str) -> None:
        """Write into the manifest how far the run is, see `runs.manifest.Status`."""
        self.manifest["status"] = status
        self.folder.write_json(MANIFEST, self.manifest)

    @contextlib.contextmanager
    def count_seconds(self, part: str) -> Iterator[None]:
        """Add the seconds of the block to what this part of the run took, if the block comes to its end."""
        since = time.perf_counter()
        yield
        seconds = self.manifest.setdefault("seconds", {})
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - since
