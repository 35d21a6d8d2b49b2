"""manifest.json, the first file of a run folder: with what a run was made, and how far it got. Needs no torch.

A run is `begun` while its folder is filled (nothing in it counts but this file), `running` while it trains, `trained` when
no round is left and its results and report are written, and over when it is `finished` or was `stopped` by an alarm; one
that had reached what it was to reach is `finished` and has `ended`, before its last round. After
a kill each of these states is still there, and the same command goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from fedfault.errors import UserError, find_near, join_names
from fedfault.runs.files import ROUNDS, check_shape, read_json

Status = Literal["begun", "running", "trained", "stopped", "finished", "incomplete"]
OVER = ("stopped", "finished")  # runs that the same command does not continue
MANIFEST = "manifest.json"
RESULTS = "results"  # the folder of runs for which no other one is named
MONITORED = "monitored"  # the key of a run that another program trained, see the room `monitor`


class Input(TypedDict, total=False):
    """A model, corpus or file that a run read, and a hash of what it read."""

    source: str
    fingerprint: str


class Parent(TypedDict):
    """The run that a fork comes from, the last round that both have, and settings as [there, here]."""

    run: str
    round: int
    changes: dict[str, list[Any]]


class WayBack(TypedDict):
    """A way back from an alarm: to which round, what is different since, and the file of the rounds left behind."""

    to: int
    changes: dict[str, list[Any]]
    settings: list[str]
    records: str
    done: bool


class Stop(TypedDict):
    """The round in which alarms ended a run, and of which detectors."""

    round: int
    by: list[str]


class Continuation(TypedDict):
    """With what else than before a run went on, and after which round: changed settings, as [before, since]."""

    after: int
    changes: dict[str, list[Any]]


class Ending(TypedDict):
    """The round after which a run ended before its last one though nothing was wrong, and why."""

    round: int
    reason: str


class Manifest(TypedDict, total=False):
    """The keys of manifest.json that a run that goes on, a fork or a report relies on; docs/run_folder.md has them all."""

    status: Literal["begun", "running", "trained", "stopped", "finished"]
    config: dict[str, Any]
    command: str
    argv: list[str]
    notes: list[str]
    found: list[str]
    parent: Parent
    abandoned: list[WayBack]
    continued: list[Continuation]
    over_flower: bool
    data_elsewhere: bool
    monitored: bool
    stopped: Stop
    ended: Ending
    seconds: dict[str, float]
    model: Input
    corpus: Input
    tokenizer: Input
    trace: Input
    calibration: Input
    general: Input


_SHAPE = TypeAdapter(Manifest)


def find_status(folder: Path) -> Status | None:
    """Return how far the run in a folder got, or None if the folder holds no run.

    With a configuration and records but without a manifest it is `incomplete`: a report can be made of it, but nothing says
    with which model and data it could go on. Raises `UserError` for a manifest that is damaged or of a newer version.
    """
    configured = (folder / "config.yaml").is_file()
    if not (folder / MANIFEST).is_file():
        return "incomplete" if configured and (folder / ROUNDS).is_file() else None
    if not configured and not _is_ours(folder / MANIFEST):
        return None
    return cast(Status, read_manifest(folder)["status"])


def find_bends(manifest: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Find where a run went on with another number of rounds, of which its schedule of the learning rate is a function.

    Returns the round after which, of how many rounds the schedule was until then, and of how many it is since.

    >>> training = {"lr_schedule": "cosine", "warmup_ratio": 0.0}
    >>> went_on = {"after": 2, "changes": {"federation.num_rounds": [2, 4]}}
    >>> find_bends({"config": {"training": training}, "continued": [went_on]})
    [(2, 2, 4)]
    """
    training, found = manifest.get("config", {}).get("training", {}), dict[int, tuple[int, int]]()
    falls, warm = training.get("lr_schedule", "constant") != "constant", training.get("warmup_ratio", 0.0)
    for one in manifest.get("continued", ()):
        if (both := one["changes"].get("federation.num_rounds")) and one["after"]:
            found[one["after"]] = (found.get(one["after"], both)[0], both[1])  # the run may have gone on there before
    bent = ((after, old, new) for after, (old, new) in sorted(found.items()) if old != new)
    return [bend for bend in bent if falls or warm * max(bend[1:]) > 1]  # a warm-up of one round changes no rate


def describe_bends(manifest: Mapping[str, Any], until: int | None = None) -> list[str]:
    """Say in a sentence each which rounds had learning rates of another schedule; until: of those up to this round."""
    return [
        f"Up to round {after} learning rates are those of a run of {old} rounds, later ones those of a run of {new}, as it "
        f"went on with these: a run of {new} rounds from the start has other numbers."
        for after, old, new in find_bends(manifest)
        if until is None or after <= until
    ]


def find_later_settings(manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Find the settings that a run has changed when it went on and that its numbers follow from, as (begun with, has now).

    >>> more, back = ({"after": 2, "changes": {"federation.num_rounds": both}} for both in ([2, 4], [4, 2]))
    >>> find_later_settings({"continued": [more]}), find_later_settings({"continued": [more, back]})
    ({'federation.num_rounds': (2, 4)}, {})
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key, (old, new) in (item for one in manifest.get("continued", ()) for item in one["changes"].items()):
        found[key] = (found.get(key, (old,))[0], new)
    return {key: both for key, both in found.items() if both[0] != both[1] and key not in ("device", "plugins")}


def holds_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, be it a damaged one."""
    try:
        return find_status(folder) is not None
    except UserError:
        return True


def _is_ours(file: Path) -> bool:
    """Return whether a lone manifest.json, a name that many programs use, is one of a run."""
    try:
        return read_json(file).get("status") in get_args(Status)
    except UserError:
        return False


def check_run(folder: Path) -> Status:
    """Return the status of a run. Raises `UserError` if the folder holds none."""
    status = find_status(folder)
    if status is None:
        raise UserError(
            f"{folder} is not a run folder: config.yaml and rounds.jsonl not found{_suggest_run(folder)}; give the folder "
            "of a run"
        )
    return status


def _suggest_run(folder: Path) -> str:
    """Name the runs that a folder holds, else the one of about its name beside it or in results; else an empty string."""
    if inside := _list_runs(folder):
        return f"; it holds the {'runs' if inside[1:] else 'run'} {join_names(sorted(map(str, inside)))}"
    for place in (folder.parent, Path(RESULTS)):
        runs = {run.name: run for run in _list_runs(place)}
        if near := find_near(folder.name, runs):
            return f"; did you mean {str(runs[near])!r}?"
    return ""


def _list_runs(folder: Path) -> list[Path]:
    try:
        return [one for one in folder.iterdir() if one.is_dir() and holds_run(one)]
    except (OSError, ValueError):  # no folder, or one that may not be read
        return []


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run. Raises `UserError`, which names the key, if it is missing, damaged or newer."""
    file = folder / MANIFEST
    value = read_json(file)
    if value.get("status") not in get_args(Status)[:-1]:
        known = "begun, running, trained, stopped or finished"
        raise UserError(f"{file} is corrupt: its status should be {known}, not {value.get('status')!r}")
    check_shape(file, value, _SHAPE)
    return value


def find_outcome(manifest: Mapping[str, Any]) -> str:
    """Return the status of a run as it is, or will be once its results are written."""
    if manifest.get("status") != "trained":
        return str(manifest.get("status", "unfinished"))
    return "stopped" if "stopped" in manifest else "finished"
