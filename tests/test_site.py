"""The documentation site: it builds without a warning and loads nothing from elsewhere; commands and code in pages hold."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from fedfault.cli.app import app
from fedfault.config.loading import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [p for p in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if DOCS / "studies" not in p.parents]
COMMAND = re.compile(r"^    (?:fedfault|python -m fedfault) (.+?)(?: {2,}#.*| # .*)?$", re.MULTILINE)
STANDS_FOR = {"CONFIG": "quickstart", "FILE": "quick"}  # words in capital letters that a reader fills in


def list_blocks(language):
    for page in PAGES:
        for i, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            yield pytest.param(code, id=f"{page.name}-{i}")


def list_commands():
    for page in PAGES:
        for line in COMMAND.findall(page.read_text("utf-8").replace("\\\n", " ")):
            yield pytest.param(line, id=f"{page.name}: {line}")


def flatten(nav):
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from flatten(value) if isinstance(value, list) else [value]


def test_every_page_has_its_place_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    listed = list(flatten(nav))
    assert len(set(listed)) == len(listed)
    assert {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")} == set(listed) - {
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    }


@pytest.mark.parametrize("code", [*list_blocks("python")])
def test_python_in_a_page_is_python(code):
    ast.parse(code)


@pytest.mark.parametrize("code", [*list_blocks("yaml")])
def test_yaml_in_a_page_is_yaml(code):
    assert yaml.safe_load(code)


@pytest.mark.parametrize("line", [*list_commands()])
def test_a_command_in_a_page_exists_with_its_options_and_settings(line):
    words = [STANDS_FOR.get(word, word) for word in shlex.split(line.replace("[KEY=VALUE]...", "").replace("...", ""))]
    words = [word for word in words if not word.startswith("[")]
    command = typer.main.get_command(app)
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        name = words.pop(0) if words[0] in command.commands else "run"  # `fedfault study FILE` leaves it out
        command = command.commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "--install-completion"}
    assert not [w for w in words if w.startswith("--") and w not in known]
    config = [w for w in words[:1] if "=" not in w]
    settings = words[len(config) :]
    if (
        command.name in ("run", "check")
        and all(re.match(r"[a-z]", w) and "=" in w for w in settings)
        and "study" not in line
    ):
        there = (ROOT / config[0]) if config and config[0].endswith(".yaml") else None
        if there is None or there.exists():
            load(there or (config[0] if config else None), settings)


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocstrings", reason='needs pip install "fedfault[docs]"')
    pytest.importorskip("material", reason='needs pip install "fedfault[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"', page.read_text("utf-8"))
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"', page.read_text("utf-8"))
        assert not loaded, page.name


def test_the_style_sheets_of_the_site_are_there():
    sheets = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["extra_css"]
    assert all((DOCS / name).is_file() for name in sheets)
