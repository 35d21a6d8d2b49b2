"""What a study is: cells (one setting of all that varies), runs (a cell and a seed), and what is asked of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fedfault.config.changes import spell_value
from fedfault.config.loading import Loaded
from fedfault.errors import UserError, quote
from fedfault.runs.manifest import find_later_settings
from fedfault.session.claim import STUDY
from fedfault.storage import write_atomically

Jobs = int | Literal["auto"]  # how many runs go side by side, see `runner.run_all`
Direction = Literal["higher", "lower", "equal"]
Preference = Literal["lower", "higher"]
FILE = STUDY  # of a study's folder: what the report needs to know besides the runs
RUNS = "runs"  # the folder of the runs in it


def describe_choice(axis: str, label: str) -> str:
    """A choice in words: numbers say nothing without their axis.

    >>> describe_choice("algorithm", "fedavg"), describe_choice("lr", "0.003")
    ('fedavg', 'lr 0.003')
    """
    return label if re.match(r"(?!(true|false|null)\b)[^\W\d]", label) else f"{axis} {label}"


@dataclass(frozen=True)
class Cell:
    """One choice on every axis: `{"algorithm": "fedprox", "lr": "0.003"}`."""

    choices: Mapping[str, str]  # axis -> label of its value
    runs: tuple[str, ...]  # names, in the order of the study's seeds

    @property
    def name(self) -> str:
        """The labels of its choices, numbers with their axis: `fedavg, lr 0.003`."""
        return ", ".join(describe_choice(axis, label) for axis, label in self.choices.items()) or "all"


@dataclass(frozen=True)
class Contrast:
    """Positions of cells: `a` against `b` or a constant; with `c` and `d`, that difference beyond the one of c and d."""

    a: int
    b: int | None = None
    constant: float = 0.0  # where there is no b
    c: int | None = None
    d: int | None = None

    @property
    def cells(self) -> set[int]:
        """Positions of all cells that it needs."""
        return {i for i in (self.a, self.b, self.c, self.d) if i is not None}


@dataclass(frozen=True)
class Hypothesis:
    """A claim about a metric: it holds if it holds for every contrast."""

    name: str
    claim: str
    metric: str
    expect: Direction
    by: float  # smallest difference that matters, in the unit of the metric
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class PhaseMap:
    """A heat map of a metric and of the verdict over two axes; other axes are held as `where` says."""

    name: str
    x: str
    y: str
    metric: str
    where: Mapping[str, str]


@dataclass(frozen=True)
class Best:
    """A question which value of an axis is the best, in every situation that the other axes make."""

    name: str
    axis: str
    metric: str
    prefer: Preference
    by: float  # a difference that is smaller does not matter, in the unit of the metric
    where: Mapping[str, str]


@dataclass(frozen=True)
class Study:
    """A study as its folder remembers it."""

    name: str
    question: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    hypotheses: tuple[Hypothesis, ...] = ()
    maps: tuple[PhaseMap, ...] = ()
    best: tuple[Best, ...] = ()
    limits: tuple[str, ...] = ()  # what the study cannot show, in the author's words
    command: str = ""
    sequential: bool = False  # `seeds: auto`: the seeds are the most that there can be, and runs end with the answers

    def limit(self, seeds: int) -> Study:
        """The study with no more than its first seeds."""
        cells = tuple(Cell(c.choices, c.runs[:seeds]) for c in self.cells)
        return replace(self, seeds=self.seeds[:seeds], cells=cells)

    @property
    def axes(self) -> dict[str, list[str]]:
        """Every axis with the labels of its values, in order."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            for axis, label in cell.choices.items():
                if label not in found.setdefault(axis, []):
                    found[axis].append(label)
        return found

    @property
    def runs(self) -> list[str]:
        """Names of all runs, each once: all cells of the first seed, then all of the second, and so on."""
        return list(dict.fromkeys(cell.runs[i] for i in range(len(self.seeds)) for cell in self.cells))

    def save(self, folder: Path) -> None:
        """Write study.json."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class StudyPlan:
    """A study that is ready to run: its folder, and the checked configuration of every run."""

    study: Study
    folder: Path
    configs: Mapping[str, Loaded] = field(default_factory=dict)  # run -> configuration

    def path(self, run: str) -> Path:
        """The folder of a run."""
        return self.folder / RUNS / run


def describe_other_settings(path: Path, manifest: Mapping[str, Any]) -> str:
    """Say of a run that went on with other settings than the study's that it is none of the study; else nothing."""
    changed = find_later_settings(manifest)
    if not changed:
        return ""
    each = ", ".join(f"{key} {spell_value(old)} -> {spell_value(new)}" for key, (old, new) in changed.items())
    return f"left out, as it went on with other settings ({each}); delete {quote(path)} to have it made again"


def read_study(folder: Path) -> Study:
    """The study of a folder. Raises `UserError` if there is none or it is damaged."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder} is not the folder of a study: {FILE} not found; `fedfault study FILE` makes one")
    try:
        return _from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise UserError(f"{file} is corrupt: {e}; run the study again, which repeats no finished run") from e


def _from_json(value: dict[str, Any]) -> Study:
    hypotheses = [
        Hypothesis(**{**h, "contrasts": tuple(Contrast(**c) for c in h["contrasts"])}) for h in value["hypotheses"]
    ]
    more = {
        "seeds": tuple(value["seeds"]),
        "cells": tuple(Cell(c["choices"], tuple(c["runs"])) for c in value["cells"]),
        "hypotheses": tuple(hypotheses),
        "maps": tuple(PhaseMap(**m) for m in value["maps"]),
        "best": tuple(Best(**b) for b in value.get("best", ())),  # older folders have none
        "limits": tuple(value["limits"]),
    }
    return Study(**{**value, **more})
