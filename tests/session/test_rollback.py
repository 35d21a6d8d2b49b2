"""What a run does at an alarm: go on, stop, or go back with a remedy; and what a kill in between leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedfault.config import load
from fedfault.runs.files import read_records
from fedfault.runs.outcome import find_best_round
from fedfault.session import rollback
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from fedfault.setup.experiment import prepare
from small import SMALL

pytestmark = pytest.mark.usefixtures("without_report")

QUIET = Progress(quiet=True)
WILD = ["training.lr=0.5", "federation.num_rounds=4", "detectors.calibration=none"]


def run(folder, *words, **options):
    loaded = load("quickstart", [*SMALL, *WILD, f"logging.results_dir={folder}", *words])
    return start_run(loaded, QUIET, **options)


@pytest.mark.slow
def test_a_run_that_diverges_goes_back_to_its_best_round_with_half_the_learning_rate(tmp_path):
    told = []

    def ready(exp, say):
        return replace(prepare(exp, say), spread=lambda p: told.append(p.config.training.lr) or p)

    folder = run(tmp_path, "federation.on_failure=rollback", ready=ready)
    assert told[0] == 0.25  # to who trains elsewhere
    manifest = folder.read_json("manifest.json")
    first = manifest["abandoned"][0]
    assert (first["to"], first["settings"], first["done"]) == (0, ["training.lr=0.25"], True)
    assert "divergence" in first["by"]
    left = read_records(folder.path / first["records"])[0]
    assert [r.round for r in left] == list(range(first["from"] + 1))
    assert manifest["status"] == "finished"
    records = folder.read_records()
    assert [r.round for r in records] == [0, 1, 2, 3, 4]
    assert records[1].scores["validation"].loss < left[1].scores["validation"].loss
    told = [event for event in records[0].events if "went back from round" in event]
    assert len(told) == sum(one["to"] == 0 for one in manifest["abandoned"])  # each time is told
    assert len(manifest["abandoned"]) <= 3
    assert load(folder.path / "config.yaml").experiment.training.lr == 0.5  # what the user asked for


@pytest.mark.long
def test_a_kill_while_going_back_is_repaired_by_resume(tmp_path):
    """The manifest has the decision, but records and checkpoints of the way left behind are still there."""
    folder = run(tmp_path, "federation.on_failure=continue")
    before = folder.read_records()
    manifest = folder.read_json("manifest.json")
    entry = {
        "from": 4,
        "to": 1,
        "by": ["divergence"],
        "changes": {},
        "settings": ["training.lr=1e-3"],
        "records": "a.jsonl",
    }
    manifest["abandoned"] = [{**entry, "done": False}]
    folder.write_json("manifest.json", manifest)
    after = resume_run(folder.path, QUIET).read_records()
    assert [r.round for r in after] == [0, 1, 2, 3, 4]
    assert after[1] == before[1]
    assert after[2].scores["validation"].loss < before[2].scores["validation"].loss  # with the remedy in force
    assert folder.read_json("manifest.json")["abandoned"][0]["done"]


@pytest.mark.slow
def test_a_run_that_should_stop_does_and_resume_goes_on(tmp_path):
    folder = run(tmp_path, "federation.on_failure=stop")
    manifest = folder.read_json("manifest.json")
    assert manifest["status"] == "stopped"
    assert "divergence" in manifest["stopped"]["by"]
    assert folder.read_records()[-1].round == manifest["stopped"]["round"] < 4
    assert json.loads((folder.path / "metrics.json").read_text())["verdict"]["state"] == "failed"
    assert resume_run(folder.path, QUIET).read_records()[-1].round > manifest["stopped"]["round"]


@pytest.mark.slow
def test_a_run_whose_best_checkpoint_is_damaged_says_so_and_goes_on(tmp_path, monkeypatch):
    told = []

    def damage(records):
        best = find_best_round(records)
        (tmp_path / f"quickstart/checkpoint/round-{best:05d}.safetensors").write_bytes(b"")
        return best

    monkeypatch.setattr(rollback, "find_best_round", damage)
    monkeypatch.setattr(Progress, "say", lambda self, line: told.append(line))
    folder = run(tmp_path, "federation.on_failure=rollback")
    assert any("no way back from this alarm" in line and "damaged" in line for line in told)
    assert [r.round for r in folder.read_records()] == [0, 1, 2, 3, 4]
    manifest = folder.read_json("manifest.json")
    assert (manifest["status"], manifest["abandoned"]) == ("finished", [])
