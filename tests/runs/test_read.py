"""Reading a run folder: what is needed, what may be missing, and which file is corrupt."""

import json
import re

import pytest
import yaml

from fedfault.diagnosis.watch import diagnose_run
from fedfault.errors import UserError
from fedfault.report import summary
from fedfault.report.render import render_report
from fedfault.runs.read import read_run
from fedfault.testing.histories import broken_history
from handmade import HISTORY, finding, lines, record, update, write

DECIDED = {"settings": [], "done": True}


def test_a_half_written_last_line_is_left_out_and_noted(tmp_path):
    folder = write(tmp_path)
    with (folder / "rounds.jsonl").open("a") as out:
        out.write('{"round": 4, "cli')
    run = read_run(folder)
    assert [r.round for r in run.records] == [0, 1, 2, 3]
    assert "The last line of rounds.jsonl is incomplete and was left out." in summary.list_warnings(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: config\.yaml and rounds\.jsonl not found"):
        render_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


DEEP = ("rounds.jsonl", "findings.jsonl", "config.yaml", "manifest.json", "split.json", "metrics.json", "answers.json")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rounds.jsonl", '{"round": 0}\nnonsense\n', "rounds.jsonl is corrupt: line 1"),
        ("rounds.jsonl", "[]\n", "line 1 is not a round record"),
        *((name, "[" * 9999 + "\n", f"{name} is corrupt: ") for name in DEEP),
        ("config.yaml", "a: [", "config.yaml is corrupt"),
        ("config.yaml", "- 1", "it should hold keys and values, not list"),
        ("manifest.json", "{", "manifest.json is corrupt"),
        ("split.json", '{"topics": ["a"]}', "split.json is corrupt: clients: Field required"),
        ("split.json", '{"topics": ["a"], "clients": [[1, 2]], "tokens": [3]}', "one document count a topic"),
        ("findings.jsonl", '{"detector": "divergence"}\n', "findings.jsonl is corrupt: line 1 is not a finding"),
        (
            "metrics.json",
            '{"verdict": {"state": "fine"}}',
            "one of healthy, no alarm (not calibrated), not judged, did",
        ),
        (
            "manifest.json",
            '{"status": "running", "parent": {"run": "old", "round": 1}}',
            "manifest.json is corrupt: parent.changes: Field required",
        ),
        (
            "manifest.json",
            '{"status": "running", "abandoned": [{"to": 1, "changes": {"a": 1}, "records": "b"}]}',
            "manifest.json is corrupt: abandoned.0.changes.a: Input should be a valid list",
        ),
        ("manifest.json", '{"status": "running", "seconds": 3}', "seconds: Input should be a valid dictionary"),
        ("manifest.json", '{"status": "running", "model": "micro"}', "model: Input should be a valid dictionary"),
        (
            "manifest.json",
            '{"status": "running", "schema": 99}',
            "was written by a newer fedfault (schema 99; this one reads schemas up to 2)",
        ),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, content, says):
    (write(tmp_path) / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        render_report(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_components_have_a_name_in_runs_that_called_it_method_or_type(tmp_path):
    run = read_run(write(tmp_path, data={"partition": {"method": "iid"}}))
    assert run.setting("data", "partition") == {"name": "iid"}


def test_a_configuration_that_was_edited_is_noted_and_not_believed(tmp_path):
    folder = write(tmp_path / "run", training={"lr": 0.1}, logging={"trackers": []})
    began = yaml.safe_load((folder / "config.yaml").read_text())
    update(folder / "manifest.json", config=began)
    assert read_run(folder).notes == ()
    edited = {**began, "training": {"lr": 0.5}, "experiment_name": "renamed"}
    (folder / "config.yaml").write_text(yaml.safe_dump(edited))
    run = read_run(folder)
    assert run.config == began
    assert run.notes == ("config.yaml is not what the run began with, which is shown: training.lr is 0.5 and was 0.1.",)
    (folder / "config.yaml").write_text(yaml.safe_dump({**began, "experiment_name": "renamed"}))
    assert (read_run(folder).name, read_run(folder).notes) == ("renamed", ())
    (folder / "config.yaml").unlink()
    assert read_run(folder).config == began


def test_rounds_must_count_upwards(tmp_path):
    with pytest.raises(UserError, match=r"do not count upwards \(\[0, 0\]\)"):
        read_run(write(tmp_path, [HISTORY[0], HISTORY[0]]))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (write(tmp_path) / "rounds.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_run(tmp_path)


def test_findings_and_the_other_futures_are_read(tmp_path):
    folder = write(tmp_path)
    found = [finding(round=1, level="suspect"), finding(round=2, threshold=None, statistic=float("nan"))]
    lines(folder / "findings.jsonl", found)
    lines(folder / "parent.jsonl", [record(2, 9.0), record(3, 9.5)])
    lines(folder / "abandoned-1.jsonl", [record(3, 7.0)])
    update(folder / "manifest.json", parent={"run": "old", "round": 1, "changes": {"seed": [0, 1]}})
    past = {"from": 3, "to": 2, "changes": {"training.lr": [0.1, None]}, "records": "abandoned-1.jsonl", **DECIDED}
    update(folder / "manifest.json", abandoned=[past])
    run = read_run(folder)
    assert [(f.round, f.level, f.threshold) for f in run.findings] == [(1, "suspect", 1.5), (2, "alarm", None)]
    assert [(f.name, f.round, f.change) for f in run.forks] == [
        ("parent", 1, "seed 0 → 1"),
        ("given up", 2, "training.lr 0.1 → none"),
    ]
    assert [[r.round for r in f.records] for f in run.forks] == [[2, 3], [3]]


def test_a_forks_file_is_looked_for_in_the_run_folder_alone(tmp_path):
    folder = write(tmp_path / "run")
    lines(tmp_path / "other.jsonl", HISTORY)
    past = {"to": 2, "changes": {}, "records": "../other.jsonl", **DECIDED}
    update(folder / "manifest.json", abandoned=[past])
    assert read_run(folder).forks[0].records == ()


def test_of_a_run_that_has_just_begun_nothing_left_over_is_read(tmp_path):
    """A kill came between the new manifest and the deletion of what the run replaces."""
    folder = write(tmp_path)
    update(folder / "manifest.json", status="begun", config={"experiment_name": "new"})
    run = read_run(folder)
    assert (run.records, run.findings, run.split, run.metrics) == ((), (), {}, {})
    assert run.config["experiment_name"] == "new"


def test_results_that_are_missing_or_do_not_follow_from_the_records_are_noted(tmp_path):
    """A study said `2 seeds` of a mean over the one whose metrics.json was there, and no word of the other."""
    folder = write(tmp_path)
    assert read_run(folder).notes == ()
    whole = (folder / "metrics.json").read_text()
    (folder / "metrics.json").unlink()
    (missing,) = read_run(folder).notes
    assert missing.startswith("metrics.json has no final scores or is missing")
    assert f"`fedfault resume {folder}` writes it again" in missing
    diagnose_run(folder)  # which writes the verdict into a file that has nothing else
    assert read_run(folder).notes == (missing,)
    (folder / "metrics.json").write_text(whole.replace('"loss": 4.0', '"loss": 3.0'))
    assert read_run(folder).notes[0].startswith("metrics.json does not follow from rounds.jsonl")
    (folder / "metrics.json").write_text(whole.replace('"final"', '"metrics"'))
    update(folder / "manifest.json", monitored=True)  # there is no model that could go on
    assert read_run(folder).notes == (
        "metrics.json has no final scores or is missing, and studies count nothing of them.",
    )
    update(folder / "manifest.json", status="running")
    assert read_run(folder).notes == ()


def test_alarms_that_the_verdict_names_and_the_findings_do_not_are_noted(tmp_path):
    """Without findings.jsonl a study counted no alarm, though the verdict beside it had one."""
    folder = write(tmp_path, broken_history(), rounds=len(broken_history()) - 1)
    diagnose_run(folder)
    found = (folder / "findings.jsonl").read_text()
    assert read_run(folder).notes == ()
    (folder / "findings.jsonl").unlink()
    (note,) = read_run(folder).notes
    assert note.startswith("findings.jsonl lacks alarms that the verdict names (")
    assert f"`fedfault diagnose {folder}` writes it again" in note
    (folder / "findings.jsonl").write_text(found + found[:20])
    assert read_run(folder).notes == ("The last line of findings.jsonl is incomplete and was left out.",)


@pytest.mark.parametrize("wrong", [{"final": {"validation": 5.0}}, {"final": [1]}, {"verdict": {"causes": 5}}])
def test_results_of_another_shape_are_corrupt(tmp_path, wrong):
    folder = write(tmp_path)
    update(folder / "metrics.json", **wrong)
    with pytest.raises(UserError, match=r"metrics\.json is corrupt"):
        read_run(folder)


def test_a_broken_configuration_is_told_and_the_manifest_read_in_its_place(tmp_path):
    """Eight lines of the YAML library stood in the place of the comparison, which does not need the file."""
    folder = write(tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "config": config}))
    (folder / "config.yaml").write_text("seed: 1\nmodel: [\nlr: 3\n")
    run = read_run(folder)
    assert run.config["experiment_name"] == config["experiment_name"]
    (note,) = [note for note in run.notes if "corrupt" in note]
    assert re.fullmatch(rf"{folder}/config\.yaml is corrupt: line \d: [^\n]+; what the run began with is shown\.", note)
