"""Run folders of schemas 1 and 2, stopped after round 2 of 3, are witnesses: they are read, resumed and forked for ever.

`old/stopped`, of schema 1, and `old/second` were made at the commits that their manifests name: SCAFFOLD with memories,
blockwise aggregation, unequal ranks. `old/whole.jsonl` holds the records of the same run without the stop. None is ever
made anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedfault.config.loading import load
from fedfault.diagnosis.watch import diagnose_run
from fedfault.report.render import render_report
from fedfault.runs.files import read_records
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import find_status
from fedfault.runs.read import read_run
from fedfault.session.claim import claim_run
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run

OLD = Path(__file__).parent / "old"
QUIET = Progress(quiet=True)


@pytest.fixture(params=[pytest.param("stopped", marks=pytest.mark.long), "second"])
def stopped(request, tmp_path) -> Path:
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


def flatten(value, prefix=""):
    """A record as numbers and words by their place in it."""
    if not isinstance(value, dict | list):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items if key != "seconds" for k, v in flatten(part, f"{prefix}/{key}").items()}


def check_whole(folder: RunFolder) -> None:
    """The records are those of the run that was not stopped, as far as another machine and torch can tell."""
    whole, notes = read_records(OLD / "whole.jsonl")
    assert not notes
    for now, then in zip(folder.read_records(), whole, strict=True):
        found, expected = flatten(now.to_json()), flatten(then.to_json())
        assert found.keys() == expected.keys()
        for place, value in expected.items():
            close = pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
            assert found[place] == close, place


def test_it_is_read_with_today_s_names(stopped):
    assert find_status(stopped) == "running"
    run = read_run(stopped)
    assert ([r.round for r in run.records], run.rounds_planned, run.finished, run.notes) == ([0, 1, 2], 3, False, ())
    assert run.setting("data", "partition", "name") == "topic_skew"
    assert run.setting("federation", "aggregation", "name") == "blockwise"


@pytest.mark.long
def test_it_is_reported_and_judged(stopped):
    assert stopped.name in render_report(stopped).read_text()
    assert "no alarm (not calibrated)" in diagnose_run(stopped)[0]


def test_the_same_settings_in_today_s_names_are_the_same_run(stopped):
    given = load(stopped / "config.yaml", ["data.partition.name=topic_skew", f"logging.results_dir={stopped.parent}"])
    assert claim_run(stopped, given)


@pytest.mark.long
def test_it_goes_on_to_the_numbers_of_the_run_that_was_not_stopped(stopped):
    folder = resume_run(stopped, QUIET)
    check_whole(folder)
    assert find_status(folder.path) == "finished"
    assert (folder.path / "report.html").is_file()
    assert (folder.path / "adapter/adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "round"), [("stopped", 0), ("stopped", 2), ("second", 2)], indirect=["stopped"])
def test_its_fork_without_changes_has_those_numbers_too(stopped, round, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    check_whole(fork_run(stopped, round, [], QUIET))
