"""A run goes on only with the inputs that it started with, and a refusal names the one that differs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import fedfault
import small
from fedfault.backbones.load import MICRO
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.reading.files import find_path
from fedfault.session.provenance import check_same_inputs, tell_where_data_were
from fedfault.setup.experiment import prepare
from fedfault.setup.sources import describe_sources

TRACE = "round,client,available,bandwidth\n1,0,1,1.0\n"


def prepare_small(*changes: str):
    return prepare(load("quickstart", [*small.SMALL, *changes]).experiment)


def drop_merges(model: Path) -> None:
    """Make a tokenizer of the same vocabulary that cuts rarer words into more tokens."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1500]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def rename_token(model: Path) -> None:
    """Make a tokenizer that knows another word in the place of its last token."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokenizer["model"]["vocab"]["zzzzqqqq"] = tokenizer["model"]["vocab"].pop(last)
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [m for m in merges if "".join(m).replace(" ", "") != last]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("change", [drop_merges, rename_token])
def test_another_tokenizer_with_the_same_weights_is_refused(tmp_path, change):
    model = tmp_path / "m"
    shutil.copytree(MICRO, model)
    before = describe_sources(prepare_small(f"model.name={model}"))
    assert check_same_inputs(before, prepare_small(f"model.name={model}")) == []
    change(model)
    now = prepare_small(f"model.name={model}")
    assert describe_sources(now)["model"] == before["model"]
    with pytest.raises(UserError, match=r"^the tokenizer is not the one this run started with"):
        check_same_inputs(before, now)


@pytest.mark.slow
def test_a_trace_a_calibration_and_a_general_text_that_were_edited_are_refused_by_name(tmp_path):
    trace, calibration, general = tmp_path / "t.csv", tmp_path / "c.json", tmp_path / "g"
    trace.write_text(TRACE)
    calibration.write_text("{}")
    general.mkdir()
    for i in range(8):
        (general / f"{i}.txt").write_text(f"Text number {i}. " + "Word after word. " * 400)
    p = prepare_small(f"clock.trace={trace}", f"detectors.calibration={calibration}", f"evaluation.general={general}")
    before = describe_sources(p)
    assert check_same_inputs(before, p) == []
    for file, name in (
        (trace, "the trace (clock.trace)"),
        (calibration, "the calibration (detectors.calibration)"),
        (general / "3.txt", "the general text (evaluation.general)"),
    ):
        kept = file.read_bytes()
        file.write_bytes(kept + b" ")
        with pytest.raises(UserError) as told:
            check_same_inputs(before, p)
        assert str(told.value).startswith(f"{name} is not the one this run started with (the content of {file.anchor}")
        assert str(told.value).endswith("has changed since); restore it, or start a new run")
        file.write_bytes(kept)
    moved = tmp_path / "other.json"
    moved.write_text("{ }")
    other = prepare_small(f"clock.trace={trace}", f"detectors.calibration={moved}", f"evaluation.general={general}")
    assert check_same_inputs(before, other) == []  # another setting, as a fork may have it


def test_data_that_a_run_has_read_from_another_working_folder_are_told_with_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = {"config": {"data": {"path": "base.csv"}}, "corpus": {"source": "file /home/me/base.csv"}}
    with (
        pytest.raises(
            UserError, match=r"^data\.path=base\.csv: no such file .*; this run has read file /home/me/base\.csv: "
        ),
        tell_where_data_were(manifest),
    ):
        find_path("base.csv")
    for other in ({}, {**manifest, "config": {"data": {"path": "/home/me/base.csv"}}}):
        with pytest.raises(UserError, match=r"file or folder$"), tell_where_data_were(other):
            find_path("base.csv")


@pytest.mark.slow
def test_the_manifest_of_an_older_version_is_not_refused_and_what_it_lacks_is_told():
    p = prepare_small()
    old = {what: said for what, said in describe_sources(p).items() if what in ("model", "corpus")}
    assert check_same_inputs(old, p) == [
        "the tokenizer is not checked: the manifest, of an older version, does not say which one it was"
    ]
    old["corpus"] = {**old["corpus"], "fingerprint": "0"}
    with pytest.raises(UserError, match=r"^the corpus is not the one"):
        check_same_inputs(old, p)


@pytest.mark.slow
def test_the_clock_of_the_wall_is_written_down_and_decides_nothing():
    """It may jump, back too: durations and deadlines are taken from the clock that only goes forward."""
    wall = re.compile(r"time\.time\(|datetime\.now\(|\.utcnow\(|\.today\(")
    source = Path(fedfault.__file__).parent
    found = {str(f.relative_to(source)) for f in source.rglob("*.py") if wall.search(f.read_text(encoding="utf-8"))}
    assert found == {
        "session/provenance.py", "session/controls.py", "monitor/controls.py",  # when a run, or a calibration, was made
        "flower/keys.py",  # until when a certificate is valid
        "session/trackers.py",  # when a number was logged
        "storage.py",  # how old a file is that a process of another machine has left
        "compare/listing.py",  # how long ago a run wrote something
    }  # fmt: skip
