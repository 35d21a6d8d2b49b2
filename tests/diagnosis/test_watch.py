"""Detectors on a run folder: what they write, what they say, and that they need no torch for it."""

from __future__ import annotations

import errno
import itertools
import json
import subprocess
import sys
from functools import lru_cache

import pytest
import yaml

from fedfault.diagnosis import calibration
from fedfault.diagnosis.calibration import ALPHA, Calibration, learn_thresholds
from fedfault.diagnosis.detection import build_detectors, detect_failures
from fedfault.diagnosis.verdict import judge_run
from fedfault.diagnosis.watch import Watch, describe_finding, diagnose_run
from fedfault.errors import UserError
from fedfault.records import Finding, replace_not_finite
from fedfault.runs.outcome import summarise_run
from fedfault.testing.histories import broken_history, healthy

CONFIG = {"experiment_name": "trial", "seed": 7, "federation": {"num_rounds": 12}, "detectors": {"calibration": "none"}}
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["scipy.stats"] = None  # importing them raises
from pathlib import Path
from fedfault.diagnosis.watch import diagnose_run
print(diagnose_run(Path(sys.argv[1]), *sys.argv[2:])[0])
"""


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "trial", broken_history())


def write(folder, records, config=CONFIG):
    folder.mkdir()
    (folder / "manifest.json").write_text('{"status": "finished"}')
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    (folder / "metrics.json").write_text(json.dumps({"final": replace_not_finite(summarise_run(records)["final"])}))
    return folder


@lru_cache
def learned():
    return learn_thresholds([healthy(seed) for seed in range(19)], build_detectors())


def made(config=CONFIG) -> Calibration:
    thresholds, exact = learned()
    return Calibration("made", thresholds, 19, ALPHA, exact, config)


def findings_of(folder) -> list[Finding]:
    lines = (folder / "findings.jsonl").read_text().splitlines()
    return [Finding.from_json(json.loads(line)) for line in lines]


def plain(findings):
    return [repr(Finding.from_json(f.to_json())) for f in findings]


@pytest.mark.long
def test_an_old_run_is_judged_without_torch(folder, tmp_path):
    made().save(tmp_path / "made.json")
    for wanted, known in (([], None), ([str(tmp_path / "made.json")], made())):
        command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), *wanted]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        expected = detect_failures(broken_history(), known)
        assert [repr(f) for f in findings_of(folder)] == plain(expected)
        assert said.splitlines()[0].startswith("trial: failed. ")
        assert said.splitlines()[2:] == [describe_finding(f) for f in expected]


def test_the_verdict_joins_what_metrics_json_says_already(folder):
    (folder / "metrics.json").write_text(
        json.dumps({"final": {"validation": {"loss": 3.0}}, "verdict": {"state": "healthy"}})
    )
    diagnose_run(folder)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["final"] == {"validation": {"loss": 3.0}}
    assert found["verdict"] == json.loads(json.dumps(replace_not_finite(judge_run(broken_history(), None))))


def test_a_healthy_run_has_no_findings(tmp_path):
    folder = write(tmp_path / "fine", healthy())
    said = diagnose_run(folder)[0].splitlines()[0]
    assert said.startswith("trial: no alarm (not calibrated). No detector raised an alarm, by conventional thresholds.")
    assert (folder / "findings.jsonl").read_text() == ""


def test_records_that_are_odd_are_told_before_the_verdict(tmp_path):
    folder = write(tmp_path / "fine", healthy())
    with (folder / "rounds.jsonl").open("a") as f:
        f.write('{"round"')
    first, second, *_ = diagnose_run(folder)[0].splitlines()
    assert first == "trial: The last line of rounds.jsonl is incomplete and was left out."
    assert second.startswith("trial: no alarm")


@pytest.mark.slow
def test_judging_again_changes_nothing(folder):
    first = diagnose_run(folder)
    kept = {name: (folder / name).read_bytes() for name in ("findings.jsonl", "metrics.json", "rounds.jsonl")}
    assert diagnose_run(folder) == first
    assert {name: (folder / name).read_bytes() for name in kept} == kept


def test_runs_from_before_there_were_detectors_are_judged_too(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "detectors"}
    assert "trial: failed." in diagnose_run(write(tmp_path / "old", broken_history(), config))[0]


@pytest.mark.slow
def test_a_folder_that_is_no_run_and_a_calibration_that_does_not_fit_explain_themselves(folder, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        diagnose_run(tmp_path)
    with pytest.raises(UserError, match="give packaged, auto, none or a file"):
        diagnose_run(folder, "nowhere.json")
    made({**CONFIG, "federation": {"num_rounds": 3}}).save(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"for other runs: it differs in federation\.num_rounds=12 \(3\)"):
        diagnose_run(folder, str(tmp_path / "other.json"))
    assert not (folder / "findings.jsonl").exists()


def test_what_is_new_in_every_round_is_what_is_found_in_the_end():
    records, seen = broken_history(), Watch(CONFIG).follow()
    live = [seen.add(record) for record in records]
    assert all(f.round == record.round for record, new in zip(records, live, strict=True) for f in new)
    assert plain(itertools.chain(*live)) == plain(seen.findings) == plain(detect_failures(records, None))


def test_a_run_takes_the_calibration_that_it_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PACKAGED", tmp_path)
    made({**CONFIG, "training": {"lr": 0.1}}).save(tmp_path / "made.json")
    packaged = {**CONFIG, "detectors": {"calibration": "packaged"}}
    for watch in (Watch(packaged), Watch(CONFIG, wanted="packaged")):
        assert watch.calibration == made({**CONFIG, "training": {"lr": 0.1}})
        assert watch.differs == ["training.lr=0.0005 (0.1)"]
        assert "The controls differ in training.lr=0.0005 (0.1)." in watch.judge(watch.follow(healthy()))["sure"]
    assert Watch(packaged, wanted="none").calibration is None


def test_a_finding_is_told_in_one_line():
    finding = Finding("slow_convergence", 7, "alarm", "it is late", 6.5, 5.25, 19, {}, ("training.lr higher", "more"))
    assert describe_finding(finding) == (
        "round 7: alarm: slow convergence: it is late (6.5 > 5.25, 19 controls); try: training.lr higher"
    )
    by_theory = Finding("forgetting", 2, "suspect", "it forgets", 0.6, 0.5, 0, {}, ("stop",))
    assert "(0.6 > 0.5, by theory or convention)" in describe_finding(by_theory)
    at_once = Finding("divergence", 2, "alarm", "it is no number", float("inf"), None, 0, {}, ("stop",))
    assert "(no threshold needed)" in describe_finding(at_once)


def read_only(*_):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_run_that_cannot_be_written_is_judged_all_the_same(folder, monkeypatch):
    told, _ = diagnose_run(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr("os.replace", read_only)
    told_now, kept = diagnose_run(folder)
    assert not kept
    *same, last = told_now.splitlines()
    assert same == told.splitlines()
    assert last.startswith("the run keeps its old verdict, as this one cannot be written: ")
    assert "findings.jsonl: read-only file system" in last
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_where_the_records_should_be_is_not_a_run_without_rounds(folder):
    (folder / "rounds.jsonl").unlink()
    (folder / "rounds.jsonl").mkdir()
    (folder / "manifest.json").write_text('{"status": "finished"}')
    with pytest.raises(UserError, match=r"rounds\.jsonl: is a directory; it is a folder where a file should be"):
        diagnose_run(folder)
