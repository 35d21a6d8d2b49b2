"""A signal to stop."""

from __future__ import annotations

import signal

import pytest

from fedfault.cli.ending import show_work
from fedfault.runs.folder import RunFolder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_stop_says_how_to_go_on(fedfault, interruptible, monkeypatch, tmp_path, number, status):
    before = signal.getsignal(number)
    monkeypatch.setattr("fedfault.session.start.start_run", lambda *args, **kwargs: signal.raise_signal(number))
    found, _, err = fedfault("run", f"logging.results_dir={tmp_path}")
    assert found == status
    assert err.endswith("stopped; nothing was trained or changed\n")
    assert signal.getsignal(number) == before


def test_a_signal_while_a_run_is_locked_names_the_command_that_goes_on(fedfault, interruptible, monkeypatch, tmp_path):
    run = RunFolder.create(tmp_path / "a b")

    def interrupted(*args, **kwargs):
        with run.lock():
            run.write_json("manifest.json", {"status": "running"})
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("fedfault.session.start.start_run", interrupted)
    assert f"stopped; `fedfault resume '{tmp_path}/a b'` goes on from the" in fedfault("run")[2]


def test_a_second_signal_does_not_disturb_what_is_done_after_the_first(fedfault, monkeypatch, tmp_path):
    done = []

    def interrupted(*args, **kwargs):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("closed")

    monkeypatch.setattr("fedfault.session.start.start_run", interrupted)
    assert fedfault("run", f"logging.results_dir={tmp_path}")[0] == 143
    assert done == ["closed"]


@pytest.mark.parametrize(("quiet", "shown"), [(False, "loading the run"), (True, "")])
def test_what_is_loading_is_shown_on_a_terminal_unless_quiet(monkeypatch, capsys, quiet, shown):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    monkeypatch.setenv("TERM", "xterm")
    with show_work("loading the run", quiet=quiet):
        pass
    err = capsys.readouterr().err
    assert shown in err
    assert bool(err) is not quiet
