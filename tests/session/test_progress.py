"""What a notebook's cell shows while a run goes on."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fedfault.records import RoundRecord, Score
from fedfault.session.progress import Progress, open_cell


@pytest.fixture
def shown(monkeypatch):
    """What a stand-in of IPython, in a kernel, was told to show."""
    found: list[str] = []
    handle = SimpleNamespace(update=found.append)
    display = SimpleNamespace(HTML=str, display=lambda markup, display_id: handle)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    return found


def track(progress: Progress) -> None:
    with progress.track_rounds(2, []):
        for t in (1, 2):
            progress.show_round(RoundRecord(t, scores={"validation": Score(5.0 - t, 10)}, events=("a < b",)))


def test_a_notebook_has_one_bar_that_moves(shown, capsys):
    track(Progress())
    assert shown[0].startswith('<progress value="0" max="2"></progress> round 0/2')
    assert shown[-1].startswith('<progress value="2" max="2"></progress> round 2/2 &nbsp;loss 3.000')
    assert capsys.readouterr().err == "round 1: a < b\nround 2: a < b\n"


def test_a_quiet_run_shows_nothing(shown, capsys):
    track(Progress(quiet=True))
    assert shown == []
    assert capsys.readouterr().err == ""


def test_an_interactive_shell_is_no_notebook(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert open_cell() is None
    track(Progress())
    assert "round 2/2  loss 3.000" in capsys.readouterr().err


SAID = (
    "no alarm (not calibrated): the average improved, but unevenly: in round 2 three of ten clients were worse off " * 2
)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_in_a_terminal_a_line_breaks_between_words(monkeypatch, capsys, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if this were a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    Progress().say(SAID)
    err = capsys.readouterr().err
    assert max(map(len, err.splitlines())) <= columns
    assert err.split() == SAID.split()
    assert "\x1b" not in err


def test_in_a_file_a_line_stays_one(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    Progress().say(SAID)
    assert capsys.readouterr().err.splitlines() == [SAID]
