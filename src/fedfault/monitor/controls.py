"""Thresholds from monitored runs whose clients had IID data. Needs no torch."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import fedfault
from fedfault.config.changes import find_changes
from fedfault.diagnosis.calibration import ALPHA, BROKEN, Calibration, check_replaceable, learn_thresholds
from fedfault.diagnosis.detection import build_detectors
from fedfault.diagnosis.verdict import judge_run
from fedfault.errors import UserError
from fedfault.records import FAILED, UNLEARNED
from fedfault.registry import activate
from fedfault.runs.manifest import MONITORED
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData

MAY_DIFFER = ("settings.seed", "settings.csv", "settings.adapters")  # of the settings of controls; files lie somewhere


def learn_from(folders: Sequence[Path], out: Path) -> Path:
    """Learn the thresholds from monitored runs and write them; see `Monitor.calibrate`.

    Raises `UserError` for a run that is named twice, and where the runs fail or learn nothing.
    """
    check_replaceable(out)
    runs = [_read_control(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; every control should be a run of its own, with another seed")
    for run in runs[1:]:
        _check_alike(runs[0], run)
    activate(runs[0].config.get("plugins", ()) if runs else ())
    states = [judge_run(run.records, None)["state"] for run in runs]
    bad = [run.name for run, state in zip(runs, states, strict=True) if state in (FAILED, UNLEARNED)]
    if len(bad) > BROKEN * len(runs):
        raise UserError(
            f"{len(bad)} of {len(runs)} controls fail or learn nothing ({', '.join(bad)}), so they cannot say how a healthy "
            "run looks; are they runs with IID data that learn?"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    thresholds, exact = learn_thresholds([run.records for run in runs], build_detectors())
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    provenance = {"fedfault": fedfault.__version__, "made": now, "runs": [str(folder) for folder in folders]}
    Calibration(runs[0].name, thresholds, len(runs), ALPHA, exact, runs[0].config, provenance).save(out)
    return out


def _read_control(folder: Path) -> RunData:
    run = read_run(folder)
    if not run.manifest.get(MONITORED):
        raise UserError(f"{folder} is a run of fedfault itself: `fedfault calibrate` trains controls for such runs")
    if run.manifest["status"] != "finished":
        raise UserError(f"{folder} is not finished: a control has to be whole; call `finish` at its end")
    return run


def _check_alike(first: RunData, other: RunData) -> None:
    changes = find_changes(first.config["monitor"], other.config["monitor"])
    told = [f"{key} {there} and {here}" for key, (there, here) in changes.items() if key not in MAY_DIFFER]
    if told:
        raise UserError(
            f"{first.folder} and {other.folder} differ in {'; '.join(told)}: controls are the same run again and again, "
            "with other seeds"
        )
