"""The run folder with its records and checkpoints, written so that a kill at any moment loses at most one round.

results/NAME/
  manifest.json                                first of all, and again when the run gets further
  config.yaml  split.json                      written at the start
  rounds.jsonl                                 one RoundRecord a line, appended and synced
  checkpoint/round-00012.safetensors + .json   the State; the newest whole pair counts
  clients.parquet  metrics.json  adapter/  plots/  report.html       written at the end, from what is above
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedfault.config.changes import MAY_CHANGE, hash_settings
from fedfault.errors import UserError, quote, read_first_line
from fedfault.records import RoundRecord
from fedfault.runs.checkpoint import DAMAGE, FOLDER, About, hash_past, list_checkpoints, locate, read_about, take_past
from fedfault.runs.clients import tabulate_clients
from fedfault.runs.files import LOCK, ROUNDS, append_text, lock_folder, read_json, read_rounds, write_json, write_lines
from fedfault.runs.manifest import MANIFEST, MONITORED, check_run, read_manifest
from fedfault.runs.recorded import RunData
from fedfault.runs.state import read_state, write_state
from fedfault.storage import delete_atomically, delete_scratch, write_atomically
from fedfault.types.adapter import Layout
from fedfault.types.algorithm import State

RESULTS = ("metrics.json", "personal.json", "answers.json", "clients.parquet", "adapter")  # of the last round


class RunFolder:
    """One run's folder. Use `create` or `open`; `lock` keeps a second process out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / FOLDER
        self._past: Any = None  # SHA-256 of rounds.jsonl so far; None until it is asked for
        self._settings: str | None = None  # what `config_hash` found

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a folder that `begin` then makes one of a run; it may be there. Raises `UserError` if it cannot."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot write to {path}: {e.strerror}; choose another logging.results_dir") from e
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run that can go on. Raises `UserError` if the folder holds none, or one without manifest."""
        if check_run(path) == "incomplete":
            raise UserError(
                f"{path} has no manifest.json, which says with which model and data it began: `fedfault report "
                f"{quote(path)}` shows its rounds, but it cannot go on"
            )
        if (path / MANIFEST).is_file() and read_manifest(path).get(MONITORED):
            raise UserError(
                f"another program trained {path}, and fedfault.monitor wrote down what it was told: there is no model here "
                "that could go on; `report`, `diagnose` and `compare` read it"
            )
        return cls(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process write here within the block; the lock dies with its process, whose scratch files go.

        An interrupt leaves the block with a note of the command that goes on.
        """
        try:
            with lock_folder(self.path):
                delete_scratch(self.path)
                yield
        except KeyboardInterrupt as e:
            if (self.path / MANIFEST).is_file():
                e.add_note(f"`fedfault resume {quote(self.path)}` goes on from the last finished round")
            raise

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Make this the folder of a new run, which is `begun` from here on; all that was there before is deleted."""
        self.write_json(MANIFEST, {**manifest, "status": "begun"})
        for old in self.path.iterdir():
            if old.name not in (MANIFEST, LOCK):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        self._past = None

    def delete_results(self) -> None:
        """Delete what the run came to at an end that it goes on from: nobody may take it for the newest round's."""
        for name in RESULTS:
            delete_atomically(self.path / name)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file in one step."""
        self._settings = None
        write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the keys and values of a JSON file. Raises `UserError` if it is missing or damaged."""
        return read_json(self.path / name)

    def read_manifest(self) -> dict[str, Any]:
        """Return manifest.json. Raises `UserError` if it is missing or damaged."""
        return read_manifest(self.path)

    @property
    def config_hash(self) -> str | None:
        """The hash of the configuration that the run began with, without what may change; None if it is not known."""
        if self._settings is None and (self.path / MANIFEST).is_file():
            config = self.read_json(MANIFEST).get("config")
            self._settings = None if config is None else hash_settings(config, MAY_CHANGE)
        return self._settings

    def append(self, record: RoundRecord) -> None:
        """Add a line to rounds.jsonl and wait until it is on disk. Raises `TypeError` for one that cannot be read."""
        file, plain = self.path / ROUNDS, record.to_json()
        RoundRecord.from_json(plain)
        line = json.dumps(plain, allow_nan=False) + "\n"
        append_text(file, line)
        if self._past is not None:
            self._past.update(line.encode())

    def read_records(self) -> list[RoundRecord]:
        """Return all records; a last line cut short by a kill is left out. Raises `UserError` for other damage."""
        return read_rounds(self.path)[0]

    def rewind(self, round: int) -> list[RoundRecord]:
        """Drop the records and checkpoints after `round`; all records for round 0. Returns those that are left."""
        self._delete(t for t in self.list_checkpoints() if t > round)
        kept = take_past(self.path, round)
        write_atomically(self.path / ROUNDS, kept)
        self._past = hashlib.sha256(kept)
        return self.read_records()

    def write_records(self, name: str, records: Sequence[RoundRecord]) -> None:
        """Write a file of records in one step, a line each."""
        write_lines(self.path / name, records)

    def save(self, state: State, keep: int | Literal["all"] = "all", best: int | None = None) -> None:
        """Write a checkpoint; only when it is whole are older ones deleted.

        What stays: the newest `keep`, that of round 0, and that of the round `best`, see `best_round`.
        """
        self.checkpoints.mkdir(exist_ok=True)
        known = self._past is not None and state.round > 0
        records = self._past.hexdigest() if known else hash_past(self.path, state.round)
        write_state(self.checkpoints, state, self.config_hash, records)
        old = [] if keep == "all" else self.list_checkpoints()[:-keep]
        self._delete(t for t in old if t not in (0, best))

    def _delete(self, rounds: Iterable[int]) -> None:
        for t in rounds:
            for suffix in ("json", "safetensors"):
                locate(self.checkpoints, t, suffix).unlink(missing_ok=True)

    def list_checkpoints(self) -> list[int]:
        """Return the rounds that have a checkpoint, in order."""
        return list_checkpoints(self.checkpoints)

    def load(self, layout: Layout, device: Any, round: int | None = None) -> tuple[State, list[str]]:
        """Return the checkpoint of a round, or else the newest whole one with a warning for each damaged one passed over.

        Raises `UserError` when there is none or none that is whole, when it belongs to a model with other trainable sites
        or to another configuration, when its records are not those in rounds.jsonl, and when it is of a newer version.
        """
        if round is not None:
            self.check_checkpoint(round)
        warnings: list[str] = []
        for t in reversed(self.list_checkpoints()) if round is None else [round]:
            try:
                about = read_about(self.checkpoints, t)
                state = read_state(self.checkpoints, about, layout, device)
            except DAMAGE as e:
                warnings.append(f"checkpoint of round {t} is damaged ({read_first_line(e)})")
                continue
            self._check_past(about)
            return state, [f"{warning}; going back to the one before" for warning in warnings]
        others = _format_rounds([t for t in self.list_checkpoints() if t != round])
        raise UserError(
            f"no whole checkpoint in {self.checkpoints}: {'; '.join(warnings) or 'there is none'}"
            + (f"; besides it there are {others}" if round is not None else "")
            + ". Nothing is changed: restore the folder from a copy, if there is one"
        )

    def check_checkpoint(self, round: int) -> None:
        """Raise `UserError` with the rounds that have a checkpoint, if this one has none."""
        if round not in (kept := self.list_checkpoints()):
            raise UserError(
                f"{self.path} has no checkpoint of round {round}; there are {_format_rounds(kept)} "
                "(logging.keep_checkpoints)"
            )

    def _check_past(self, about: About) -> None:
        """Raise `UserError` if a checkpoint is not the one that this run wrote after these records."""
        round = about.state["round"]
        if not self._has_settings(about):
            raise UserError(
                f"the checkpoint of round {round} in {self.checkpoints} belongs to a run with other settings than those in "
                "manifest.json; restore the folder from a copy"
            )
        if about.records in (None, hash_past(self.path, round)):
            return
        whole = [t for t in self.list_checkpoints() if self._has_past(t)]
        way = (
            f", or go on from round {whole[-1]} with `fedfault fork {quote(self.path)} --round {whole[-1]}`"
            if whole
            else ""
        )
        raise UserError(
            f"{self.path / ROUNDS} is not what this run has written up to round {round}: lines were changed, added or lost. "
            f"Nothing is changed: restore the file from a copy{way}"
        )

    def _has_settings(self, about: About) -> bool:
        """Return whether a checkpoint is of the settings in the manifest; older checkpoints and manifests may not say."""
        if None in (about.config, now := self.config_hash):
            return True
        config, counted = self.read_json(MANIFEST)["config"], tuple(key for key in MAY_CHANGE if key != "personalise")
        older = (hash_settings(one, counted) for one in (config, {**config, "personalise": None}))
        return about.config in (now, *older)  # older versions counted personalise, as it is or as if nobody had asked

    def _has_past(self, round: int) -> bool:
        """Return whether the records before this checkpoint are there as they were written."""
        try:
            return read_about(self.checkpoints, round).records == hash_past(self.path, round)
        except (*DAMAGE, UserError):
            return False

    def write_clients(self, records: Sequence[RoundRecord]) -> None:
        """Write clients.parquet: a row for each round and client, also where nothing arrived (`runs/clients.py`)."""
        import pyarrow
        import pyarrow.parquet

        split = self.read_json("split.json") if (self.path / "split.json").is_file() else {}
        rows = tabulate_clients(RunData(self.path, tuple(records), split=split))
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        write_atomically(self.path / "clients.parquet", file.getvalue())


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
