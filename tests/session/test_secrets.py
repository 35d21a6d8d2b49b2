"""What the environment holds is in no file of a run, whatever writes there."""

from __future__ import annotations

import pytest

from small import start

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD")


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_no_file_of_a_run(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"sentinel-{name}-5f1c")
    folder = start(tmp_path, "federation.num_rounds=1", argv=["run", "quickstart"]).path
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"report.html", "manifest.json", "README.md"} <= {file.name for file in files}
    assert [file for file in files if b"sentinel-" in file.read_bytes()] == []
