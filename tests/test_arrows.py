"""The house: every module lies in one room, and imports run from the upper floors to the lower ones, never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedfault

ROOT = Path(fedfault.__file__).parent
FLOORS = (  # from the ground up: a room may import what lies on the floors below it, and itself
    "errors saying",
    "anytime records scheduling seeds storage",
    "arguments options plugins processes stats types allocation dealing",
    "registry",
    "algebra config reading text wire",
    "robustness",
    "algorithms aggregations attacks backbones corpora detectors hardware measures partitions ranks selection",
    "metrics privacy runs tasks",
    "data diagnosis report rounds",
    "compare monitor setup",
    "clustering parallel",
    "session",
    "flower studies testing",
    "api",
    "cli",
    "__main__ flags",
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms.split()}
GROUND = {
    "algebra", "anytime", "errors", "records", "registry", "saying", "scheduling", "seeds", "stats", "storage", "types",
}  # fmt: skip
OPEN = {  # an open folder knows the ground and what its files share
    "algorithms": set(),
    "aggregations": {"robustness"},
    "attacks": set(),
    "corpora": {"reading"},
    "detectors": set(),
    "metrics": {"measures"},
    "partitions": {"dealing", "text"},
    "ranks": {"allocation"},
    "selection": set(),
}
WITHOUT_TORCH = (
    "compare.page", "config", "diagnosis.watch", "monitor.folder", "monitor.measured", "monitor.controls", "monitor.files",
    "report.render", "runs.read", "runs.outcome", "cli.app",
)  # fmt: skip


def parts() -> dict[str, list[Path]]:
    """Every room with its files; a module that lies on the ground alone is a room too."""
    found: dict[str, list[Path]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        first = file.relative_to(ROOT).parts[0]
        found.setdefault(first.removesuffix(".py"), []).append(file)
    del found["__init__"]
    return found


def imported(file: Path) -> set[str]:
    """The modules of fedfault that a file imports anywhere in it, without the package's own name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        found |= {n.removeprefix("fedfault.") for n in names if n.startswith("fedfault.")}
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_lies_in_a_room_and_every_room_is_there():
    assert set(parts()) == set(FLOOR)


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_imports_only_from_the_floors_below(room):
    for file in parts()[room]:
        for other in {room_of(m) for m in imported(file)} - {room, "__version__"}:
            assert FLOOR[other] < FLOOR[room], (
                f"{file.relative_to(ROOT)} imports {other}, which does not lie below {room}"
            )


@pytest.mark.parametrize("folder", OPEN)
def test_an_open_folder_knows_the_ground_and_nothing_else(folder):
    for file in parts()[folder]:
        rooms = {room_of(m) for m in imported(file)}
        assert rooms <= GROUND | OPEN[folder] | {folder}, file


@pytest.mark.parametrize("folder", OPEN)
def test_every_file_of_an_open_folder_registers_a_component(folder):
    """The folder is the list: what its files share has a room of its own."""
    for file in parts()[folder]:
        assert file.name == "__init__.py" or "\n@register(" in file.read_text(encoding="utf-8"), file


@pytest.mark.slow
@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, fedfault.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
