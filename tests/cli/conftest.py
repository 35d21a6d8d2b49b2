"""Fixtures: a command run in this process, and reports with few figures."""

from __future__ import annotations

import signal
import sys

import pytest

from fedfault import cli


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch):
    """Two of the figures, which tests/report draws: seconds of every run."""
    from fedfault.report import gallery

    monkeypatch.setattr(gallery, "FIGURES", {name: gallery.FIGURES[name] for name in ("general", "gantt")})


@pytest.fixture
def fedfault(monkeypatch, capsys):
    """Run a command in this process: (status, standard output, standard error)."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedfault", *words])
        try:
            cli.main()
            status = 0
        except SystemExit as e:
            status = e.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return command


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, as it does not in a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
