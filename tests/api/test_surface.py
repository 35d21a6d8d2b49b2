"""What is public, that it comes without torch, that it has types, and that the changelog says when it changes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import fedfault
from fedfault.cli.app import app
from surface import describe, digest

HERE = Path(__file__).parents[1]
ROOT = HERE.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_changelog_says_when_the_public_surface_changes():
    told = "the public surface has changed: run `python tests/surface.py > tests/surface.txt`, and see its docstring"
    assert (HERE / "surface.txt").read_text(encoding="utf-8") == describe(), told
    assert f"public surface {digest(describe())}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), told


def test_the_page_about_python_names_everything_public():
    lines = [line.partition("(")[0] for line in describe().splitlines()]
    functions = [f"`ff.{name}" for name in lines if "." not in name]
    members = [f"`{name}" for name in lines if name.startswith(("Run.", "Study.", "Comparison."))]
    assert not [name for name in [*functions, *members] if name not in PAGE]


def test_every_public_name_has_a_type_for_checkers_and_a_module_that_has_it():
    tree = ast.parse(Path(fedfault.__file__).read_text(encoding="utf-8"))
    typed = {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert set(fedfault.__all__) <= typed
    assert fedfault.__all__ == sorted(fedfault.__all__)
    assert (Path(fedfault.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_import_takes_a_moment_and_no_torch():
    code = "import time; t = time.perf_counter(); import fedfault, sys; s = time.perf_counter() - t\n"
    code += "assert not {'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules); fedfault.UserError\n"
    code += "assert set(fedfault.__all__) <= set(dir(fedfault)); print(s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2


@pytest.mark.long
def test_functions_and_rooms_of_one_name_do_not_hide_each_other():
    code = "import fedfault as ff\nimport fedfault.runs.read, fedfault.compare.page, fedfault.rounds.engine\n"
    code += "from fedfault.runs import read\nfrom fedfault import runs\nimport fedfault.setup.experiment\n"
    code += "assert callable(ff.runs) and callable(ff.compare) and callable(ff.rounds) and runs is ff.runs\n"
    code += "assert read.read_run and not callable(ff.setup)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'fedfault' has no attribute 'runn'"):
        _ = fedfault.runn


@pytest.mark.long
def test_a_users_program_passes_mypy_strictly(tmp_path):
    program = HERE / "program.py"
    assert check_types(program) == "Success: no issues found in 1 source file"
    (tmp_path / "wrong.py").write_text(program.read_text().replace("round=1", 'round="1"'))
    assert 'Argument "round" to "fork" has incompatible type "str"; expected "int"' in check_types(
        tmp_path / "wrong.py"
    )


def check_types(program: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "PASSIVE 4000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None 1000"),
        ({"KMP_BLOCKTIME": "1"}, "None None"),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(given, found):
    """Before torch is there, which reads it once: beside other work threads that wait in a loop hold every core."""
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    code = (
        "import fedfault, os, sys; "
        "print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    )
    env = {key: value for key, value in os.environ.items() if key not in waiting}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"False {found}\n"


@pytest.mark.slow
def test_the_guide_says_which_commands_are_functions_and_which_are_not():
    commands = set(get_command(app).commands)
    page = " ".join((ROOT / "docs" / "guide.md").read_text(encoding="utf-8").split())
    functions, alone = re.search(
        r"import fedfault as ff`: (.*) are functions .*; (.*) are commands alone", page
    ).groups()
    assert {*re.findall(r"`(\w+)`", functions)} == (commands & {*fedfault.__all__})
    assert {*re.findall(r"`(\w+)`", alone)} == commands - {*fedfault.__all__, "report"}
