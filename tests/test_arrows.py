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
    "types": {"records"},
    "records": set(),
    "scheduling": set(),
    "storage": set(),
    "seeds": set(),
    "registry": {"errors"},
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
    "calibration": {"errors", "records", "storage"},
    "detectors": NOUNS,
    "report": {"records", "errors", "plots", "metrics"},
    "plots": {"records", "errors", "report"},
    "compare": {"errors", "metrics", "report", "runs", "seeds", "storage"},
    "config": {"errors", "registry"},
    "backbones": NOUNS,
    "runs": NOUNS,
    "local": NOUNS,
    "cohort_task": NOUNS | {"backbones"},
    "language": NOUNS | {"backbones", "cohort_task", "corpora"},
    "classification": NOUNS | {"backbones", "cohort_task", "corpora", "metrics"},
    "labelled": NOUNS | {"config", "corpora", "data"},
    "integrity": NOUNS,
    "exchange": NOUNS | {"wire"},
    "engine": NOUNS | {"local", "metrics", "wire", "exchange", "integrity"},
    "flower": NOUNS | {"config", "engine", "exchange", "experiment", "local", "progress", "runs", "session", "wire"},
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
