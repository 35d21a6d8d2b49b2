"""One folder, two doors: what makes a report and what goes on with a run read the same, whole or damaged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fedfault.errors import UserError
from fedfault.runs.files import read_records
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import find_status
from fedfault.runs.read import read_run
from handmade import record, write


def through_both_doors(folder):
    """The rounds that a report reads and those that a run that goes on does: all else is compared here."""
    one, other = list(read_run(folder).records), RunFolder(folder).read_records()
    assert one == other
    return [r.round for r in one]


def refusals(folder):
    found = []
    for door in (read_run, lambda path: RunFolder.open(path).read_records()):
        with pytest.raises(UserError) as caught:
            door(folder)
        found.append(str(caught.value))
    return found


@pytest.mark.parametrize("status", ["running", "stopped", "finished"])
def test_a_run_says_how_far_it_got(tmp_path, status):
    assert find_status(write(tmp_path, status=status)) == status


@pytest.mark.parametrize("missing", [["config.yaml", "manifest.json"], ["rounds.jsonl", "manifest.json"], ["."]])
def test_a_folder_without_what_makes_a_run_is_none(tmp_path, missing):
    folder = write(tmp_path / "run")
    for name in missing:
        (folder / name).unlink() if name != "." else shutil.rmtree(folder)
    assert find_status(folder) is None
    assert set(refusals(folder)) == {
        f"{folder} is not a run folder: config.yaml and rounds.jsonl not found; give the folder of a run"
    }


def test_what_is_no_run_is_told_the_run_that_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "skewed"):
        write(Path("results") / name)
    assert set(refusals(Path("results/skewd"))) == {
        "results/skewd is not a run folder: config.yaml and rounds.jsonl not found; did you mean 'results/skewed'?; give "
        "the folder of a run"
    }
    assert all("did you mean 'results/skewed'?" in told for told in refusals(Path("skewed")))
    assert all("; it holds the runs results/base, results/skewed; give" in told for told in refusals(Path("results")))


def test_a_manifest_alone_is_a_run_that_has_begun_and_one_of_another_program_is_none(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "status": 3}')
    assert find_status(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"status": "begun", "config": {"experiment_name": "new"}}')
    (tmp_path / "rounds.jsonl").write_text("of the run that stood here before\n")
    assert find_status(tmp_path) == "begun"
    run = read_run(tmp_path)
    assert (run.name, run.records) == ("new", ())


def test_without_a_manifest_a_run_is_reported_and_cannot_go_on(tmp_path):
    folder = write(tmp_path)
    (folder / "manifest.json").unlink()
    assert find_status(folder) == "incomplete"
    run = read_run(folder)
    assert [r.round for r in run.records] == [0, 1, 2, 3]
    assert run.notes == ("manifest.json is missing: what made this run is not known.",)
    with pytest.raises(UserError, match=r"no manifest\.json, .* cannot go on"):
        RunFolder.open(folder)


def test_without_records_a_run_has_not_begun(tmp_path):
    folder = write(tmp_path, status="running")
    (folder / "rounds.jsonl").unlink()
    assert through_both_doors(folder) == []


@pytest.mark.parametrize("cut", ['{"round": 4, "cli', '{"round": 4}garb', "\0\0\0\0"])
def test_a_last_line_cut_short_by_a_kill_is_left_out_and_told(tmp_path, cut):
    folder = write(tmp_path, status="running")
    with (folder / "rounds.jsonl").open("a") as f:
        f.write(cut)
    assert through_both_doors(folder) == [0, 1, 2, 3]
    assert read_run(folder).notes == ("The last line of rounds.jsonl is incomplete and was left out.",)


def test_a_last_line_that_is_whole_counts_without_its_line_break(tmp_path):
    folder = write(tmp_path)
    file = folder / "rounds.jsonl"
    file.write_text(file.read_text().rstrip("\n"))
    assert through_both_doors(folder) == [0, 1, 2, 3]
    assert read_run(folder).notes == ()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "nonsense\n" + text, r"rounds\.jsonl is corrupt: line 1 is not a round record"),
        (lambda text: text.replace('{"round": 2', '{"raund": 2'), r"rounds\.jsonl is corrupt: line 3"),
        (lambda text: text + '{"round": 4, "cli\n', r"line 5 is not a round record"),  # it was whole once: no kill
        (lambda text: text + text.splitlines()[0] + "\n", r"do not count upwards \(\[0, 1, 2, 3, 0\]\)"),
        (lambda text: "".join(text.splitlines(keepends=True)[1:]), r"line 1 is of round 1, and should be of 0"),
        (lambda text: text.replace(text.splitlines()[1] + "\n", ""), r"line 2 is of round 2, and should be of 1"),
        (lambda text: text.rstrip("\n}") + ', "colour": 1}', r"line 4 is not a round record .*'colour'"),
    ],
)
def test_other_damage_is_named_with_file_and_line_at_both_doors(tmp_path, damage, says):
    folder = write(tmp_path, status="running")
    file = folder / "rounds.jsonl"
    file.write_text(damage(file.read_text()))
    one, other = refusals(folder)
    assert one == other
    assert re.search(says, one)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"status": "fine"}'])
def test_a_damaged_manifest_is_named_at_both_doors(tmp_path, content):
    folder = write(tmp_path)
    (folder / "manifest.json").write_text(content)
    one, other = refusals(folder)
    assert one == other
    assert f"{folder / 'manifest.json'} is corrupt" in one


def test_bytes_that_are_no_text_are_named_at_both_doors(tmp_path):
    (write(tmp_path) / "rounds.jsonl").write_bytes(b"\xff\xfe\x00")
    one, other = refusals(tmp_path)
    assert one == other
    assert "not UTF-8" in one


def test_records_of_any_file_are_read_alike(tmp_path):
    file = tmp_path / "control-00.jsonl"
    assert read_records(file) == ([], [])
    RunFolder(tmp_path).write_records(file.name, [record(0, 5.0), record(1, 4.0)])
    assert [r.round for r in read_records(file)[0]] == [0, 1]
