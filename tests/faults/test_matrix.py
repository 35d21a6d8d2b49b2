"""Rows of docs/reliability.md without a room of their own: what a checkpoint must hold, secrets, code beside a model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crash import QUIET, Lender, load_tiny
from fedfault.backbones.load import MICRO
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.runs import folder as run_folder
from fedfault.runs.folder import RunFolder
from fedfault.session.start import resume_run, start_run
from fedfault.setup.experiment import prepare
from small import final

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_report")]
READY = Lender()


def read_scores(folder: RunFolder) -> list[object]:
    return [record.scores for record in folder.read_records()]


@pytest.mark.long
@pytest.mark.parametrize("field", ["adapter", "memory", "clients"])
def test_what_a_checkpoint_gets_wrong_is_seen_in_a_resumed_run(monkeypatch, tmp_path, field):
    """The test of the tests: a resumed run with the whole state has the numbers of one without a stop, without it not."""
    whole = start_run(load_tiny(tmp_path / "whole", "federation.num_rounds=3"), QUIET, ready=READY)
    paths = [start_run(load_tiny(tmp_path / name), QUIET, ready=READY).path for name in ("kept", "lost")]
    more = ["federation.num_rounds=3"]
    assert read_scores(resume_run(paths[0], QUIET, more, ready=READY)) == read_scores(whole)
    read = run_folder.read_state

    def forget(*words):
        state = read(*words)
        if field == "adapter":
            return replace(state, adapter=state.adapter * 0.5)
        return replace(state, **{field: {name: a * 0 for name, a in getattr(state, field).items()}})

    monkeypatch.setattr(run_folder, "read_state", forget)
    if field == "adapter":
        assert read_scores(resume_run(paths[1], QUIET, more, ready=READY)) != read_scores(whole)
        return
    with pytest.raises(UserError, match="the server's c is off the weighted mean of all clients' c"):
        resume_run(paths[1], QUIET, more, ready=READY)


def test_secrets_of_the_environment_are_in_no_file_of_a_run(monkeypatch, tmp_path):
    secrets = {name: f"secret-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    path = start_run(load_tiny(tmp_path), QUIET, ready=READY, argv=["run"]).path
    for file in (p for p in path.rglob("*") if p.is_file()):
        assert not [value for value in secrets.values() if value.encode() in file.read_bytes()], file


@pytest.mark.long
def test_umask_and_a_home_that_cannot_be_written_change_no_number(monkeypatch, tmp_path):
    usual = final(start_run(load_tiny(tmp_path / "usual"), QUIET, ready=READY))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "file/cache"))
    before = os.umask(0o077)
    try:
        there = start_run(load_tiny(tmp_path / "there"), QUIET, ready=prepare)
    finally:
        os.umask(before)
    assert final(there) == usual
    assert (there.path / "rounds.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.long
def test_a_reader_that_goes_away_ends_a_command_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "fedfault", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        command.stdout.close()  # as `fedfault list | head -0`
        said = command.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


class Trap:
    """Leaves a file behind when a pickle with it is opened as any pickle is."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["pickle", "code"])
def test_nothing_in_the_folder_of_a_model_is_executed(tmp_path, kind):
    model, trap = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(MICRO, model)
    if kind == "pickle":
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap), protocol=2))
    else:
        config = json.loads((model / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
        (model / "config.json").write_text(json.dumps(config))
        (model / "mine.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()\n")
    with pytest.raises(UserError, match="model"):
        prepare(load("quickstart", [f"model.name={model}"]).experiment)
    assert not trap.exists()
