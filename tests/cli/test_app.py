"""All commands together: help, version, and what is imported for them."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

import fedfault as ff
from fedfault import __version__
from fedfault.config.changes import CAN_CHANGE


@pytest.mark.slow
def test_help_answers_at_once():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "fedfault", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    assert all(
        word in done.stdout for word in ("run", "check", "resume", "fork", "compare", "mitigate", "report", "list")
    )
    assert seconds < 2  # 0.15 s on an idle machine; the bar is 0.5 s


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_help_is_grouped_and_breaks_no_word(fedfault, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    status, out, _ = fedfault("--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= int(columns)
    for word in ("One run", "What came of it", "Many runs", "Real sites", "statistics"):
        assert word in out
    for command in ("run", "resume", "fork", "check", "compare", "calibrate", "diagnose", "evaluate", "list"):
        status, out, _ = fedfault(command, "--help")
        assert (status, "Example:" in out, "\\[" in out) == (0, True, False)
        assert max(map(len, out.splitlines())) <= int(columns)
        assert not {"\x1b", "…"} & set(out)  # no colour, no word that is cut off


def test_the_help_of_resume_names_all_that_can_change(fedfault):
    _, out, _ = fedfault("resume", "--help")
    for said in (out, ff.resume.__doc__):
        assert {key.rstrip(".") for key in CAN_CHANGE} <= set(re.findall(r"[\w.]*\w", said))


def test_the_version_is_printed(fedfault):
    assert fedfault("--version") == (0, f"fedfault {__version__}\n", "")


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv=['fedfault','--help']\nfrom fedfault import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch','transformers','peft','matplotlib','datasets','pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
