"""The JSON half of checkpoints: what makes the tensors beside it count, and of what run and past they are. Needs no torch.

It is written last, and without it there is no checkpoint. It knows the hash of the tensors and of itself, of the
configuration of its run, and of the records of all rounds up to its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from fedfault.runs.files import ROUNDS, SCHEMA, check_schema, take_lines
from fedfault.storage import write_atomically

FOLDER = "checkpoint"  # in a run folder
DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)  # what reading a damaged checkpoint raises


class Plain(TypedDict):
    """The fields of a `State` that hold no tensors."""

    round: int
    weights: tuple[int | float, ...]
    ranks: tuple[int, ...]
    seen: tuple[int, ...]
    stored: NotRequired[tuple[int, ...]]
    folds: tuple[int, ...]
    clients_per_pass: int | None
    room: NotRequired[tuple[int, int] | None]
    plans: dict[str, dict[str, Any]]


PLAIN = tuple(Plain.__annotations__)
_PLAIN = TypeAdapter(Plain)


@dataclass(frozen=True)
class About:
    """The JSON half of a checkpoint. Of one of version 1 the configuration and the past are not known."""

    state: Plain
    layout: str  # fingerprint of the trainable sites
    sha256: str  # of the tensors
    config: str | None = None  # hash of the configuration, see `RunFolder.config_hash`
    records: str | None = None  # hash of the records of all rounds up to this one


def write_about(folder: Path, about: About) -> None:
    """Write the JSON half into the folder of checkpoints, with its version and its own checksum."""
    value = {"schema": SCHEMA, **asdict(about)}
    value["checksum"] = _hash_plain(value)
    write_atomically(locate(folder, about.state["round"], "json"), json.dumps(value))


def read_about(folder: Path, round: int) -> About:
    """Read the JSON half of a checkpoint. Raises one of `DAMAGE`, or `UserError` if it is of a newer version."""
    file = locate(folder, round, "json")
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it should hold keys and values, not {type(found).__name__}")
    schema = found.get("schema", 1)
    check_schema(schema, file)
    if (schema > 1 or "checksum" in found) and found.pop("checksum", None) != _hash_plain(found):
        raise ValueError(f"the checksum of {file.name} does not match")
    found.pop("schema", None)
    state = _PLAIN.validate_python(found.pop("state"))
    state.setdefault("stored", state["seen"])  # version 1 began without telling the two apart
    if state["round"] != round:
        raise ValueError(f"it is of round {state['round']}")
    return About(state, **found)


def list_checkpoints(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint in this folder, in order."""
    names = [re.fullmatch(r"round-(\d+)\.json", p.name) for p in folder.glob("*.json")]
    return sorted(int(m[1]) for m in names if m)


def hash_past(run: Path, round: int) -> str:
    """Return the SHA-256 of the records of a run up to a round, by which a checkpoint knows its own past.

    A run that goes on from round 0 measures it again: that checkpoint has no past.
    """
    return hashlib.sha256(take_past(run, round)).hexdigest()


def take_past(run: Path, round: int) -> bytes:
    """Return the lines of rounds.jsonl that a run keeps when it goes on from a round."""
    return take_lines(run / ROUNDS, round + 1 if round > 0 else 0)


def find_changed_past(run: Path) -> int | None:
    """Return the round of the newest whole checkpoint if the records up to it are not as they were written."""
    for t in reversed(list_checkpoints(run / FOLDER)):
        with contextlib.suppress(*DAMAGE):
            return None if read_about(run / FOLDER, t).records in (None, hash_past(run, t)) else t
    return None


def locate(folder: Path, round: int, suffix: str) -> Path:
    """Return where one half of the checkpoint of a round is."""
    return folder / f"round-{round:05d}.{suffix}"


def _hash_plain(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
