"""Where a run stands: at work, interrupted or over, as the page says it."""

import json

import filelock
import pytest

from fedfault.records import NO_ALARM
from fedfault.report import gallery, render
from fedfault.report.render import render_live, render_report
from fedfault.report.status import describe_phase, estimate_seconds_left, find_activity
from fedfault.runs.read import read_run
from handmade import HISTORY, update, write


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", {})


def test_a_run_is_running_while_its_lock_is_held_interrupted_afterwards_and_neither_when_it_is_over(tmp_path):
    folder = write(tmp_path / "r", HISTORY[:2], status="running")
    with filelock.FileLock(folder / ".lock"):
        assert find_activity(read_run(folder)) == "running"
    assert find_activity(read_run(folder)) == "interrupted"
    update(folder / "manifest.json", status="finished")
    assert find_activity(read_run(folder)) is None


def test_the_rest_takes_as_long_as_the_rounds_before_it(tmp_path):
    """Round 1 took 2 s, so that two more take 4 s; round 0 is no training."""
    run = read_run(write(tmp_path, HISTORY[:2], status="running"))
    assert estimate_seconds_left(run) == 4.0
    assert describe_phase(run) == "round 2"
    assert estimate_seconds_left(read_run(write(tmp_path / "new", HISTORY[:1], status="running"))) is None


@pytest.mark.slow
def test_a_page_of_a_run_at_work_loads_itself_again_and_its_report_does_not(tmp_path):
    folder = write(tmp_path, HISTORY[:2], status="running")
    render_live(folder, [], "running", 30)
    page = (folder / "report.html").read_text()
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in page
    assert "1 of 3 rounds are recorded" in page
    write(folder)
    page = render_report(folder).read_text()
    assert "refresh" not in page
    assert "rounds are recorded" not in page


def test_a_page_of_an_interrupted_run_says_so_with_the_command_that_goes_on(tmp_path):
    folder = write(tmp_path, HISTORY[:2], status="running")
    page = render_report(folder).read_text()
    assert "Interrupted" in page
    assert f"fedfault resume {folder} goes on" in page
    assert "refresh" not in page


def test_a_report_that_is_drawn_at_the_end_of_a_run_does_not_say_that_it_runs(tmp_path):
    """It is drawn while the run still holds its lock and before the manifest says that it is over."""
    folder = write(tmp_path, status="trained")
    (folder / "metrics.json").write_text(json.dumps({"verdict": {"state": NO_ALARM}}))
    with filelock.FileLock(folder / ".lock"):
        page = render_report(folder).read_text()
    assert "Running" not in page
    assert "No alarm (not calibrated)" in page


def test_the_picture_of_a_live_page_is_one_of_the_reports(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert render.LIVE in gallery.FIGURES
