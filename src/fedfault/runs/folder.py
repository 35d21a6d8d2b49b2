"""The run folder: everything a run leaves behind, written so that a kill at any moment loses at most one round.

results/NAME/
  config.yaml  manifest.json  split.json       written at the start
  rounds.jsonl                                 one RoundRecord a line, appended and synced
  checkpoint/round-00012.safetensors + .json   the State; the newest whole pair counts
  clients.parquet  metrics.json  adapter/  plots/  report.html       written at the end, from what is above
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock

from fedfault.errors import UserError
from fedfault.records import RoundRecord, finite
from fedfault.storage import write_atomically
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import State

NO_CAUSE = ("experiment_name", "logging.")  # settings that change no number
PLAIN = (
    "round",
    "weights",
    "ranks",
    "seen",
    "folds",
    "clients_per_pass",
    "plans",
)  # the fields of a State that hold no tensors


class RunFolder:
    """One run's folder. Use `create` or `open`; `locked` keeps a second process out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoint"

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunFolder:
        """A new, empty folder. Raises `UserError` as `check_free` does."""
        cls.check_free(path, overwrite=overwrite)
        try:
            if path.is_dir():
                with cls(path).locked():
                    shutil.rmtree(path)
            (path / "checkpoint").mkdir(parents=True)
        except OSError as e:
            raise UserError(f"cannot write to {path}: {e.strerror}; choose another logging.results_dir") from e
        return cls(path)

    @staticmethod
    def check_free(path: Path, *, overwrite: bool = False) -> None:
        """`UserError` if there is a run already (unless `overwrite`), something else, or no right to write."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not overwrite:
                raise UserError(
                    f"{path} exists already; give another experiment_name, continue it with `fedfault resume {path}`, "
                    "or replace it with --overwrite"
                )
            if not is_run(path):
                raise UserError(f"{path} is not a run of fedfault; --overwrite replaces only runs. Choose another name")
        parent = next(p for p in path.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot write to {parent}; choose another logging.results_dir")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. `UserError` if the folder is none."""
        if not is_run(path):
            raise UserError(f"{path} is not a run folder (no config.yaml and rounds.jsonl in it)")
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process may write here; the lock dies with its process."""
        try:
            with filelock.FileLock(self.path / ".lock", timeout=0):
                yield
        except filelock.Timeout as e:
            raise UserError(f"{self.path} is in use by another process") from e

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one step."""
        write_atomically(self.path / name, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file; `UserError` if it is damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise UserError(f"{self.path / name} cannot be read: {e}") from e

    def append(self, record: RoundRecord) -> None:
        """Add a line to rounds.jsonl and wait until it is on disk."""
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def records(self) -> list[RoundRecord]:
        """All records; a last line cut short by a kill is left out. `UserError` for damage before it."""
        return read_records(self.path / "rounds.jsonl")

    def rewind(self, round: int) -> list[RoundRecord]:
        """Drop the records and checkpoints after `round`; all records for round 0. Returns those that are left."""
        self._delete(t for t in self.kept() if t > round)
        kept = [r for r in self.records() if r.round <= round and round > 0]
        self.write_records("rounds.jsonl", kept)
        return kept

    def write_records(self, name: str, records: Sequence[RoundRecord]) -> None:
        """Write a file of records in one step, a line each."""
        lines = "".join(json.dumps(r.to_json(), allow_nan=False) + "\n" for r in records)
        write_atomically(self.path / name, lines)

    def save(self, state: State, keep: int | Literal["all"] = "all", best: int | None = None) -> None:
        """Write a checkpoint; only when it is whole are older ones deleted.

        What stays: the newest `keep`, that of round 0, and that of the round `best`, see `best_round`.
        """
        from safetensors.torch import save

        groups = {"memory": state.memory, "clients": state.clients}
        tensors = {"x": state.adapter.flat}
        tensors |= {f"{group}/{name}": a.flat for group, items in groups.items() for name, a in items.items()}
        tensors |= {f"base/{name}": change for name, change in state.base.items()}
        tensors |= {} if state.last is None else {"last": state.last.flat}
        data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
        name = f"round-{state.round:05d}"
        about = {
            "state": {name: getattr(state, name) for name in PLAIN},
            "layout": layout_hash(state.adapter.layout),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomically(self.checkpoints / f"{name}.safetensors", data)
        write_atomically(self.checkpoints / f"{name}.json", json.dumps(about))
        old = [] if keep == "all" else self.kept()[:-keep]
        self._delete(t for t in old if t not in (0, best))

    def _delete(self, rounds: Iterable[int]) -> None:
        for t in rounds:
            for suffix in (".json", ".safetensors"):
                (self.checkpoints / f"round-{t:05d}{suffix}").unlink(missing_ok=True)

    def kept(self) -> list[int]:
        """The rounds that have a checkpoint, in order."""
        names = [re.fullmatch(r"round-(\d+)\.json", p.name) for p in self.checkpoints.glob("*.json")]
        return sorted(int(m[1]) for m in names if m)

    def load(self, layout: Layout, device: Any, round: int | None = None) -> tuple[State, list[str]]:
        """The checkpoint of a round, or else the newest whole one with a warning for each damaged one passed over.

        Raises `UserError` when there is none or none that is whole, or when it belongs to a model with other trainable
        sites.
        """
        if round is not None:
            return self._load_named(round, layout, device), []
        warnings: list[str] = []
        for t in reversed(self.kept()):
            try:
                return self._load(t, layout, device), warnings
            except (OSError, ValueError, KeyError, TypeError) as e:
                warnings.append(f"checkpoint of round {t} is damaged ({e}); going back to the one before")
        damaged = "; ".join(warnings) or "there is none"
        raise UserError(f"no whole checkpoint in {self.checkpoints}: {damaged}. Start again with --overwrite")

    def check_kept(self, round: int) -> None:
        """`UserError` with the rounds that have a checkpoint, if this one has none."""
        if round not in (kept := self.kept()):
            raise UserError(
                f"{self.path} has no checkpoint of round {round}; there are {_listed(kept)} (logging.keep_checkpoints)"
            )

    def _load_named(self, round: int, layout: Layout, device: Any) -> State:
        self.check_kept(round)
        try:
            return self._load(round, layout, device)
        except (OSError, ValueError, KeyError, TypeError) as e:
            others = _listed([t for t in self.kept() if t != round])
            raise UserError(
                f"the checkpoint of round {round} in {self.path} is damaged ({e}); besides it there are {others}"
            ) from e

    def _load(self, round: int, layout: Layout, device: Any) -> State:
        from safetensors import SafetensorError
        from safetensors.torch import load

        about = json.loads((self.checkpoints / f"round-{round:05d}.json").read_text(encoding="utf-8"))
        data = (self.checkpoints / f"round-{round:05d}.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError("its checksum does not match")
        if about["layout"] != layout_hash(layout):
            raise UserError(
                f"the checkpoint in {self.checkpoints} belongs to another model or other trainable sites than config.yaml"
            )
        try:
            found = {name: t.to(device) for name, t in load(data).items()}
        except SafetensorError as e:
            raise ValueError(str(e)) from e
        groups: dict[str, dict[str, Any]] = {"memory": {}, "clients": {}, "base": {}}
        for name in set(found) - {"x", "last"}:
            group, _, key = name.partition("/")
            groups[group][key] = found[name] if group == "base" else Adapter(layout, found[name])
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in about["state"].items()}
        last = Adapter(layout, found["last"]) if "last" in found else None
        fields: dict[str, Any] = {"adapter": Adapter(layout, found["x"]), "last": last, **groups, **plain}
        return State(**fields)

    def write_clients(self, records: Sequence[RoundRecord]) -> None:
        """clients.parquet: one row per (round, client), those included of whom nothing arrived; probes are columns."""
        import pyarrow
        import pyarrow.parquet

        rows = [{"round": r.round, **row} for r in records for row in _by_client(r)]
        names = dict.fromkeys(name for row in rows for name in row)
        rows = [{name: row.get(name) for name in names} for row in rows]
        scratch = self.path / f".clients.{os.getpid()}.tmp"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), scratch)
        os.replace(scratch, self.path / "clients.parquet")


def _by_client(record: RoundRecord) -> list[dict[str, Any]]:
    """What a round says of each client, by name: how its turn went where that is simulated, then what it did."""
    rows: dict[int, dict[str, Any]] = {turn.client: dataclasses.asdict(turn) for turn in record.turns}
    for client in record.clients:
        did = dataclasses.asdict(client)
        rows[client.client] = {**rows.get(client.client, {}), **did.pop("probes"), **did}
    return list(rows.values())


def is_run(path: Path) -> bool:
    """Whether a folder is a run: it says which experiment it is."""
    return (path / "config.yaml").is_file() and (path / "manifest.json").is_file()


def read_records(path: Path) -> list[RoundRecord]:
    """The records in a rounds.jsonl; `UserError` with the line when one other than the last is damaged."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(RoundRecord.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as e:
            if i == len(lines) - 1:
                break
            raise UserError(f"{path}:{i + 1}: damaged record ({e})") from e
    return found


def _listed(rounds: Sequence[int]) -> str:
    """Rounds as a reader says them.

    >>> _listed([0, 4, 5, 6, 9])
    'those of rounds 0, 4 to 6, 9'
    """
    runs: list[list[int]] = []
    for t in rounds:
        if runs and t == runs[-1][-1] + 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    parts = [f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return f"those of rounds {', '.join(parts)}" if parts else "none"


def layout_hash(layout: Layout) -> str:
    """Identity of the trainable sites: two runs with the same hash can exchange adapters."""
    text = json.dumps([[s.name, s.kind, s.shape] for s in layout.sites] + [layout.scaling])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """The settings that differ between two resolved configurations: dotted key -> [before, after], None for absent.

    >>> changes({"training": {"lr": 0.1}, "seed": 1}, {"training": {"lr": 0.2}, "seed": 1})
    {'training.lr': [0.1, 0.2]}
    """
    out: dict[str, list[Any]] = {}
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            out |= changes(old or {}, new or {}, f"{prefix}{key}.")
        elif old != new:
            out[f"{prefix}{key}"] = [old, new]
    return out


def best_round(records: Sequence[RoundRecord]) -> int | None:
    """The round with the lowest finite validation loss, the first of equals; None without one."""
    scored = [(r.scores["validation"].loss, r.round) for r in records if "validation" in r.scores]
    finite_ones = [(loss, t) for loss, t in scored if math.isfinite(loss)]
    return min(finite_ones)[1] if finite_ones else None
