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

from fedfault.errors import UserError
from fedfault.runs.files import ROUNDS, check_shape, read_json

Status = Literal["begun", "running", "trained", "stopped", "finished", "incomplete"]
OVER = ("stopped", "finished")  # runs that the same command does not continue
MANIFEST = "manifest.json"
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
            f"{folder} is not a run folder: config.yaml and rounds.jsonl not found; give the folder of a run"
        )
    return status


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
