"""The files of a run folder as everybody reads and writes them: its status, its records, its JSON. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import filelock

from fedfault.errors import UserError, explain_os_error
from fedfault.records import Finding, RoundRecord, replace_not_finite
from fedfault.storage import write_atomically

T = TypeVar("T")
Status = Literal["running", "stopped", "finished", "incomplete"]
OVER = ("stopped", "finished")  # of a run that ended by itself, and is not repeated


def find_status(folder: Path) -> Status | None:
    """Return how far the run in a folder got, or None if the folder holds no run.

    A run has a config.yaml, and says in manifest.json whether it is `running` (or was killed), `stopped` by an alarm or
    `finished`. With records but without a manifest it is `incomplete`: a report can be made of it, but nothing says with
    which model and data it could go on. Raises `UserError` for a damaged manifest.
    """
    if not (folder / "config.yaml").is_file():
        return None
    file = folder / "manifest.json"
    if not file.is_file():
        return "incomplete" if (folder / "rounds.jsonl").is_file() else None
    status = read_json(file).get("status")
    if status not in get_args(Status):
        raise UserError(f"{file} is corrupt: its status should be running, stopped or finished, not {status!r}")
    return cast(Status, status)


def is_in_use(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder at this moment; False where that cannot be found out."""
    file = folder / ".lock"
    if not file.is_file():
        return False
    try:
        with filelock.FileLock(file, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a read-only folder, in which no run can be at work
        return False


def check_run(folder: Path) -> Status:
    """Return the status of a run. Raises `UserError` if the folder holds none."""
    status = find_status(folder)
    if status is None:
        raise UserError(
            f"{folder} is not a run folder: config.yaml and rounds.jsonl not found; give the folder of a run"
        )
    return status


def read_text(file: Path) -> str:
    """Return the text of a file. Raises `UserError` if it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(explain_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is corrupt: not UTF-8 text ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the keys and values of a JSON file. Raises `UserError` if it is missing or damaged."""
    try:
        value = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is corrupt: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is corrupt: it should hold keys and values, not {type(value).__name__}")
    return value


def read_lines(file: Path, parse: Callable[[Any], T], what: str) -> tuple[list[T], list[str]]:
    """Return what stands on the lines of a JSON-lines file (nothing without a file), and notes on what was left out.

    A last line without its line break was being written when the run was killed: it is left out, with a note. Raises
    `UserError` with the number of any other line that is not a `what`.
    """
    text = read_text(file) if file.exists() else ""
    *whole, last = text.split("\n")
    found: list[T] = []
    for number, line in enumerate([*whole, last] if last else whole, 1):
        try:
            found.append(parse(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number > len(whole):
                return found, [f"The last line of {file.name} is incomplete and was left out."]
            raise UserError(f"{file} is corrupt: line {number} is not a {what} ({error})") from error
    return found, []


def read_records(file: Path) -> tuple[list[RoundRecord], list[str]]:
    """Return the records in a rounds.jsonl or a file like it, and notes on what was left out; see `read_lines`.

    Raises `UserError` for damage, and for rounds that do not count upwards.
    """
    records, notes = read_lines(file, RoundRecord.from_json, "round record")
    numbers = [r.round for r in records]
    if numbers != sorted(set(numbers)):
        raise UserError(f"{file} is corrupt: the rounds do not count upwards ({numbers})")
    return records, notes


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file in one step. Numbers that are not finite become null."""
    write_atomically(file, json.dumps(replace_not_finite(value), indent=1, allow_nan=False) + "\n")


def write_lines(file: Path, items: Iterable[RoundRecord | Finding]) -> None:
    """Write records or findings in one step, a line each."""
    write_atomically(file, "".join(json.dumps(item.to_json(), allow_nan=False) + "\n" for item in items))
