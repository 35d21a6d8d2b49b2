"""The run folder: never overwritten silently, never torn, damage found."""

from __future__ import annotations

import re

import pytest
import torch

from fedfault.errors import UserError
from fedfault.records import ClientRecord, RoundRecord, Score, Turn
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.folder import RunFolder
from fedfault.runs.outcome import summarise_run
from fedfault.runs.read import read_run
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import State

LAYOUT = Layout.of([Site("a", "lora", (2, 3, 5))])


def state(round: int = 3) -> State:
    x = Adapter(LAYOUT, torch.randn(LAYOUT.size))
    memory = {"m": Adapter(LAYOUT, torch.randn(LAYOUT.size))}
    clients = {"c": Adapter(LAYOUT, torch.randn(4, LAYOUT.size))}
    return State(x, round, memory=memory, clients=clients, last=x * 2, clients_per_pass=2)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    found = RunFolder.create(tmp_path / "run")
    found.begin({"config": {"seed": 0}})
    return found


def test_a_checkpoint_brings_back_everything_that_outlives_a_round(folder):
    saved = state()
    folder.save(saved)
    loaded, warnings = folder.load(LAYOUT, "cpu")
    assert (loaded.round, loaded.clients_per_pass, warnings) == (3, 2, [])
    assert torch.equal(loaded.adapter.flat, saved.adapter.flat)
    assert torch.equal(loaded.memory["m"].flat, saved.memory["m"].flat)
    assert torch.equal(loaded.clients["c"].flat, saved.clients["c"].flat)
    assert torch.equal(loaded.last.flat, 2 * saved.adapter.flat)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(folder, damage):
    folder.save(state(3))
    folder.save(state(4))
    tensors, about = (folder.checkpoints / f"round-00004.{s}" for s in ("safetensors", "json"))
    data = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif damage == "empty":
        tensors.write_bytes(b"")
    else:
        about.write_text('{"round": 4')
    loaded, warnings = folder.load(LAYOUT, "cpu")
    assert loaded.round == 3
    assert len(warnings) == 1
    assert re.search("round 4 is damaged .* going back to the one before", warnings[0])


def test_without_a_whole_checkpoint_loading_explains(folder):
    with pytest.raises(UserError, match="there is none"):
        folder.load(LAYOUT, "cpu")
    folder.save(state())
    (folder.checkpoints / "round-00003.safetensors").unlink()
    with pytest.raises(UserError, match="no whole checkpoint"):
        folder.load(LAYOUT, "cpu")


def test_a_foreign_checkpoint_is_refused(folder):
    folder.save(state())
    with pytest.raises(UserError, match="another model"):
        folder.load(Layout.of([Site("b", "lora", (2, 3, 5))]), "cpu")


@pytest.mark.parametrize(
    ("keep", "left"),
    [(1, [0, 2, 6]), (2, [0, 2, 5, 6]), (4, [0, 2, 3, 4, 5, 6]), (6, [*range(7)]), ("all", [*range(7)])],
)
def test_the_newest_checkpoints_are_kept_and_those_of_the_best_round_and_round_0(folder, keep, left):
    for t in range(7):
        folder.save(state(t), keep, best=min(t, 2))
    assert folder.list_checkpoints() == left
    assert {p.stem for p in folder.checkpoints.iterdir()} == {f"round-{t:05d}" for t in left}


def test_what_was_best_goes_when_another_round_is_better(folder):
    for t in range(5):
        folder.save(state(t), 1, best=1 if t < 4 else 4)
    assert folder.list_checkpoints() == [0, 4]


@pytest.mark.slow
def test_a_named_checkpoint_is_loaded_or_those_that_are_there_are_listed(folder):
    for t in (0, 1, 4, 5, 6):
        folder.save(state(t))
    assert folder.load(LAYOUT, "cpu", 4)[0].round == 4
    with pytest.raises(UserError, match=r"no checkpoint of round 3; there are those of rounds 0, 1, 4 to 6"):
        folder.load(LAYOUT, "cpu", 3)
    (folder.checkpoints / "round-00004.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"round 4 is damaged .* there are those of rounds 0, 1, 5, 6"):
        folder.load(LAYOUT, "cpu", 4)


@pytest.mark.slow
def test_going_back_forgets_the_checkpoints_of_later_rounds(folder):
    for t in range(5):
        folder.save(state(t))
    folder.rewind(2)
    assert folder.list_checkpoints() == [0, 1, 2]


def test_where_no_folder_can_be_made_another_place_is_asked_for(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="choose another"):
        RunFolder.create(tmp_path / "results" / "run")


def test_two_processes_cannot_write_to_one_run(folder):
    with folder.lock(), pytest.raises(UserError, match="in use"), RunFolder(folder.path).lock():
        pass
    with folder.lock():
        pass


def record(t: int, loss: float = 1.0) -> RoundRecord:
    client = ClientRecord(0, 1.0, 5, 50, loss, 0.1, 0.2, 8, 8)
    return RoundRecord(t, (client,) if t else (), {"validation": Score(loss, 10)}, bytes_up=8 if t else 0)


def test_a_record_cut_short_by_a_kill_is_left_out(folder):
    for t in range(3):
        folder.append(record(t))
    with (folder.path / "rounds.jsonl").open("a") as f:
        f.write('{"round": 3, "cli')
    assert [r.round for r in folder.read_records()] == [0, 1, 2]
    assert [r.round for r in folder.rewind(1)] == [0, 1]
    folder.append(record(2))
    assert [r.round for r in folder.read_records()] == [0, 1, 2]


def test_what_nobody_could_read_is_not_written(folder):
    folder.append(RoundRecord(0))
    with pytest.raises(TypeError, match=r"turns\.bytes_down is -4, not int"):
        folder.append(RoundRecord(1, turns=(Turn(0, "tier", 2, "done", bytes_down=-4),)))
    assert [r.round for r in folder.read_records()] == [0]


def test_clients_become_one_row_per_round_and_client(folder):
    import pyarrow.parquet

    fed = federation(LowRank(), cohort_size=2, num_rounds=3)
    records = [r for _, r in rounds(fed, begin(fed))]
    folder.write_clients(records)
    table = pyarrow.parquet.read_table(folder.path / "clients.parquet").to_pylist()
    assert [(row["round"], row["client"]) for row in table] == [(r.round, c.client) for r in records for c in r.clients]


def test_clients_from_whom_nothing_arrived_have_a_row_too(folder):
    import pyarrow.parquet

    turns = (Turn(0, "fast", 8, "done", compute=1.0), Turn(1, "slow", 8, "dropped", compute=3.0))
    trained = ClientRecord(0, 1.0, 5, 50, 0.5, 0.1, 0.2, 10, 20, rank=8, probes={"cosine": 0.3})
    folder.write_clients([RoundRecord(1, turns=turns[1:]), RoundRecord(2, clients=(trained,), turns=turns)])
    table = pyarrow.parquet.read_table(folder.path / "clients.parquet").to_pylist()
    told = [
        (row["round"], row["client"], row["fate"], row["training_seconds"], row["training_loss"], row["probe_cosine"])
        for row in table
    ]
    assert told == [
        (1, 1, "dropped", 3.0, None, None),
        (2, 0, "done", 1.0, 0.5, 0.3),
        (2, 1, "dropped", 3.0, None, None),
    ]


def write_rounds(folder: RunFolder, count: int) -> None:
    for t in range(count):
        folder.append(record(t))
        folder.save(state(t))


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[:3],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [*lines[:2], lines[1], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [lines[0], lines[1].replace('"loss": 1.0', '"loss": 0.5'), *lines[2:]],
        lambda lines: [],
    ],
    ids=["ends early", "a hole", "a repeat", "out of order", "another number", "empty"],
)
def test_records_that_are_not_those_that_were_written_are_refused_and_nothing_is_deleted(folder, edit):
    write_rounds(folder, 5)
    file = folder.path / "rounds.jsonl"
    file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"rounds\.jsonl is not what this run has written up to round 4") as caught:
        folder.load(LAYOUT, "cpu")
    whole = re.search(r"--round (\d)", str(caught.value))
    assert whole is not None
    assert RunFolder(folder.path).load(LAYOUT, "cpu", int(whole[1]))[0].round == int(whole[1])
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_records_of_later_rounds_do_not_matter_to_a_checkpoint(folder):
    write_rounds(folder, 3)
    folder.append(record(3))  # a kill came before its checkpoint
    assert folder.load(LAYOUT, "cpu")[0].round == 2
    assert [r.round for r in folder.rewind(2)] == [0, 1, 2]
    folder.append(record(3, 0.5))
    folder.save(state(3))
    assert RunFolder(folder.path).load(LAYOUT, "cpu")[0].round == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"round": 4', '"round": 3'),
        ('"ranks": []', '"ranks": [8]'),
        ('"plans": {}', '"plans": 3'),
        ('"schema": 2, ', ""),
    ],
)
def test_the_json_of_a_checkpoint_that_was_edited_is_passed_over_as_damaged(folder, old, new):
    write_rounds(folder, 5)
    file = folder.checkpoints / "round-00004.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    loaded, warnings = folder.load(LAYOUT, "cpu")
    assert loaded.round == 3
    assert "round 4 is damaged" in warnings[0]


def test_a_checkpoint_of_a_newer_version_is_refused_and_left_alone(folder):
    write_rounds(folder, 3)
    file = folder.checkpoints / "round-00002.json"
    file.write_text(file.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(UserError, match=r"written by a newer fedfault \(schema 3; this one reads schemas up to 2\)"):
        folder.load(LAYOUT, "cpu")
    assert folder.list_checkpoints() == [0, 1, 2]


def test_a_checkpoint_of_another_configuration_is_refused(folder, tmp_path):
    write_rounds(folder, 2)
    other = RunFolder.create(tmp_path / "other")
    other.begin({"config": {"seed": 1}})
    write_rounds(other, 2)
    for suffix in ("json", "safetensors"):
        name = f"round-00001.{suffix}"
        (folder.checkpoints / name).write_bytes((other.checkpoints / name).read_bytes())
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        folder.load(LAYOUT, "cpu")


def test_more_rounds_another_device_and_another_name_are_the_same_configuration(folder):
    before = folder.config_hash
    for changes in ({"experiment_name": "b"}, {"device": "cuda"}, {"federation": {"num_rounds": 9}}):
        folder.write_json("manifest.json", {"config": {"seed": 0, "federation": {}, **changes}})
        assert folder.config_hash == RunFolder(folder.path).config_hash
    folder.write_json("manifest.json", {"config": {"seed": 0}})
    assert folder.config_hash == before
    folder.write_json("manifest.json", {"config": {"seed": 1}})
    assert folder.config_hash != before


def test_a_report_says_that_records_were_changed(folder):
    write_rounds(folder, 3)
    folder.write_json("manifest.json", {"status": "finished", "config": {"seed": 0}})
    folder.write_json("metrics.json", summarise_run(folder.read_records()))
    assert read_run(folder.path).notes == ()
    file = folder.path / "rounds.jsonl"
    file.write_text(file.read_text().replace('"loss": 1.0', '"loss": 0.9'))
    assert "is not what the run has written up to round 2: do not trust" in read_run(folder.path).notes[0]
