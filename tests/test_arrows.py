"""Import arrows go one way: cli -> session -> engine -> nouns, and the open folders know only the nouns."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedfault

ROOT = Path(fedfault.__file__).parent
NOUNS = {"types", "records", "scheduling", "algebra", "registry", "seeds", "errors", "storage"}
ALLOWED = {  # folder or file -> the parts of fedfault that it may import, besides itself
    "errors": set(),
    "types": {"records", "scheduling"},
    "records": set(),
    "scheduling": set(),
    "storage": set(),
    "seeds": set(),
    "registry": {"errors"},
    "processes": {"errors"},
    "links": {"processes"},
    "algebra": {"types", "seeds"},
    "wire": {"types"},
    "algorithms": NOUNS,
    "aggregations": NOUNS,
    "partitions": NOUNS,
    "corpora": NOUNS,
    "ranks": {"scheduling", "registry", "seeds", "errors"},
    "clock": {"scheduling", "errors"},
    "timing": {"scheduling"},
    "traces": {"scheduling", "errors"},
    "metrics": NOUNS,
    "remedies": {"config"},
    "outcome": {"metrics", "records", "runs"},
    "trackers": {"errors", "records"},
    "watch": {"calibration", "detection", "records", "report", "storage"},
    "detection": {"calibration", "records", "registry"},
    "calibration": {"config", "errors", "records", "storage"},
    "detectors": NOUNS,
    "report": {"records", "errors", "plots", "metrics"},
    "plots": {"records", "errors", "report"},
    "compare": {"errors", "metrics", "report", "runs", "seeds", "storage"},
    "studies": {
        "backbones",
        "compare",
        "config",
        "detection",
        "errors",
        "experiment",
        "plots",
        "processes",
        "progress",
        "records",
        "registry",
        "report",
        "runs",
        "seeds",
        "session",
        "storage",
        "watch",
    },
    "config": {"errors", "registry"},
    "backbones": NOUNS | {"processes"},
    "runs": NOUNS,
    "local": NOUNS,
    "cohort_task": NOUNS | {"backbones"},
    "mixed": NOUNS | {"cohort_task"},
    "language": NOUNS | {"backbones", "cohort_task", "corpora"},
    "classification": NOUNS | {"backbones", "cohort_task", "corpora", "metrics"},
    "labelled": NOUNS | {"config", "corpora", "data"},
    "integrity": NOUNS,
    "exchange": NOUNS | {"wire"},
    "hardware": NOUNS | {"clock", "timing", "traces"},
    "equipment": NOUNS
    | {"clock", "cohort_task", "config", "dispatch", "engine", "federation", "hardware", "local", "mixed", "traces"},
    "federation": NOUNS | {"exchange", "hardware", "local"},
    "clients": NOUNS | {"exchange", "federation", "integrity", "local", "metrics"},
    "dispatch": NOUNS | {"clock", "exchange", "federation", "hardware"},
    "engine": NOUNS | {"clients", "dispatch", "exchange", "federation", "hardware", "integrity", "local", "metrics"},
    "parts": NOUNS | {"cohort_task", "federation"},
    "distributed": NOUNS
    | {"backbones", "clients", "cohort_task", "config", "experiment", "federation", "links", "local", "parts"}
    | {"processes", "runs"},
    "flower": NOUNS
    | {"backbones", "clients", "config", "equipment", "exchange", "experiment", "federation", "hardware", "local"}
    | {"labelled", "progress", "runs", "session", "wire"},
    "mitigation": NOUNS
    | {
        "backbones",
        "cohort_task",
        "config",
        "corpora",
        "data",
        "engine",
        "experiment",
        "federation",
        "local",
        "progress",
        "report",
    }
    | {"runs", "session"},
    "heterogeneity": NOUNS | {"backbones", "classification", "corpora", "data", "language", "metrics", "partitions"},
}


def imported(file: Path) -> set[str]:
    """The parts of fedfault that a file imports anywhere in it, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "fedfault" else node.module for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("fedfault.")}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part):
    files = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").is_file() else sorted((ROOT / part).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) - {part} <= ALLOWED[part], file
