"""The run folder with its records and checkpoints, written so that a kill at any moment loses at most one round.

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
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock

from fedfault.errors import UserError
from fedfault.records import RoundRecord
from fedfault.runs.files import check_run, read_json, read_records, write_json, write_lines
from fedfault.storage import name_file, write_atomically
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import Room, State

# the fields of a State that hold no tensors
PLAIN = ("round", "weights", "ranks", "seen", "stored", "folds", "clients_per_pass", "room", "plans")


class RunFolder:
    """One run's folder. Use `create` or `open`; `lock` keeps a second process out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoint"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new, empty folder. Raises `UserError` if something is there already or it cannot be written."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path} exists already; give another experiment_name")
            (path / "checkpoint").mkdir()
        except OSError as e:
            raise UserError(f"cannot write to {path}: {e.strerror}; choose another logging.results_dir") from e
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run that can go on. Raises `UserError` if the folder holds none, or one without manifest."""
        if check_run(path) == "incomplete":
            raise UserError(
                f"{path} has no manifest.json, which says with which model and data it began: `fedfault report {path}` "
                "shows its rounds, but it cannot go on"
            )
        return cls(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process write here within the block; the lock dies with its process."""
        try:
            with filelock.FileLock(self.path / ".lock", timeout=0):
                yield
        except filelock.Timeout as e:
            raise UserError(f"{self.path} is in use by another process") from e

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one step."""
        write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the keys and values of a JSON file. Raises `UserError` if it is missing or damaged."""
        return read_json(self.path / name)

    def append(self, record: RoundRecord) -> None:
        """Add a line to rounds.jsonl and wait until it is on disk."""
        file = self.path / "rounds.jsonl"
        with name_file(file), file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def read_records(self) -> list[RoundRecord]:
        """Return all records; a last line cut short by a kill is left out. Raises `UserError` for other damage."""
        return read_records(self.path / "rounds.jsonl")[0]

    def rewind(self, round: int) -> list[RoundRecord]:
        """Drop the records and checkpoints after `round`; all records for round 0. Returns those that are left."""
        self._delete(t for t in self.list_checkpoints() if t > round)
        kept = [r for r in self.read_records() if r.round <= round and round > 0]
        self.write_records("rounds.jsonl", kept)
        return kept

    def write_records(self, name: str, records: Sequence[RoundRecord]) -> None:
        """Write a file of records in one step, a line each."""
        write_lines(self.path / name, records)

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
            "layout": state.adapter.layout.fingerprint,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        write_atomically(self.checkpoints / f"{name}.safetensors", data)
        write_atomically(self.checkpoints / f"{name}.json", json.dumps(about))
        old = [] if keep == "all" else self.list_checkpoints()[:-keep]
        self._delete(t for t in old if t not in (0, best))

    def _delete(self, rounds: Iterable[int]) -> None:
        for t in rounds:
            for suffix in (".json", ".safetensors"):
                (self.checkpoints / f"round-{t:05d}{suffix}").unlink(missing_ok=True)

    def list_checkpoints(self) -> list[int]:
        """Return the rounds that have a checkpoint, in order."""
        names = [re.fullmatch(r"round-(\d+)\.json", p.name) for p in self.checkpoints.glob("*.json")]
        return sorted(int(m[1]) for m in names if m)

    def load(self, layout: Layout, device: Any, round: int | None = None) -> tuple[State, list[str]]:
        """Return the checkpoint of a round, or else the newest whole one with a warning for each damaged one passed over.

        Raises `UserError` when there is none or none that is whole, or when it belongs to a model with other trainable
        sites.
        """
        if round is not None:
            return self._load_named(round, layout, device), []
        warnings: list[str] = []
        for t in reversed(self.list_checkpoints()):
            try:
                return self._load(t, layout, device), warnings
            except (OSError, ValueError, KeyError, TypeError) as e:
                warnings.append(f"checkpoint of round {t} is damaged ({e}); going back to the one before")
        damaged = "; ".join(warnings) or "there is none"
        raise UserError(f"no whole checkpoint in {self.checkpoints}: {damaged}. Start again with --overwrite")

    def check_checkpoint(self, round: int) -> None:
        """Raise `UserError` with the rounds that have a checkpoint, if this one has none."""
        if round not in (kept := self.list_checkpoints()):
            raise UserError(
                f"{self.path} has no checkpoint of round {round}; there are {_format_rounds(kept)} "
                "(logging.keep_checkpoints)"
            )

    def _load_named(self, round: int, layout: Layout, device: Any) -> State:
        self.check_checkpoint(round)
        try:
            return self._load(round, layout, device)
        except (OSError, ValueError, KeyError, TypeError) as e:
            others = _format_rounds([t for t in self.list_checkpoints() if t != round])
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
        if about["layout"] != layout.fingerprint:
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
        # older versions did not tell the last round that a client was sent from the last that it remembers
        written = {"stored": about["state"]["seen"], **about["state"]}
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in written.items()}
        plain["room"] = None if plain.get("room") is None else Room(*plain["room"])
        last = Adapter(layout, found["last"]) if "last" in found else None
        fields: dict[str, Any] = {"adapter": Adapter(layout, found["x"]), "last": last, **groups, **plain}
        return State(**fields)

    def write_clients(self, records: Sequence[RoundRecord], clients: Sequence[str] = ()) -> None:
        """Write clients.parquet: a row for each round and client, also where nothing arrived; probes are columns.

        clients: (N,) their names, a column too; empty where they have none.
        """
        import pyarrow
        import pyarrow.parquet

        rows = [{"round": r.round, **row} for r in records for row in list_clients(r)]
        rows = [{**row, "name": clients[row["client"]]} for row in rows] if clients else rows
        names = dict.fromkeys(name for row in rows for name in row)
        rows = [{name: row.get(name) for name in names} for row in rows]
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        write_atomically(self.path / "clients.parquet", file.getvalue())


def list_clients(record: RoundRecord) -> list[dict[str, Any]]:
    """Return a row for each client of a round: how its turn went where that is simulated, then what it did."""
    rows: dict[int, dict[str, Any]] = {turn.client: dataclasses.asdict(turn) for turn in record.turns}
    for client in record.clients:
        did = dataclasses.asdict(client)
        rows[client.client] = {**rows.get(client.client, {}), **did.pop("probes"), **did}
    return list(rows.values())


def _format_rounds(rounds: Sequence[int]) -> str:
    """Return rounds as a reader says them.

    >>> _format_rounds([0, 4, 5, 6, 9])
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
