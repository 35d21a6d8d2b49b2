"""Read a whole run folder as `RunData`, and check it while reading. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from fedfault.config.changes import NO_CAUSE, find_changes, spell_value
from fedfault.config.shorthand import name_components
from fedfault.errors import UserError, join_names, quote
from fedfault.records import HEALTHY, NO_ALARM, STATES, Finding, RoundRecord, replace_not_finite
from fedfault.runs.checkpoint import find_changed_past
from fedfault.runs.files import ROUNDS, check_shape, read_json, read_lines, read_records, read_rounds, read_text
from fedfault.runs.manifest import MONITORED, OVER, check_run, describe_bends, read_manifest
from fedfault.runs.recorded import Fork, RunData


def read_run(folder: Path | str) -> RunData:
    """Return the run of a folder: its `config.yaml`, `rounds.jsonl` (absent before the first round), and what else is there.

    Records and a configuration that were changed since are noted; of the latter, what the manifest has is believed. So are
    rounds of another schedule of the learning rate, and results that are missing or do not follow from the records.
    Raises UserError if the folder is not a run folder or a file is corrupt.
    """
    folder = Path(folder)
    status = check_run(folder)
    manifest = {} if status == "incomplete" else read_manifest(folder)
    if status == "begun":  # whatever else is there is of the run that this one replaces
        return RunData(folder, (), config=name_components(manifest.get("config", {})), manifest=manifest)
    records, notes = read_rounds(folder)
    if status == "incomplete":
        notes = ["manifest.json is missing: what made this run is not known.", *notes]
    if (changed := find_changed_past(folder)) is not None:
        notes.append(f"{ROUNDS} is not what the run has written up to round {changed}: do not trust these numbers.")
    config, edits = _read_own_config(folder, manifest)
    metrics = _read_metrics(folder / "metrics.json")
    findings, torn = read_lines(folder / "findings.jsonl", Finding.from_json, "finding")
    known = status in OVER and changed is None  # else nothing says whether records or results are right
    lost = _describe_lost_results(folder, manifest, records, metrics, findings) if known else []
    return RunData(
        folder=folder,
        records=tuple(records),
        config=config,
        manifest=manifest,
        split=_read_split(folder / "split.json"),
        heterogeneity=_read_shaped(folder / "heterogeneity.json", _Heterogeneity),
        clusters=_read_shaped(folder / "clusters.json", _Clusters),
        metrics=metrics,
        blamed=tuple(_read_shaped(folder / "contributions.json", _Contributions).get("rows", ())),
        answers=tuple(_read_shaped(folder / "answers.json", _Answers).get("answers", ())),
        personal=tuple(_read_shaped(folder / "personal.json", _Personal).get("rows", ())),
        benchmarks=tuple(_read_shaped(folder / "benchmarks.json", _Benchmarks).get("rows", ())),
        findings=tuple(findings),
        forks=_read_forks(folder, manifest),
        notes=(*notes, *torn, *lost, *edits, *describe_bends(manifest)),
    )


def _describe_lost_results(
    folder: Path,
    manifest: Mapping[str, Any],
    records: Sequence[RoundRecord],
    metrics: Mapping[str, Any],
    findings: Sequence[Finding],
) -> list[str]:
    """Say which results of a run that is over are missing, or are not those of its records."""
    lost = list[str]()
    if (last := next((r for r in reversed(records) if r.scores), None)) is not None:
        told = {name: score.get("loss") for name, score in metrics.get("final", {}).items()}
        here = manifest["status"] == "finished" and not manifest.get(MONITORED) and not manifest.get("over_flower")
        again = f"; `fedfault resume {quote(folder)}` writes it again" if here else ""
        if not told:
            lost.append(f"metrics.json has no final scores or is missing, and studies count nothing of them{again}.")
        elif told != replace_not_finite({name: score.loss for name, score in last.scores.items()}):
            lost.append(f"metrics.json does not follow from {ROUNDS}: do not trust its numbers{again}.")
    verdict, alarmed = metrics.get("verdict") or {}, {f.detector for f in findings if f.level == "alarm"}
    if unknown := {*verdict.get("causes", ()), *verdict.get("consequences", ())} - alarmed:
        lost.append(
            f"findings.jsonl lacks alarms that the verdict names ({join_names(sorted(unknown))}); "
            f"`fedfault diagnose {quote(folder)}` writes it again."
        )
    return lost


def _read_own_config(folder: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration with which a run began, and a note where config.yaml was edited since.

    A manifest of version 1 does not say with which settings the run began.
    """
    if "config" not in manifest:
        return name_components(_read_mapping(folder / "config.yaml")), []
    began = name_components(manifest["config"])
    try:
        config = name_components(_read_mapping(folder / "config.yaml"))
    except UserError as error:
        return began, [f"{error}; what the run began with is shown."]
    changes = find_changes(began, replace_not_finite(config)) if config else {}
    edits = [
        f"{key} is {spell_value(new)} and was {spell_value(old)}"
        for key, (old, new) in changes.items()
        if not key.startswith(NO_CAUSE)
    ]
    if not edits:
        return config or began, []
    return began, [f"config.yaml is not what the run began with, which is shown: {join_names(edits, 3)}."]


def _read_forks(folder: Path, manifest: Mapping[str, Any]) -> tuple[Fork, ...]:
    """Return the parent of a forked run and the courses that it gave up, as manifest.json names them."""
    parent, past = manifest.get("parent"), manifest.get("abandoned") or ()
    found = [_read_fork(folder, "parent", parent["round"], parent, "parent.jsonl")] if parent else []
    return (*found, *(_read_fork(folder, "given up", p["to"], p, p["records"]) for p in past))


def _read_fork(folder: Path, name: str, round: int, about: Mapping[str, Any], records: str) -> Fork:
    changes = {key: (old, new) for key, (old, new) in about["changes"].items()}
    return Fork(name, round, changes, tuple(read_records(folder / Path(records).name)[0]), about.get("run", ""))


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = _read_shaped(path, _Metrics)
    verdict = metrics.get("verdict")
    if verdict is not None and not (isinstance(verdict, dict) and verdict.get("state") in STATES):
        raise UserError(f"{path} is corrupt: the state of the verdict should be one of {', '.join(STATES)}")
    if verdict is not None and verdict["state"] == HEALTHY and not verdict.get("calibration"):
        # Versions that had one word for both wrote it: nothing had said that the run is healthy
        return {**metrics, "verdict": {**verdict, "state": NO_ALARM}}
    return metrics


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML or JSON file; none when there is no file."""
    if not path.exists():
        return {}
    if path.suffix != ".yaml":
        return read_json(path)
    try:
        value = yaml.safe_load(read_text(path))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        place = f" line {mark.line + 1}:" if (mark := getattr(error, "problem_mark", None)) else ""
        raise UserError(f"{path} is corrupt:{place} {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is corrupt: it should hold keys and values, not {type(value).__name__}")
    return value


def holds_heterogeneity(folder: Path) -> bool:
    """Return whether the heterogeneity.json of a run is there and can be read."""
    try:
        return bool(_read_shaped(folder / "heterogeneity.json", _Heterogeneity))
    except UserError:
        return False


Counts = list[Annotated[int, Field(ge=0)]]


class _Split(TypedDict):
    """What split.json has to hold; further keys may be there."""

    topics: list[Any]
    clients: list[Counts]  # documents by topic
    tokens: Counts
    names: NotRequired[list[Any]]
    attempts: NotRequired[int]
    acceptance: NotRequired[float | None]
    removed: NotRequired[Counts | None]
    notes: NotRequired[list[Annotated[str, Field(min_length=1)]]]
    bytes_per_token: NotRequired[dict[str, float]]
    floor: NotRequired[dict[str, float]]


Index = dict[str, float | None]


class _Heterogeneity(TypedDict, total=False):
    """What heterogeneity.json may hold, beside numbers that nobody reads."""

    sentences: list[str]
    token_js: Index | None
    label_emd: Index | None
    size_cv: Index | None
    embedding_mmd: Index | None
    gradient: Index | None


class _Verdict(TypedDict, total=False):
    causes: list[str]
    consequences: list[str]


class _Metrics(TypedDict, total=False):
    """What metrics.json may hold, as far as files beside it say the same."""

    final: dict[str, dict[str, Any]]
    verdict: _Verdict | None


class _Blamed(TypedDict):
    """A row of contributions.json."""

    round: Annotated[int, Field(ge=0)]
    client: Annotated[int, Field(ge=0)]
    score: str
    left_out: float
    shapley: NotRequired[float]
    error: NotRequired[float]
    pairs: NotRequired[int]


class _Contributions(TypedDict, total=False):
    """What contributions.json may hold."""

    rows: list[_Blamed]


class _Clusters(TypedDict, total=False):
    """What clusters.json may hold, beside what nobody reads."""

    sentence: str
    agreement: float | None


class _Answer(TypedDict, total=False):
    prompt: str
    reference: str
    before: str
    after: str


class _Answers(TypedDict, total=False):
    """What answers.json may hold."""

    answers: list[_Answer]


class _Score(TypedDict):
    model: str
    round: Annotated[int, Field(ge=0)]
    task: str
    metric: str
    filter: str
    value: float | None
    error: float | None


class _Own(TypedDict):
    """A row of personal.json."""

    client: Annotated[int, Field(ge=0)]
    model: Literal["global", "own", "tuned", "alone"]
    loss: float | None
    targets: Annotated[int, Field(ge=0)]
    metrics: dict[str, float | None]


class _Personal(TypedDict, total=False):
    """What personal.json may hold."""

    rows: list[_Own]


class _Benchmarks(TypedDict, total=False):
    """What benchmarks.json may hold."""

    rows: list[_Score]


def _read_shaped(path: Path, shape: type) -> dict[str, Any]:
    """Return the keys and values of a JSON file, none without it. Raises `UserError` if they have other types than these."""
    found = _read_mapping(path)
    check_shape(path, found, TypeAdapter(shape))
    return found


def _read_split(path: Path) -> dict[str, Any]:
    split = _read_mapping(path)
    if not split:
        return {}
    check_shape(path, split, TypeAdapter(_Split))
    clients, topics, names = split["clients"], split["topics"], split.get("names", [])
    if len(split["tokens"]) != len(clients) or any(len(own) != len(topics) for own in clients):
        raise UserError(f"{path} is corrupt: every client needs one document count a topic and one token count")
    if len(names) not in (0, len(clients)):
        raise UserError(f"{path} is corrupt: names should be a list with one name a client")
    return {**split, "topics": [str(t) for t in topics], "names": [str(name) for name in names]}
