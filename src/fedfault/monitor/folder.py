"""The run folder of a monitored run: written round by round, read by everything that reads run folders. Needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import fedfault
from fedfault.diagnosis.calibration import Calibration
from fedfault.diagnosis.watch import write_findings
from fedfault.errors import UserError
from fedfault.records import Finding, RoundRecord
from fedfault.runs.files import ROUNDS, append_text, read_rounds, write_json
from fedfault.runs.manifest import MANIFEST, MONITORED, find_status, read_manifest
from fedfault.runs.outcome import summarise_run
from fedfault.storage import expand_home, write_atomically

LONGEST = 255  # bytes in the name of a folder
NOTE = "Another program trained; fedfault.monitor recorded what it was told, and judged that."


def describe_run(
    name: str, settings: Mapping[str, Any], calibration: Path | str | None, plugins: Sequence[str]
) -> dict[str, Any]:
    """Return the configuration of a monitored run.

    Raises `UserError` for a name that is no name of a folder, settings that are no plain values, and a calibration that was
    not made from monitored runs.
    """
    if not name or Path(name).name != name or "\0" in name or len(os.fsencode(name)) > LONGEST:
        raise UserError(
            f"name={name!r:.60}: it names a folder below results_dir, so it should be one without {os.sep!r}, of at most "
            f"{LONGEST} bytes"
        )
    try:
        plain = json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"settings should be plain values, numbers, texts, lists and mappings of such: {error}"
        ) from error
    file = "none" if calibration is None else str(expand_home(calibration, "calibration").resolve())
    if calibration is not None and "source" not in Calibration.load(Path(file)).config.get("monitor", {}):
        raise UserError(
            f"calibration={calibration} was not made from monitored runs, so it cannot say what is usual in this one; make "
            "one from runs of your own with IID data: `Monitor.calibrate(folders, file)`"
        )
    config: dict[str, Any] = {
        "experiment_name": name,
        "monitor": {"source": MONITORED, "settings": plain},
        "detectors": {"calibration": file},
    }
    return config | ({"plugins": list(plugins)} if plugins else {})


def fill_rounds(last: int | None, record: RoundRecord) -> list[RoundRecord]:
    """Return the record behind those that are missing since the last round, in which nothing was measured."""
    first = 0 if last is None else last + 1
    return [*(RoundRecord(t) for t in range(first, record.round)), record]


class MonitoredFolder:
    """The folder of one monitored run, `finished` or not. Raises `UserError` where the folder is taken."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder and its first files: from here on it can be read."""
        path = path.absolute()  # also where the program changes its working directory
        self.path, self.finished, self._clock, self._written = path, False, time.perf_counter(), 0
        _make_room(path, overwrite)
        self._manifest: dict[str, Any] = {
            "status": "running",
            "config": dict(config),
            "command": "fedfault.monitor.Monitor",
            "fedfault": fedfault.__version__,
            MONITORED: True,
            "notes": [NOTE],
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._write_config(config)
            write_json(path / MANIFEST, self._manifest)
        except OSError as e:
            raise UserError(f"cannot write to {path}: {e.strerror}; choose another results_dir") from e

    def _write_config(self, config: Mapping[str, Any]) -> None:
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def append(self, records: Sequence[RoundRecord]) -> None:
        """Add lines to rounds.jsonl and wait until they are on disk. Raises `UserError` if others have written to it."""
        file = self.path / ROUNDS
        self._check_own(file)
        append_text(file, "".join(json.dumps(record.to_json(), allow_nan=False) + "\n" for record in records))
        self._written = file.stat().st_size

    def _check_own(self, file: Path) -> None:
        if (file.stat().st_size if file.exists() else 0) != self._written:
            raise UserError(
                f"{file} is no longer as this Monitor left it: another one writes to the folder, or has replaced it. Each "
                "run needs a name of its own"
            )

    def read_records(self) -> list[RoundRecord]:
        """Return all records."""
        return read_rounds(self.path)[0]

    def write_findings(self, findings: Sequence[Finding], verdict: Mapping[str, Any]) -> None:
        """Write what was found so far, and the verdict on it."""
        write_findings(self.path, findings)
        write_json(self.path / "metrics.json", {"verdict": dict(verdict)})

    def finish(
        self,
        config: Mapping[str, Any],
        records: Sequence[RoundRecord],
        findings: Sequence[Finding],
        verdict: Mapping[str, Any],
    ) -> None:
        """Write the results and close the folder. Raises `UserError` as `append` does."""
        self._check_own(self.path / ROUNDS)
        self._write_config(config)
        write_findings(self.path, findings)
        write_json(self.path / "metrics.json", {**summarise_run(records), "verdict": dict(verdict)})
        seconds = {"watched": round(time.perf_counter() - self._clock, 1)}
        self._manifest |= {"status": "finished", "config": dict(config), "seconds": seconds}
        write_json(self.path / MANIFEST, self._manifest)
        self.finished = True


def _make_room(path: Path, overwrite: bool) -> None:
    """Delete a monitored run that is to be replaced. Raises `UserError` for anything else that is there."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or find_status(path) is None or not read_manifest(path).get(MONITORED):
        raise UserError(f"{path} is there already and is no monitored run; choose another name")
    if not overwrite:
        raise UserError(f"{path} is there already; choose another name, or replace it with overwrite=True")
    shutil.rmtree(path)
