"""Run folders in which something was changed, by bytes and by values: read, or refused in words, by all who read them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfault.diagnosis.watch import diagnose_run
from fedfault.errors import UserError
from fedfault.records import RoundRecord
from fedfault.report import summary, tables, verdict
from fedfault.report.contributions import tabulate_contributions
from fedfault.runs.folder import RunFolder
from fedfault.runs.read import read_run
from fedfault.testing.histories import broken_history
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import State
from fuzzed import altered, damaged, fuzzed
from handmade import update, write

LAYOUT = Layout.of([Site("a", "lora", (2, 3, 5))])
JSON = [
    "manifest.json", "split.json", "heterogeneity.json", "metrics.json", "clusters.json", "answers.json", "benchmarks.json",
    "contributions.json",
]  # fmt: skip
LINES = ["rounds.jsonl", "findings.jsonl"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with every file that readers know."""
    folder = write(tmp_path_factory.mktemp("runs") / "whole", broken_history())
    diagnose_run(folder)
    update(folder / "manifest.json", seconds={"rounds": 1.0, "prepare": 2.0}, model={"name": "micro"}, notes=["a note"])
    update(folder / "heterogeneity.json", sentences=["They differ."], measures={}, readings=[])
    update(folder / "clusters.json", k=1, labels=[0, 0], sentence="no clusters", topics=["a", "b"], agreement=0.0)
    update(folder / "answers.json", answers=[{"prompt": "2 + 2?", "reference": "4", "before": "", "after": "5"}])
    own = {"round": 1, "client": 0, "score": "validation", "left_out": 0.1, "shapley": 0.2, "error": 0.1, "pairs": 4}
    update(folder / "contributions.json", rows=[own, {**own, "client": 1}])
    row = {"model": "base", "round": 0, "task": "arc", "metric": "acc", "filter": "none", "value": 0.5, "error": None}
    update(folder / "benchmarks.json", lm_eval="0.4", rows=[row, {**row, "model": "server", "round": 9, "error": 0.1}])
    return folder


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """The folder of a run with checkpoints of two rounds."""
    folder = RunFolder.create(tmp_path_factory.mktemp("checkpoints") / "run")
    folder.begin({"config": {"seed": 0}})
    for round in (0, 1):
        folder.append(RoundRecord(round))
        folder.save(
            State(Adapter(LAYOUT, torch.ones(LAYOUT.size)), round, ranks=(2, 2), weights=(1.0, 2.0), seen=(1, 0))
        )
    return folder.path


def use(folder) -> None:
    """Read a folder as commands do: refused in words, or shown."""
    try:
        run = read_run(folder)
        diagnose_run(folder)
    except UserError:
        return
    summary.list_sentences(run)
    summary.make_tiles(run)
    summary.list_warnings(run)
    summary.describe_split(run)
    verdict.read_verdict(run)
    verdict.list_findings(run)
    tables.tabulate_scores(run)
    tables.tabulate_clients(run)
    tables.list_provenance(run)
    tabulate_contributions(run)
    tables.tabulate_answers(run)
    tables.tabulate_benchmarks(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", *JSON, *LINES])
@fuzzed(8)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name, data, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(data.draw(damaged((whole / name).read_bytes())))
    use(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JSON, *LINES])
@fuzzed(8)
@given(data=st.data())
def test_changed_values_are_read_or_refused(name, data, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    text = (whole / name).read_text()
    if name in JSON:
        changed = json.dumps(data.draw(altered(json.loads(text))))
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        at = data.draw(st.integers(0, len(lines) - 1))
        changed = "".join(
            json.dumps(data.draw(altered(line)) if i == at else line) + "\n" for i, line in enumerate(lines)
        )
    (folder / name).write_text(changed)
    use(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bytes", "values"])
@fuzzed(60)
@given(data=st.data())
def test_a_checkpoint_whose_json_was_changed_is_never_believed(how, data, two_checkpoints, tmp_path):
    """The one before it is taken, with a warning, or the folder is refused in words; nothing is deleted."""
    path = tmp_path / "run"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(two_checkpoints, path)
    file = path / "checkpoint/round-00001.json"
    whole = file.read_text()
    if how == "bytes":
        file.write_bytes(data.draw(damaged(whole.encode())))
    else:
        file.write_text(json.dumps(data.draw(altered(json.loads(whole)))))
    try:
        same = json.dumps(json.loads(file.read_bytes())) == json.dumps(json.loads(whole))  # True is not 1
    except (ValueError, RecursionError):
        same = False
    try:
        state, warnings = RunFolder.open(path).load(LAYOUT, "cpu")
    except UserError:
        assert not same
    else:
        assert (state.round, len(warnings)) == ((1, 0) if same else (0, 1))
    assert RunFolder(path).list_checkpoints() == [0, 1]


@pytest.mark.slow
@fuzzed()
@given(data=st.data())
def test_records_come_back_from_json_as_they_were(data):
    numbers = st.floats(width=64) | st.integers(-5, 5).map(float)
    named = st.dictionaries(st.text(max_size=4), numbers, max_size=3)
    record = RoundRecord(
        data.draw(st.integers(0, 10**6)),
        probes=data.draw(named),
        seconds={"train": 1.0},
        matrices={"m": tuple(tuple(row) for row in data.draw(st.lists(st.lists(numbers, max_size=3), max_size=3)))},
        bytes_up=data.draw(st.integers(0, 2**60)),
        events=tuple(data.draw(st.lists(st.text(max_size=20), max_size=3))),
    )
    line = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert RoundRecord.from_json(line).to_json() == record.to_json()
