"""A run keeps the settings that it began with: an edited file is refused, more rounds are asked for and written down."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from crash import QUIET, Lender, load_tiny
from fedfault.api.run import Run
from fedfault.config import load
from fedfault.config.changes import hash_settings
from fedfault.errors import UserError
from fedfault.runs.checkpoint import read_about, write_about
from fedfault.runs.folder import RESULTS, RunFolder
from fedfault.runs.read import read_run
from fedfault.session.blame import blame_run
from fedfault.session.checkpoints import export_round
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.settings import record_settings
from fedfault.session.start import resume_run, start_run
from fedfault.studies.mitigate import load_or_open

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_report")]
READY = Lender()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        return start_run(load_tiny(tmp_path_factory.mktemp("results")), QUIET, ready=READY).path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "quickstart"))


def edit(file: Path, *replaced: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def resume(path: Path, *changes: str, progress: Progress = QUIET) -> RunFolder:
    return resume_run(path, progress, changes, ready=READY)


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("lr: 0.003", "lr: 0.03", "training.lr 0.003 -> 0.03"),
        ("num_rounds: 2", "num_rounds: 1", "federation.num_rounds 2 -> 1"),
        ("name: scaffold\n    option: II\n    server_lr: 1.0", "name: fedavg", "algorithm.name scaffold -> fedavg"),
        ("name: quickstart\nseed: ", "name: quickstart\nseed: 1", "seed "),
        ("total_clients: 2", "total_clients: 3", "federation.total_clients 2 -> 3"),
    ],
)
def test_an_edited_configuration_is_refused_with_what_differs_and_the_fork_that_would_do_it(run, old, new, differs):
    edit(run / "config.yaml", (old, new))
    before = list_files(run)
    with pytest.raises(UserError, match="is not as it was when the run began") as caught:
        resume(run)
    assert differs in str(caught.value)
    assert f"`fedfault fork {run} --round 0 " in str(caught.value)
    assert list_files(run) == before


def test_what_changes_no_number_may_be_edited_and_a_lost_file_is_written_again(run):
    edit(run / "config.yaml", ("keep_checkpoints: 1", "keep_checkpoints: 5"))
    resume(run)
    assert load(run / "config.yaml").experiment.logging.keep_checkpoints == 5
    (run / "config.yaml").unlink()
    resume(run)
    assert load(run / "config.yaml").experiment.training.lr == 0.003


def test_more_rounds_are_trained_and_written_down(run, finished):
    (more := resume(run, "federation.num_rounds=3")).read_records()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["continued"] == [{"after": 2, "changes": {"federation.num_rounds": [2, 3]}, "versions": {}}]
    assert load(run / "config.yaml").experiment.federation.num_rounds == 3
    assert [r.round for r in more.read_records()] == [0, 1, 2, 3]
    assert more.read_records()[:3] == RunFolder(finished).read_records()
    resume(run)  # and from then on these are its settings
    assert len(json.loads((run / "manifest.json").read_text())["continued"]) == 1


def test_more_rounds_are_trained_where_only_the_results_were_not_written_yet(run):
    """A kill had left it `trained`; it was then called finished, three rounds short."""
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "trained"}))
    (run / "metrics.json").unlink()
    assert [r.round for r in resume(run, "federation.num_rounds=3").read_records()] == [0, 1, 2, 3]
    assert RunFolder(run).read_manifest()["status"] == "finished"


def test_more_rounds_later_are_the_rounds_of_a_run_that_was_longer_from_the_start(run, tmp_path):
    longer = start_run(load_tiny(tmp_path / "longer", "federation.num_rounds=4"), QUIET, ready=READY)
    later = resume(run, "federation.num_rounds=4")
    assert [r.scores for r in later.read_records()] == [r.scores for r in longer.read_records()]


def test_more_rounds_that_are_killed_leave_no_results_of_the_former_end(run, finished, monkeypatch):
    def save(self, state, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save)
        with pytest.raises(KeyboardInterrupt):
            resume(run, "federation.num_rounds=4", "personalise={steps: 1}")
    assert [r.round for r in read_run(run).records] == [0, 1, 2, 3]
    assert not any((run / name).exists() for name in RESULTS)
    with pytest.raises(UserError, match=r"has no adapter yet: 3 of 4 rounds are recorded; ff\.resume"):
        Run(run).adapter()
    resume(run)
    assert read_run(run).metrics["rounds"] == 4
    assert {row["model"] for row in read_run(run).personal} == {"global", "tuned"}


def test_a_run_that_is_killed_before_its_rounds_are_prepared_keeps_its_results(run, monkeypatch):
    def check(fed):
        raise UserError("refused")

    monkeypatch.setattr("fedfault.session.training.check_gradients", check)
    with pytest.raises(UserError, match="refused"):
        resume(run, "federation.num_rounds=4")
    assert Run(run).metrics["rounds"] == read_run(run).rounds_done == 2


def test_more_rounds_under_a_schedule_are_told_by_whatever_reads_or_repeats_them(tmp_path, capsys):
    falls = ["training.lr_schedule=cosine", "training.min_lr=1e-5", "logging.keep_checkpoints=all"]
    run = start_run(load_tiny(tmp_path, *falls), QUIET, ready=READY).path
    told = "Up to round 2 learning rates are those of a run of 2 rounds, later ones those of a run of 4, as it went on"
    resume(run, "federation.num_rounds=4", progress=Progress())
    assert f"note: {told}" in " ".join(capsys.readouterr().err.split())
    assert [told in note for note in read_run(run).notes] == [True]
    blame_run(run, QUIET, 2, pairs=0)  # which trains it again, and finds it as it was recorded
    for lost in (run / "checkpoint").glob("round-00002.*"):
        lost.unlink()
    with pytest.raises(UserError, match="changed its settings after round 1"):
        blame_run(run, QUIET, 3, pairs=0)

    scores = [r.scores for r in RunFolder(run).read_records()]
    other = fork_run(run, 1, [], Progress())
    said = " ".join(capsys.readouterr().err.split())
    assert "with federation.num_rounds 2 -> 4" in said
    assert "With federation.num_rounds=2 it repeats these rounds." in said
    assert other.read_manifest()["parent"]["changes"] == {"federation.num_rounds": [2, 4]}
    assert other.read_records()[2].scores != scores[2]
    same = fork_run(run, 1, ["federation.num_rounds=2"], Progress())
    assert "nothing is changed: round 2 will have the same numbers" in " ".join(capsys.readouterr().err.split())
    assert [r.scores for r in same.read_records()] == scores[:3]
    late = fork_run(run, 3, [], QUIET)
    assert late.read_records()[4].scores == scores[4]
    assert [told in note for note in late.read_manifest()["notes"]] == [True]


def test_fewer_rounds_than_are_done_are_refused(run):
    before = list_files(run)
    with pytest.raises(UserError, match=r"has done 2 rounds already; give 2 or more"):
        resume(run, "federation.num_rounds=1")
    assert list_files(run) == before


@pytest.mark.parametrize("change", ["training.lr=0.1", "experiment_name=other", "seed=3", "logging.results_dir=x"])
def test_what_only_a_fork_can_change_is_refused_with_the_fork(run, change):
    with pytest.raises(UserError, match=rf"cannot go on with another .*`fedfault fork {run} --round 0 {change}`"):
        resume(run, change)


@pytest.mark.parametrize("state", ["run", "begun"])
def test_a_key_that_does_not_exist_is_no_change_that_a_fork_could_make(state, request):
    with pytest.raises(UserError) as caught:
        resume(request.getfixturevalue(state), "federation.numrounds=3")
    assert str(caught.value).startswith(
        "command line: no key 'numrounds' in section federation; did you mean 'num_rounds'?"
    )


def test_a_half_made_change_of_rounds_is_finished_by_the_same_command(run):
    edit(run / "config.yaml", ("num_rounds: 2", "num_rounds: 3"))  # a kill came before the manifest
    with pytest.raises(UserError, match=rf"`fedfault resume {run} federation.num_rounds=3`"):
        resume(run)
    assert len(resume(run, "federation.num_rounds=3").read_records()) == 4


def test_another_version_of_what_computes_is_told_and_written_down(run, capsys):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "torch": "1.0"}))
    resume(run, progress=Progress())
    said = " ".join(capsys.readouterr().err.split())
    assert f"goes on with torch {manifest['torch']} instead of 1.0: its numbers may differ" in said
    now = json.loads((run / "manifest.json").read_text())
    assert now["continued"][0]["versions"] == {"torch": ["1.0", manifest["torch"]]}
    assert now["torch"] == manifest["torch"]


def test_a_run_that_had_only_begun_starts_by_what_its_manifest_says(finished, tmp_path):
    path = tmp_path / "quickstart"
    path.mkdir()
    manifest = json.loads((finished / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "status": "begun"}))
    (path / "rounds.jsonl").write_text("of the run that stood here before\n")
    assert [r.scores for r in resume(path).read_records()] == [r.scores for r in RunFolder(finished).read_records()]


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """The run as a kill leaves it before the first round."""
    path = tmp_path / "quickstart"
    path.mkdir()
    manifest = json.loads((finished / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "status": "begun"}))
    return path


@pytest.mark.parametrize("change", ["training.lr=0.02", "experiment_name=other", "logging.results_dir=elsewhere"])
def test_a_run_that_had_only_begun_takes_no_settings_but_those_of_one_that_goes_on(begun, change):
    before, key = list_files(begun), change.partition("=")[0]
    with pytest.raises(UserError, match=f"cannot go on with another {key}; .* has not trained yet"):
        resume(begun, change)
    assert list_files(begun) == before | {".lock": b""}


def test_a_run_that_had_only_begun_writes_down_with_what_else_it_starts(begun, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fedfault.session.start.write_configuration", None)
        with pytest.raises(TypeError):
            resume(begun, "federation.num_rounds=3")  # killed once more, and goes on without the change
    assert [r.round for r in resume(begun).read_records()] == [0, 1, 2, 3]
    went_on = [{"after": 0, "changes": {"federation.num_rounds": [2, 3]}, "versions": {}}]
    assert RunFolder(begun).read_manifest()["continued"] == went_on


def test_a_run_over_flower_that_had_only_begun_does_not_start_in_one_process(begun):
    manifest = json.loads((begun / "manifest.json").read_text())
    (begun / "manifest.json").write_text(json.dumps({**manifest, "over_flower": True}))
    with pytest.raises(UserError, match="is a run over Flower"):
        resume(begun)


def test_heterogeneity_json_is_there_again_where_it_cannot_be_read(run, finished):
    whole = (finished / "heterogeneity.json").read_bytes()
    for damage in (b"", b"{broken", b'{"sentences": "one"}', b"\xff"):
        (run / "heterogeneity.json").write_bytes(damage)
        resume(run)
        assert (run / "heterogeneity.json").read_bytes() == whole


def test_split_json_is_there_again_whatever_became_of_it(run, finished):
    whole = (finished / "split.json").read_bytes()
    for damage in ("", '{"topics": []}'):
        (run / "split.json").write_text(damage)
        resume(run)
        assert (run / "split.json").read_bytes() == whole
    (run / "split.json").unlink()
    resume(run)
    assert (run / "split.json").read_bytes() == whole


@pytest.mark.parametrize(
    "read",
    [
        lambda run: fork_run(run, 0, [], QUIET),
        lambda run: blame_run(run, QUIET, 2),
        lambda run: export_round(run, 2, run.parent / "model"),
        lambda run: load_or_open(str(run), ["federation.num_rounds=3"]),
    ],
    ids=["fork", "blame", "evaluate", "mitigate"],
)
def test_what_goes_on_from_a_run_takes_no_edited_settings_for_those_of_the_run(run, read):
    """A fork said that nothing is changed, and went on with the edited learning rate."""
    edit(run / "config.yaml", ("lr: 0.003", "lr: 0.03"))
    before = list_files(run)
    with pytest.raises(UserError, match=r"is not as it was when the run began: training.lr 0.003 -> 0.03"):
        read(run)
    assert list_files(run) == before


def test_a_fork_of_a_run_that_lost_its_configuration_goes_on_from_the_manifest(run):
    (run / "config.yaml").unlink()
    loaded, _ = load_or_open(str(run), [])
    assert loaded.experiment.training.lr == 0.003


def test_what_was_asked_for_later_keeps_the_run_one_that_can_go_on(run):
    """Its checkpoints were then said to belong to a run with other settings, for ever."""
    manifest = RunFolder(run).read_manifest()
    loaded = load(run / "config.yaml", ["personalise.steps=1"])
    record_settings(RunFolder(run), manifest, loaded, 2, {})
    assert load(run / "config.yaml").experiment.personalise is not None
    resume(run, "personalise=null")
    resume(run, "federation.num_rounds=3")


# what older versions left out of the hash in a checkpoint
LEFT_OUT = ("experiment_name", "logging.", "device", "federation.num_rounds", "plugins")


def rehash(run: Path, config: dict, settings: dict) -> None:
    """Make a run one that an older version began with this configuration, and checkpoints those of these settings."""
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"config": config}))
    folder = RunFolder(run).checkpoints
    for round in RunFolder(run).list_checkpoints():
        about = read_about(folder, round)
        write_about(folder, replace(about, config=hash_settings(settings, LEFT_OUT)))


def test_a_setting_that_came_with_a_later_version_does_not_part_a_run_from_its_checkpoints(run):
    config = RunFolder(run).read_manifest()["config"]
    del config["evaluation"]["choices"], config["personalise"]  # as if this version had brought them
    rehash(run, config, config)
    record_settings(RunFolder(run), RunFolder(run).read_manifest(), load(run / "config.yaml"), 2, {})  # then a kill
    for rounds in (3, 4):
        resume(run, f"federation.num_rounds={rounds}")
    assert [r.round for r in RunFolder(run).read_records()] == [0, 1, 2, 3, 4]


def test_a_checkpoint_of_an_older_version_counted_what_may_be_asked_for_later(run):
    config = RunFolder(run).read_manifest()["config"]
    asked = config | {"personalise": {"steps": 1, "alone": False, "lr": None}}
    rehash(run, config, asked)
    with pytest.raises(UserError, match="other settings"):
        resume(run)
    rehash(run, asked, asked)
    (run / "config.yaml").unlink()
    assert [r.round for r in resume(run, "personalise=null").read_records()] == [0, 1, 2]


def test_a_run_without_its_checkpoints_is_not_begun_anew_over_its_records(run):
    """Its records were emptied without a word, and the rounds trained again from the first."""
    shutil.rmtree(RunFolder(run).checkpoints)
    before = list_files(run)
    with pytest.raises(UserError, match=r"no whole checkpoint in .*: there is none"):
        resume(run, "federation.num_rounds=3")
    after = list_files(run)
    assert after["rounds.jsonl"] == before["rounds.jsonl"]
