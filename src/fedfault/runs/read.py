"""Reading a run folder; reading it checks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedfault.config.shorthand import name_components
from fedfault.errors import UserError
from fedfault.records import Finding
from fedfault.runs.files import check_run, read_json, read_lines, read_records, read_text
from fedfault.runs.recorded import Fork, RunData

STATES = ("healthy", "degraded", "failed")  # that a verdict can say


def read(folder: Path | str) -> RunData:
    """Read a run folder: `config.yaml` and `rounds.jsonl`, which a run of no rounds may lack, and what else is there.

    Raises UserError if the folder is not a run folder or a file is corrupt.
    """
    folder = Path(folder)
    unknown = (
        ["manifest.json is missing: what made this run is not known."] if check_run(folder) == "incomplete" else []
    )
    records, notes = read_records(folder / "rounds.jsonl")
    manifest = _mapping(folder / "manifest.json")
    return RunData(
        folder=folder,
        records=tuple(records),
        config=read_config(folder),
        manifest=manifest,
        split=_split(folder / "split.json"),
        heterogeneity=_mapping(folder / "heterogeneity.json"),
        clusters=_mapping(folder / "clusters.json"),
        metrics=_metrics(folder / "metrics.json"),
        findings=tuple(read_lines(folder / "findings.jsonl", Finding.from_json, "finding")[0]),
        forks=_forks(folder, manifest),
        notes=(*unknown, *notes),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run as plain values, with today's names; `UserError` if the file is corrupt."""
    return name_components(_mapping(folder / "config.yaml"))


def _forks(folder: Path, manifest: Mapping[str, Any]) -> tuple[Fork, ...]:
    """The parent of a forked run and the courses that it gave up, as manifest.json names them."""
    try:
        parent, past = manifest.get("parent"), manifest.get("abandoned") or ()
        found = [_fork(folder, "parent", parent["round"], parent, "parent.jsonl")] if parent else []
        return (*found, *(_fork(folder, "given up", p["to"], p, p["records"]) for p in past))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'manifest.json'} is corrupt: parent should hold run, round and changes, and every item of "
            f"abandoned to, changes and records ({error!r})"
        ) from error


def _fork(folder: Path, name: str, round: int, about: Mapping[str, Any], records: str) -> Fork:
    changes = {key: (old, new) for key, (old, new) in about["changes"].items()}
    return Fork(
        name, int(round), changes, tuple(read_records(folder / Path(records).name)[0]), str(about.get("run", ""))
    )


def _metrics(path: Path) -> dict[str, Any]:
    metrics = _mapping(path)
    verdict = metrics.get("verdict")
    if verdict is not None and not (isinstance(verdict, dict) and verdict.get("state") in STATES):
        raise UserError(f"{path} is corrupt: the state of the verdict should be one of {', '.join(STATES)}")
    return metrics


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds keys and values; empty when there is no file."""
    if not path.is_file():
        return {}
    if path.suffix != ".yaml":
        return read_json(path)
    try:
        value = yaml.safe_load(read_text(path))
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
