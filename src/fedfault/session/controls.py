"""IID control runs of a configuration, and the calibration that they give."""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import fedfault
from fedfault.config.changes import NO_CAUSE
from fedfault.config.loading import Loaded
from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import ALPHA, Calibration, learn_thresholds
from fedfault.diagnosis.detection import build_detectors
from fedfault.records import RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.files import read_records, write_lines
from fedfault.seeds import entropy
from fedfault.session.claim import claim_folder
from fedfault.session.progress import Progress, format_duration
from fedfault.session.provenance import find_commit
from fedfault.setup.experiment import Prepared, describe_sources, prepare

IGNORED = (*NO_CAUSE, "device", "detectors.", "federation.on_failure")  # what controls are the same with


def calibrate_detectors(
    loaded: Loaded, count: int, progress: Progress, out: Path | None = None, argv: Sequence[str] = ()
) -> Path:
    """Train `count` IID controls and write the thresholds that they give; returns the file.

    Controls are kept in RESULTS/NAME-controls, one control-NN.jsonl each, and those that are there are not trained again.
    Raises `UserError` when that folder holds controls of another configuration.
    """
    exp, clock = loaded.experiment, time.perf_counter()
    folder = Path(exp.logging.results_dir).expanduser() / f"{exp.experiment_name}-controls"
    file = out or folder / "calibration.json"
    claim_folder(folder, "controls", loaded, IGNORED)
    file.parent.mkdir(parents=True, exist_ok=True)
    runs, like = [], None
    for i in range(count):
        progress.say(f"control {i + 1} of {count}{_format_time_left(clock, i, count)}")
        records, like = train_control(exp, i, folder / f"control-{i:02d}.jsonl", progress, like)
        runs.append(records)
    thresholds, exact = learn_thresholds(runs, build_detectors())
    like = like or prepare(derive_control(exp, 0), control=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    provenance = {
        "fedfault": fedfault.__version__,
        "commit": find_commit(),
        "command": shlex.join(["fedfault", *argv]),
        "made": now.isoformat(timespec="seconds"),
        "seeds": [derive_control(exp, i).seed for i in range(count)],
        "seconds": round(sum(sum(r.seconds.values()) for run in runs for r in run), 1),
        **{what: describe_sources(like)[what]["fingerprint"] for what in ("model", "corpus")},
    }
    made = Calibration(exp.experiment_name, thresholds, count, ALPHA, exact, loaded.resolved, provenance)
    made.save(file)
    silent = sorted(name for name, d in build_detectors().items() if d.calibrated and name not in thresholds)
    if silent:
        progress.say(f"note: no threshold for {', '.join(silent)}: its numbers are not measured in these runs")
    return file


def derive_control(exp: Experiment, i: int) -> Experiment:
    """Return the configuration of control i: with a seed of its own, far from any that a user would type."""
    return exp.model_copy(update={"seed": entropy(exp.seed, "control", i) % 2**31})


def train_control(
    exp: Experiment, i: int, file: Path, progress: Progress, like: Prepared | None = None
) -> tuple[list[RoundRecord], Prepared | None]:
    """Return the records of control i, from its file where it is there, and what the next one can share."""
    if file.is_file():
        return read_records(file)[0], like
    p = prepare(derive_control(exp, i), like=like, control=True)
    records: list[RoundRecord] = []
    with progress.track_rounds(p.federation.num_rounds, []):
        for _, record in rounds(p.federation, begin(p.federation)):
            records.append(record)
            progress.show_round(record)
    write_lines(file, records)
    return records, p


def _format_time_left(clock: float, done: int, count: int) -> str:
    spent = time.perf_counter() - clock
    return f", about {format_duration(spent / done * (count - done))} to go" if done and spent > 1 else ""
