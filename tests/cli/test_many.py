"""`study` as a user types it."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_a_study_lists_its_runs_and_its_command_may_be_left_out(fedfault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = fedfault("study", "quick", "--plan", "seeds=1")
    assert status == 0
    assert [line.split("-seed0-")[0] for line in out.splitlines()] == [
        "1  iid_fedavg", "2  iid_scaffold", "3  topic_isolation_fedavg", "4  topic_isolation_scaffold",
    ]  # fmt: skip
    assert fedfault("study", "--plan", "quick", "seeds=1") == fedfault("study", "run", "quick", "--plan", "seeds=1")
    assert not list(tmp_path.iterdir())


def test_a_study_with_a_failed_run_ends_with_status_one(fedfault, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.studies.doors.run_study", lambda *_, **__: 1)
    assert fedfault("study", "quick")[0] == 1
