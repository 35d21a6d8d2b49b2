"""The files of a run folder as everybody reads and writes them: records, and JSON with its version. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
from pydantic import TypeAdapter, ValidationError

from fedfault.errors import InUseError, UserError, explain_os_error
from fedfault.records import Finding, RoundRecord, replace_not_finite
from fedfault.storage import name_file, write_atomically

T = TypeVar("T")
SCHEMA = 2  # of what a run folder holds; files without a number are of version 1 and are still read
ROUNDS = "rounds.jsonl"
LOCK = ".lock"
RESULTS_LOCK = ".results.lock"
INSTANT = 0.2  # seconds: `is_in_use` holds a lock for less


def is_in_use(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder at this moment; False where that cannot be found out."""
    file = folder / LOCK
    if not file.is_file():
        return False
    try:
        with filelock.FileLock(file, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a read-only folder, in which no run can be at work
        return False


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let no other process write to a folder within the block; the lock dies with its process. `InUseError` if one does."""
    try:
        with filelock.FileLock(folder / LOCK, timeout=INSTANT):
            yield
    except filelock.Timeout as e:
        raise InUseError(f"{folder} is in use by another process") from e


@contextlib.contextmanager
def lock_results(folder: Path) -> Iterator[None]:
    """Let commands that add to a file of results, such as `evaluate`, take turns: each reads it anew within the block."""
    with filelock.FileLock(folder / RESULTS_LOCK):
        yield


def read_text(file: Path) -> str:
    """Return the text of a file. Raises `UserError` if it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(explain_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is corrupt: not UTF-8 text ({error})") from error


def append_text(file: Path, text: str) -> None:
    """Add whole lines to a file and wait until they are on disk. Where that fails the file stays as it was."""
    with name_file(file), file.open("ab", buffering=0) as f:
        before, rest = f.tell(), text.encode()
        try:
            while rest:
                rest = rest[f.write(rest) :]
            os.fsync(f.fileno())
        except OSError:
            os.ftruncate(f.fileno(), before)
            raise


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises `ValueError` for one that is none, or nested too deeply to be one of ours."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(file: Path) -> dict[str, Any]:
    """Return the keys and values of a JSON file without its version.

    Raises `UserError` if it is missing, damaged or of a version that is newer than this one reads.
    """
    try:
        value = parse_json(read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is corrupt: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is corrupt: it should hold keys and values, not {type(value).__name__}")
    check_schema(value.pop("schema", 1), file)
    return value


def check_schema(found: Any, file: Path) -> None:
    """Raise `UserError` for the version of a file that is none, or one that only a newer fedfault reads."""
    if type(found) is not int or found < 1:
        raise UserError(f"{file} is corrupt: its schema should be a number from 1 on, not {found!r}")
    if found > SCHEMA:
        raise UserError(
            f"{file} was written by a newer fedfault (schema {found}; this one reads schemas up to {SCHEMA}); nothing is "
            "changed: use that fedfault, `manifest.json` says which"
        )


def check_shape(file: Path, value: Any, shape: TypeAdapter[Any]) -> None:
    """Raise `UserError`, which names the key, unless what stands in a file has the types of a shape."""
    try:
        shape.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{file} is corrupt: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_lines(file: Path, parse: Callable[[Any], T], what: str) -> tuple[list[T], list[str]]:
    """Return what stands on the lines of a JSON-lines file (nothing without a file), and notes on what was left out.

    A last line without its line break that is no JSON was being written when the run was killed: it is left out, with a
    note. Raises `UserError` with the number of any other line that is not a `what`.
    """
    text = read_text(file) if file.exists() else ""
    *whole, last = text.split("\n")
    found: list[T] = []
    for number, line in enumerate([*whole, last] if last else whole, 1):
        try:
            value = parse_json(line)
        except ValueError as error:
            if number > len(whole):
                return found, [f"The last line of {file.name} is incomplete and was left out."]
            raise UserError(f"{file} is corrupt: line {number} is not a {what} ({error})") from error
        try:
            found.append(parse(value))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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


def read_rounds(folder: Path) -> tuple[list[RoundRecord], list[str]]:
    """Return the records in the rounds.jsonl of a run folder, and notes; see `read_records`.

    Raises `UserError` for damage, and where they are not those of rounds 0, 1, 2 and so on.
    """
    records, notes = read_records(folder / ROUNDS)
    for number, record in enumerate(records):
        if record.round != number:
            raise UserError(
                f"{folder / ROUNDS} is corrupt: line {number + 1} is of round {record.round}, and should be of {number}"
            )
    return records, notes


def take_lines(file: Path, count: int) -> bytes:
    """Return the first lines of a file as they are, each with its line break; fewer where there are fewer."""
    lines = file.read_bytes().splitlines(keepends=True)[:count] if file.is_file() else []
    return b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a JSON file with its version in one step. Numbers that are not finite become null."""
    plain = {"schema": SCHEMA, **replace_not_finite(value)}
    write_atomically(file, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def write_lines(file: Path, items: Iterable[RoundRecord | Finding]) -> None:
    """Write records or findings in one step, a line each."""
    write_atomically(file, "".join(json.dumps(item.to_json(), allow_nan=False) + "\n" for item in items))
