"""Control runs of a configuration, IID or honest ones of its partition, and the calibration that they give."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

import fedfault
from fedfault.config.changes import NO_CAUSE, hash_settings
from fedfault.config.loading import Loaded
from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import (
    ALPHA,
    AUTO,
    BROKEN,
    MAY_DIFFER,
    NEEDED,
    Calibration,
    check_replaceable,
    choose_calibration,
    kept_calibrations,
    learn_thresholds,
)
from fedfault.diagnosis.detection import build_detectors
from fedfault.diagnosis.verdict import judge_run
from fedfault.errors import UserError
from fedfault.records import FAILED, UNLEARNED, Records, RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.files import LOCK, is_in_use, lock_folder, read_json, read_records, write_lines
from fedfault.seeds import entropy
from fedfault.session.claim import claim_folder
from fedfault.session.progress import Progress, format_duration
from fedfault.session.provenance import find_commit
from fedfault.setup.experiment import Prepared, prepare
from fedfault.setup.sources import describe_sources
from fedfault.storage import expand_home, write_atomically

CONTENT = "control-sources.json"  # fingerprints of the model, the data and the files that controls were trained with
HASHES = "controls"  # its key with the SHA-256 of every control by its file
OTHERS = ("chat_template", "general", "trace")  # those files
IGNORED = (*NO_CAUSE, "device", "detectors.", "federation.on_failure", "attacks")  # what controls are the same with
ENOUGH = 19  # controls for a rate of false alarms of about 5 %


def calibrate_detectors(
    loaded: Loaded,
    count: int,
    progress: Progress,
    out: Path | None = None,
    argv: Sequence[str] = (),
    *,
    same_partition: bool = False,
) -> Path:
    """Train `count` controls and write the thresholds that they give; returns the file.

    Controls are kept in RESULTS/NAME-controls, one control-NN.jsonl each, and those that are there are not trained again.
    The thresholds are kept in the cache as well, where `detectors.calibration=auto` finds them. same_partition: controls
    are honest runs of the partition with other seeds, instead of IID ones, in RESULTS/NAME-honest; their thresholds are
    where the file is, and nowhere else, as they do not tell what a partition does to a run. Raises `UserError` when that
    folder holds controls of another configuration or is in use, when the file is there and no calibration, and where
    the controls themselves fail or learn nothing.
    """
    exp = loaded.experiment
    if exp.privacy.unit is not None:
        raise UserError(
            f"privacy.unit={exp.privacy.unit}: controls are {count} further models of the same data, which have no "
            "epsilon; calibrate with privacy.unit=null on data that may be published, and name the file that it writes in "
            "detectors.calibration"
        )
    _check_rounds(exp)
    kind = "honest" if same_partition else "controls"
    folder = expand_home(exp.logging.results_dir, "logging.results_dir") / f"{exp.experiment_name}-{kind}"
    file = out or folder / "calibration.json"
    check_replaceable(file)
    claim_folder(folder, "controls", loaded, IGNORED)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["fedfault", *argv])
    with lock_folder(folder):
        made = _make_calibration(loaded.resolved, exp, folder, count, progress, command, same_partition=same_partition)
    made.save(file)
    if not same_partition:
        _keep(made)
    return file


def ensure_calibration(loaded: Loaded, p: Prepared, progress: Progress) -> None:
    """Where a run asks for `auto` and no calibration fits it, train its controls and keep what they give in the cache.

    loaded: the configuration that the run began with, without what it has changed since. Of runs that ask at once one trains
    them, and the others wait. A run whose controls fail or learn nothing stays without calibration, and is told why.
    """
    config, corpus = loaded.resolved, p.split.corpus.fingerprint
    if config["detectors"]["calibration"] != AUTO or p.data_elsewhere:
        return
    folder = kept_calibrations() / f"controls-{_hash_settings(config, corpus, p.backbone.fingerprint)}"
    if choose_calibration(AUTO, config, corpus, p.backbone.fingerprint)[0] is None:
        folder.mkdir(parents=True, exist_ok=True)
        if is_in_use(folder):
            progress.say(f"another process is training the controls in {folder}; waiting for them")
        with filelock.FileLock(folder / LOCK):
            if choose_calibration(AUTO, config, corpus, p.backbone.fingerprint)[0] is None:
                _train_controls(loaded, folder, p, progress)


def _train_controls(loaded: Loaded, folder: Path, p: Prepared, progress: Progress) -> None:
    command = f"detectors.calibration={AUTO}"
    try:
        _check_rounds(loaded.experiment)
        progress.say(
            f"no calibration fits: {ENOUGH} IID control runs of this configuration come first, each about as long as the "
            f"run itself; they are kept in {folder} for all runs like it"
        )
        _keep(_make_calibration(loaded.resolved, loaded.experiment, folder, ENOUGH, progress, command, p))
    except UserError as e:
        progress.say(f"note: the verdict will not be calibrated: {e}")


def _make_calibration(
    config: Mapping[str, Any],
    exp: Experiment,
    folder: Path,
    count: int,
    progress: Progress,
    command: str,
    like: Prepared | None = None,
    *,
    same_partition: bool = False,
) -> Calibration:
    """Train the controls that are not in the folder, and learn from all; `like` lends model and data."""
    lent = like or prepare(derive_control(exp, 0), control=True)
    sources = describe_sources(lent)
    made_of = {what: sources[what]["fingerprint"] for what in ("model", "corpus", *OTHERS) if what in sources}
    _check_content(folder, made_of)
    clock, runs = time.perf_counter(), []
    for i in range(count):
        progress.say(f"control {i + 1} of {count}{_format_time_left(clock, i, count)}")
        file = folder / f"control-{i:02d}.jsonl"
        records, lent = train_control(exp, i, file, progress, lent, iid=not same_partition)
        runs.append(records)
        _write_sources(folder, made_of, {**_read_hashes(folder), file.name: _hash_file(file)})
    _check_healthy(runs, exp)
    thresholds, exact = learn_thresholds(runs, build_detectors(), same_partition=same_partition)
    now = datetime.datetime.now(datetime.timezone.utc)
    provenance = {
        "fedfault": fedfault.__version__,
        "commit": find_commit(),
        "command": command,
        "made": now.isoformat(timespec="seconds"),
        "seeds": [derive_control(exp, i).seed for i in range(count)],
        "seconds": round(sum(sum(r.seconds.values()) for run in runs for r in run), 1),
        **{what: made_of[what] for what in ("model", "corpus")},
    }
    fitting = (name for name, d in build_detectors().items() if d.calibrated and (same_partition or not d.of_partition))
    silent = sorted(set(fitting) - thresholds.keys())
    if silent:
        progress.say(f"note: no threshold for {', '.join(silent)}: its numbers are not measured in these runs")
    return Calibration(exp.experiment_name, thresholds, count, ALPHA, exact, config, provenance, same_partition)


def _check_content(folder: Path, made_of: Mapping[str, str]) -> None:
    """Raise `UserError` where the folder holds controls of another model or of other data under the same settings."""
    file = folder / CONTENT
    hashes = dict[str, str]()
    if file.is_file() and any(folder.glob("control-*.jsonl")):
        hashes = _read_hashes(folder)
        before = {what: found for what, found in read_json(file).items() if what != HASHES}
        other = [what.replace("_", " ") for what, found in before.items() if made_of.get(what) != found]
        if other:
            raise UserError(
                f"{folder} holds controls of another {' and '.join(other)} under the same settings: what these name has "
                "changed since. Delete the folder, or give another experiment_name"
            )
    _write_sources(folder, made_of, hashes)


def _write_sources(folder: Path, made_of: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    write_atomically(folder / CONTENT, json.dumps({**made_of, HASHES: hashes}, indent=1) + "\n")


def _read_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of the controls of a folder by their files; none of those that an older version has trained."""
    file = folder / CONTENT
    return dict(read_json(file).get(HASHES, {})) if file.is_file() else {}


def _hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_rounds(exp: Experiment) -> None:
    """Raise `UserError` where runs are too short for any alarm: controls would be trained for nothing."""
    if exp.federation.num_rounds < NEEDED:
        raise UserError(
            f"federation.num_rounds={exp.federation.num_rounds}: an alarm takes {NEEDED} readings, so only runs of {NEEDED} "
            "rounds or more can be calibrated"
        )


def _check_healthy(runs: Sequence[Records], exp: Experiment) -> None:
    """Raise `UserError` where controls fail or learn nothing: they would call a broken run healthy."""
    states = [judge_run(records, None)["state"] for records in runs]
    bad = sum(state in (FAILED, UNLEARNED) for state in states)
    if bad > BROKEN * len(runs):
        raise UserError(
            f"{bad} of {len(runs)} control runs fail or learn nothing, so they cannot say how a healthy run looks; "
            f"look at training.lr, which is {exp.training.lr:g}, and federation.num_rounds, which is "
            f"{exp.federation.num_rounds}; controls of another rate that learn would judge this run too"
        )


def _keep(made: Calibration) -> None:
    """Write a calibration into the cache, under a name of its own for what it was made from."""
    folder = kept_calibrations()
    folder.mkdir(parents=True, exist_ok=True)
    corpus, model = (str(made.provenance[what]) for what in ("corpus", "model"))
    made.save(folder / f"{_hash_settings(made.config, corpus, model)}.json")


def _hash_settings(config: Mapping[str, Any], corpus: str, model: str) -> str:
    """Hash the settings that controls depend on, and their data by what they are instead of where they lie.

    The model counts where it is a folder, whose content may change.
    """
    own = {"weights": model} if expand_home(config["model"]["name"], "model.name").is_dir() else {}
    return hash_settings({**config, "corpus": corpus, **own}, (*MAY_DIFFER, "data.path"))[:16]


def derive_control(exp: Experiment, i: int) -> Experiment:
    """Return the configuration of control i: nobody attacks, and its seed is far from any that a user would type."""
    return exp.model_copy(update={"seed": entropy(exp.seed, "control", i) % 2**31, "attacks": []})


def train_control(
    exp: Experiment, i: int, file: Path, progress: Progress, like: Prepared, *, iid: bool = True
) -> tuple[list[RoundRecord], Prepared]:
    """Return the records of control i, and what the next one can share.

    They are from its file where that is there, whole, and as it was written; else the control is trained, again if need be.
    """
    if file.is_file():
        records, wrong = _read_control(file, exp.federation.num_rounds)
        if not wrong:
            return records, like
        progress.say(f"note: {wrong}; this control is trained again")
    p = prepare(derive_control(exp, i), like=like, control=iid)
    records = []
    with progress.track_rounds(p.federation.num_rounds, []):
        for _, record in rounds(p.federation, begin(p.federation)):
            records.append(record)
            progress.show_round(record)
    write_lines(file, records)
    return records, p


def _read_control(file: Path, num_rounds: int) -> tuple[list[RoundRecord], str]:
    """Return the records of a control, or else what is wrong with its file."""
    if _read_hashes(file.parent).get(file.name) not in (None, _hash_file(file)):
        return [], f"{file} is not what was written"
    try:
        records, _ = read_records(file)
    except UserError as e:
        return [], str(e)
    if [r.round for r in records] != list(range(num_rounds + 1)):
        return [], f"{file} has {max(0, len(records) - 1)} of {num_rounds} rounds"
    return records, ""


def _format_time_left(clock: float, done: int, count: int) -> str:
    spent = time.perf_counter() - clock
    return f", about {format_duration(spent / done * (count - done))} to go" if done and spent > 1 else ""
