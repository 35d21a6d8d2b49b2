"""What a run folder holds, as plain values; reading it checks it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedfault.errors import UserError
from fedfault.records import RoundRecord


@dataclass(frozen=True)
class RunData:
    """One run as it was recorded: finished, broken off or still under way."""

    folder: Path
    records: tuple[RoundRecord, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)  # topics, clients: documents by topic, tokens
    heterogeneity: Mapping[str, Any] = field(default_factory=dict)  # indices of skew beside chance, sentences
    notes: tuple[str, ...] = ()  # what the reader should know about the files themselves

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's."""
        return str(self.config.get("experiment_name") or self.folder.resolve().name)

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """Topics in the order of the split, then any that only have scores."""
        scored = [name.removeprefix("topic/") for name in self.names("topic/")]
        return tuple(dict.fromkeys([*self.split.get("topics", ()), *scored]))

    @cached_property
    def num_clients(self) -> int:
        """Clients of the split; without a split, as far as the records know."""
        seen = [c.client for r in self.records for c in r.clients]
        scored = [int(name.removeprefix("client/")) for name in self.names("client/")]
        return max([len(self.split.get("clients", ())), *(i + 1 for i in seen + scored)])

    @property
    def rounds_done(self) -> int:
        """The last recorded round; 0 is the model before training."""
        return self.records[-1].round if self.records else 0

    @property
    def rounds_planned(self) -> int | None:
        """Rounds that the configuration asks for."""
        planned = self.setting("federation", "num_rounds")
        return planned if isinstance(planned, int) else None

    @property
    def finished(self) -> bool:
        """All rounds are there and the manifest, if it says anything, says so."""
        short = self.rounds_planned is not None and self.rounds_done < self.rounds_planned
        return bool(self.records) and not short and self.manifest.get("status", "finished") == "finished"

    def setting(self, *path: str) -> Any:
        """A value of the configuration by its path; None where it is absent."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def names(self, prefix: str) -> list[str]:
        """Score names that begin with the prefix, in order of appearance."""
        return list(dict.fromkeys(n for r in self.records for n in r.scores if n.startswith(prefix)))

    def losses(self, name: str) -> tuple[list[int], list[float]]:
        """Rounds in which the score was measured, and its loss in nats per token."""
        measured = [(r.round, r.scores[name].loss) for r in self.records if name in r.scores]
        return [n for n, _ in measured], [loss for _, loss in measured]

    def dominant(self, client: int) -> str | None:
        """The topic that most of the client's documents belong to; None when the split does not say."""
        rows = self.split.get("clients", ())
        if client >= len(rows) or not sum(rows[client]):
            return None
        return str(self.split["topics"][max(range(len(rows[client])), key=rows[client].__getitem__)])

    def trained(self, record: RoundRecord) -> list[str | None]:
        """The dominant topic of each client that trained in the round."""
        return [self.dominant(c.client) for c in record.clients]

    def probe(self, name: str) -> tuple[list[int], list[float]]:
        """Rounds in which the probe was taken, and its value; JSON has no NaN, so null stands for it."""
        taken: list[tuple[int, float | None]] = [(r.round, r.probes[name]) for r in self.records if name in r.probes]
        return [n for n, _ in taken], [math.nan if value is None else value for _, value in taken]

    def rises(self, name: str) -> list[tuple[float, int]]:
        """By how much the loss rose from one evaluation to the next, and in which round; falls are left out."""
        rounds, losses = self.losses(name)
        steps = [(b - a, n) for a, b, n in zip(losses, losses[1:], rounds[1:], strict=False)]
        return [(rise, n) for rise, n in steps if math.isfinite(rise) and rise > 0]


def read(folder: Path | str) -> RunData:
    """Read a run folder: `config.yaml` and `rounds.jsonl`, which a run of no rounds may lack, and what else is there.

    Raises UserError if the folder is not a run folder or a file is corrupt.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() or not any(
        (folder / f).is_file() for f in ("rounds.jsonl", "manifest.json")
    ):
        raise UserError(
            f"{folder} is not a run folder: config.yaml and rounds.jsonl not found; give the folder of a run"
        )
    records, notes = _records(folder / "rounds.jsonl")
    return RunData(
        folder=folder,
        records=records,
        config=_mapping(folder / "config.yaml"),
        manifest=_mapping(folder / "manifest.json"),
        split=_split(folder / "split.json"),
        heterogeneity=_mapping(folder / "heterogeneity.json"),
        notes=notes,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is corrupt: not UTF-8 text ({error})") from error


def _records(path: Path) -> tuple[tuple[RoundRecord, ...], tuple[str, ...]]:
    """The records, and a note when the last line was still being written."""
    text = _text(path) if path.is_file() else ""
    lines = text.splitlines()
    records: list[RoundRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(RoundRecord.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                return tuple(records), (f"The last line of {path.name} is incomplete and was left out.",)
            raise UserError(f"{path} is corrupt: line {number} is not a round record ({error})") from error
    numbers = [r.round for r in records]
    if numbers != sorted(set(numbers)):
        raise UserError(f"{path} is corrupt: the rounds do not count upwards ({numbers})")
    return tuple(records), ()


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds keys and values; empty when there is no file."""
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(_text(path)) if path.suffix == ".yaml" else json.loads(_text(path))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is corrupt: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is corrupt: it should hold keys and values, not {type(value).__name__}")
    return value


def _split(path: Path) -> dict[str, Any]:
    split = _mapping(path)
    if not split:
        return {}
    topics, clients, tokens = (split.get(key) for key in ("topics", "clients", "tokens"))
    if not (isinstance(topics, list) and isinstance(clients, list) and isinstance(tokens, list)):
        raise UserError(f"{path} is corrupt: it should hold the lists topics, clients and tokens")
    if len(tokens) != len(clients) or any(not isinstance(c, list) or len(c) != len(topics) for c in clients):
        raise UserError(f"{path} is corrupt: every client needs one document count a topic and one token count")
    return {**split, "topics": [str(t) for t in topics]}
