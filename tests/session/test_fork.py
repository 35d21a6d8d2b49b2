"""Forks: the same future without a change, another one with; what has to stay, and what is remembered."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.rounds.carry import carry_over
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import OWN
from fedfault.runs.folder import RunFolder
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from fedfault.testing.toys import LowRank, federation
from small import SMALL

pytestmark = pytest.mark.usefixtures("without_report")

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> RunFolder:
    """SCAFFOLD, so that server and clients remember something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        words = [f"logging.results_dir={tmp_path_factory.mktemp('results')}", "federation.algorithm=scaffold"]
        return start_run(load("quickstart", [*SMALL, *words]), QUIET)


def numbers(folder: RunFolder) -> list[dict]:
    """All records without times."""
    lines = [r.to_json() for r in folder.read_records()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def adapter(folder: RunFolder) -> bytes:
    return (folder.path / "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("round", [0, 1])
def test_a_fork_without_changes_has_the_future_of_its_parent_to_the_last_bit(parent, round, capsys):
    child = fork_run(parent.path, round, [], Progress())
    assert numbers(child) == numbers(parent)
    assert adapter(child) == adapter(parent)
    said = " ".join(capsys.readouterr().err.split())
    assert f"nothing is changed: rounds {round + 1} to 3 will have the same numbers" in said


@pytest.mark.slow
def test_forks_are_numbered_and_stand_beside_their_parent(parent, monkeypatch, tmp_path):
    moved, elsewhere = tmp_path / "moved" / "quickstart", tmp_path / "elsewhere"
    shutil.copytree(parent.path, moved)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert fork_run(moved, 2, [], QUIET).path == tmp_path / "moved" / "quickstart-fork"
    assert fork_run(moved, 2, [], QUIET).path == tmp_path / "moved" / "quickstart-fork-2"
    (tmp_path / "moved" / "quickstart-fork" / "mine").touch()
    assert fork_run(moved, 2, [], QUIET, overwrite=True).path == tmp_path / "moved" / "quickstart-fork"
    assert not (tmp_path / "moved" / "quickstart-fork" / "mine").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_a_fork_says_where_it_comes_from_and_what_is_different(parent):
    with parent.lock():  # it may still be running
        child = fork_run(parent.path, 1, ["training.lr=0.02", "federation.num_rounds=2", "experiment_name=hot"], QUIET)
    about = child.read_json("manifest.json")["parent"]
    changes = {"training.lr": [0.003, 0.02], "federation.num_rounds": [3, 2]}
    assert about == {"run": str(parent.path), "round": 1, "changes": changes}
    assert numbers(child)[:2] == numbers(parent)[:2]
    assert numbers(child)[2]["scores"] != numbers(parent)[2]["scores"]
    assert (child.path / "parent.jsonl").read_text() == (parent.path / "rounds.jsonl").read_text()
    for name in ("split.json", "heterogeneity.json"):
        assert json.loads((child.path / name).read_text()) == json.loads((parent.path / name).read_text())
    config = load(child.path / "config.yaml").experiment
    assert (config.experiment_name, config.training.lr, config.federation.num_rounds) == ("hot", 0.02, 2)


@pytest.mark.slow
def test_a_fork_that_was_killed_is_resumed_to_the_same_numbers(parent, monkeypatch):
    whole = fork_run(parent.path, 1, ["training.lr=0.01", "experiment_name=whole"], QUIET)
    save = RunFolder.save

    def killed(self, state, *rest):
        save(self, state, *rest)
        if state.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fork_run(parent.path, 1, ["training.lr=0.01", "experiment_name=killed"], QUIET)
    monkeypatch.undo()
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    resumed = resume_run(parent.path.parent / "killed", QUIET)
    assert numbers(resumed) == numbers(whole)
    assert resumed.read_json("manifest.json")["parent"]["round"] == 1


@pytest.mark.slow
def test_a_fork_that_lost_its_checkpoints_does_not_start_from_the_beginning(parent, tmp_path):
    child = fork_run(parent.path, 2, [f"logging.results_dir={tmp_path}"], QUIET)
    shutil.rmtree(child.checkpoints)
    with pytest.raises(UserError, match="no whole checkpoint"):
        resume_run(child.path, QUIET)


@pytest.mark.long
def test_a_parent_that_changed_itself_goes_on_as_it_was_by_then(parent, tmp_path):
    copy = tmp_path / "quickstart"
    shutil.copytree(parent.path, copy)
    manifest = RunFolder(copy).read_json("manifest.json")
    gone = {"to": 1, "from": 2, "settings": ["training.lr=0.001"], "changes": {}, "records": "a.jsonl", "done": True}
    RunFolder(copy).write_json("manifest.json", {**manifest, "abandoned": [gone]})
    for round, lr in ((0, 0.003), (1, 0.001), (2, 0.001)):
        child = fork_run(copy, round, ["federation.num_rounds=3"], QUIET)
        assert load(child.path / "config.yaml").experiment.training.lr == lr
        assert child.read_json("manifest.json")["parent"]["changes"] == {}
    hot = fork_run(copy, 2, ["training.lr=0.01"], QUIET)
    assert hot.read_json("manifest.json")["parent"]["changes"] == {"training.lr": [0.001, 0.01]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["federation.algorithm=fedadam"],
        ["federation.algorithm=feddyn", "federation.weighting=uniform"],
        ["federation.algorithm=fedavg", "federation.aggregation=flora"],
        ["federation.algorithm=fedavg", "federation.aggregation=fedsa_lora"],
        ["federation.aggregation=ffa_lora", "training.optimizer=sgd", "federation.participation_rate=1.0"],
        ["federation.clients_per_round=1", "evaluation.every=2", "federation.num_rounds=4", "metrics.ranks=false"],
    ],
    ids=" ".join,
)
def test_what_may_change_goes_on_from_the_parent_s_adapter(parent, words, tmp_path):
    child = fork_run(parent.path, 2, [*words, f"logging.results_dir={tmp_path}"], QUIET)
    assert numbers(child)[:3] == numbers(parent)[:3]
    last, before = numbers(child)[-1], numbers(parent)[2]
    assert last["scores"]["validation"]["loss"] != before["scores"]["validation"]["loss"]
    assert last["scores"]["validation"]["loss"] == pytest.approx(before["scores"]["validation"]["loss"], abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=4"], "cannot have another seed"),
        (["model.lora.r_max=4"], r"another model\.lora\.r_max: the checkpoint holds numbers"),
        (["model.name=smollm2-135m"], r"another model\.name"),
        (["model.max_length=32"], r"another model\.max_length"),
        (["data.partition=iid"], r"another data\.partition\.name"),
        (["data.dataset=bbc_news"], r"another data\.dataset\.name"),
        (["federation.total_clients=4"], "a row for each client"),
        (["federation.scheduler.ranks=[2]"], "ranks of the clients"),
        (["evaluation.max_blocks=8"], "other texts"),
        (["evaluation.general=none"], "other texts"),
        (["federation.aggregation=flora"], "cannot be combined"),
        (["federation.num_rounds=2"], "nothing is left after round 2"),
        (["experiment_name=quickstart"], "cannot replace it"),
        (["training.lrr=1"], "did you mean 'lr'"),
        (["federation.algorithm=scafold"], "did you mean 'scaffold'"),
        (["quickstart"], "not of the form key=value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_has_to_stay_is_refused_with_the_reason(parent, words, says):
    there = set(parent.path.parent.iterdir())
    with pytest.raises(UserError, match=says):
        fork_run(parent.path, 2, words, QUIET, overwrite=True)
    assert set(parent.path.parent.iterdir()) == there
    assert parent.list_checkpoints() == [0, 1, 2, 3]


def test_a_round_that_was_not_kept_is_named_with_those_that_were(parent, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of round 9; there are those of rounds 0 to 3"):
        fork_run(parent.path, 9, ["federation.num_rounds=12"], QUIET)
    with pytest.raises(UserError, match="not a run folder"):
        fork_run(tmp_path, 1, [], QUIET)
    assert not list(tmp_path.iterdir())


def state_of(fed, rounds_done: int):
    return next(state for state, _ in rounds(fed, begin(fed)) if state.round == rounds_done)


def test_memory_is_kept_with_the_same_algorithm_and_starts_anew_with_another():
    task = LowRank()
    before = federation(task, "scaffold")
    state = state_of(before, 3)
    kept, notes = carry_over(federation(task, ("scaffold", {"option": "I"})), state, {"federation.algorithm.option"})
    assert torch.equal(kept.memory["c"].flat, state.memory["c"].flat)
    assert torch.equal(kept.clients["c"].flat, state.clients["c"].flat)
    assert notes == []
    anew, notes = carry_over(federation(task, "feddyn"), state, {"federation.algorithm.name"})
    assert (set(anew.memory), set(anew.clients)) == ({"h"}, {"g"})
    assert not anew.memory["h"].flat.any()
    assert torch.equal(anew.adapter.flat, state.adapter.flat)
    assert notes == ["what the algorithm remembers starts anew after round 3"]


def test_control_variates_start_anew_with_other_weights_of_clients():
    task = LowRank()
    state = state_of(federation(task, "scaffold"), 3)
    uniform = federation(task, "scaffold", work={"weighting": "uniform"})
    anew, _ = carry_over(uniform, state, {"federation.weighting"})
    assert anew.weights == (1.0,) * 6
    assert not anew.memory["c"].flat.any()
    assert [s.round for s, _ in rounds(uniform, anew)] == [4, 5]  # the invariant c = mean of c_i holds


def test_an_option_that_changes_what_is_remembered_starts_it_anew():
    task = LowRank()
    state = state_of(federation(task, ("ifca", {"num_clusters": 2})), 2)
    anew, _ = carry_over(federation(task, ("ifca", {"num_clusters": 3})), state, {"federation.algorithm.num_clusters"})
    assert torch.equal(anew.memory["cluster_0"].flat, state.adapter.flat)
    assert set(anew.memory) == {"cluster_0", "cluster_1", "cluster_2"}
    assert (anew.stored, anew.seen) == ((0,) * 6, state.seen)  # nobody has chosen yet, and all know the model


def test_private_factors_start_as_the_server_s_and_end_as_their_mean():
    task = LowRank()
    shared, private = federation(task), federation(task, aggregation="fedsa_lora")
    state, changed = state_of(shared, 2), {"federation.aggregation.name"}
    apart, _ = carry_over(private, state, changed)
    assert torch.equal(apart.clients[OWN].flat, state.adapter.flat.expand(6, -1))
    later = next(s for s, _ in rounds(private, apart) if s.round == 4)
    again, notes = carry_over(shared, later, changed)
    assert OWN not in again.clients
    assert torch.equal(again.adapter.flat, later.adapter.flat)
    assert any("replaced by their mean" in note for note in notes)
    same, _ = carry_over(private, later, {"federation.algorithm.mu"})
    assert torch.equal(same.clients[OWN].flat, later.clients[OWN].flat)


def test_stacking_after_averaging_keeps_the_model():
    task = LowRank()
    state, flora = state_of(federation(task), 2), federation(task, aggregation="flora", work={"lr": 1e-9})
    on, _ = carry_over(flora, state, {"federation.aggregation.name"})
    after, record = next(rounds(flora, on))
    assert after.base  # everything has moved into the frozen weights
    assert record.scores["validation"].loss == pytest.approx(task.evaluate(after.adapter)["validation"].loss)
    task.fold({})
    assert record.scores["validation"].loss == pytest.approx(task.evaluate(state.adapter)["validation"].loss, rel=1e-5)


def test_ranks_that_clients_have_by_now_must_fit():
    task = LowRank()
    pruned = replace(state_of(federation(task), 2), ranks=(1, 2, 2, 2, 2, 2))
    with pytest.raises(UserError, match="ranks 1 to 2 after round 2, and the new algorithm needs one"):
        carry_over(federation(task, "feddyn"), pruned, {"federation.algorithm.name"})
    with pytest.raises(UserError, match="would lose the rest"):
        carry_over(federation(task, aggregation="flora"), pruned, {"federation.aggregation.name"})
    kept, _ = carry_over(federation(task), pruned, {"training.lr"})
    assert kept.ranks == pruned.ranks
