"""Claiming a results folder: what is free, what goes on, what is refused and with which words."""

from __future__ import annotations

import pytest

from fedfault.config import load
from fedfault.config.files import dump
from fedfault.errors import UserError
from fedfault.runs.folder import RunFolder
from fedfault.session.claim import (
    check_new_run,
    choose_free_name,
    claim_folder,
    claim_new_run,
    claim_run,
    find_differences,
    find_kind,
    locate_run,
)

PARENT = {"run": "another", "round": 1, "changes": {}}


def loaded(folder, *words):
    return load("quickstart", [f"logging.results_dir={folder}", *words])


def write_run(given, status="running", **more) -> RunFolder:
    """A run of a configuration that has not trained a round."""
    folder = RunFolder.create(locate_run(given.experiment))
    (folder.path / "config.yaml").write_text(dump(given.resolved))
    folder.write_json("manifest.json", {"status": status, "config": given.resolved, **more})
    return folder


def make_anew(path, **options) -> set[str]:
    """What is in the folder of a new run once it has begun."""
    with claim_new_run(path, **options) as folder:
        folder.begin({})
    return {p.name for p in folder.path.iterdir()} - {".lock"}


def test_what_a_folder_holds_is_known_by_its_files(tmp_path):
    assert find_kind(tmp_path / "none") == find_kind(tmp_path) == "nothing"
    given = loaded(tmp_path)
    assert find_kind(write_run(given).path) == "run"
    claim_folder(tmp_path / "controls", "controls", given)
    (tmp_path / "controls/control-00.jsonl").touch()
    assert find_kind(tmp_path / "controls") == "controls"
    claim_folder(tmp_path / "study", "study")
    (tmp_path / "study/study.json").write_text("{}")
    assert find_kind(tmp_path / "study") == "study"
    assert find_kind(tmp_path) == "something else"
    assert find_kind(tmp_path / "study/study.json") == "something else"


def test_what_lies_beside_controls_is_named(tmp_path):
    given = loaded(tmp_path)
    claim_folder(tmp_path / "controls", "controls", given)
    (tmp_path / "controls/control-00.jsonl").touch()
    (tmp_path / "controls/mine.json").touch()
    with pytest.raises(UserError, match=r"controls holds mine\.json beside controls; move that away, or give another"):
        claim_folder(tmp_path / "controls", "controls", given)
    (tmp_path / "controls/mine.json").unlink()
    (tmp_path / "controls/.lock").touch()
    claim_folder(tmp_path / "controls", "controls", given)


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".manifest.json.4194305.tmp"]])
def test_what_a_kill_leaves_before_the_manifest_is_free(tmp_path, left):
    given = loaded(tmp_path)
    path = locate_run(given.experiment)
    path.mkdir()
    for name in left:
        (path / name).touch()
    assert find_kind(path) == "nothing"
    assert not claim_run(path, given)
    claim_folder(path, "study")
    assert make_anew(path) == {"manifest.json"}


def test_a_run_that_has_only_begun_is_made_anew_by_any_command_and_keeps_its_name(tmp_path):
    path = write_run(loaded(tmp_path, "seed=1"), "begun").path
    (path / "rounds.jsonl").write_text("of the run that was replaced")
    other = loaded(tmp_path, "seed=2")
    assert not claim_run(path, other)
    assert choose_free_name(other, False, pytest.fail).experiment.experiment_name == "quickstart"
    assert make_anew(path) == {"manifest.json"}


def test_a_link_that_leads_nowhere_is_explained_and_one_to_a_run_is_that_run(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match="dangling exists already and holds a link that leads nowhere, not a run"):
        check_new_run(tmp_path / "dangling")
    run = write_run(loaded(tmp_path), "finished")
    (tmp_path / "linked").symlink_to(run.path)
    with pytest.raises(UserError, match="--overwrite"):
        check_new_run(tmp_path / "linked")
    assert make_anew(tmp_path / "linked", overwrite=True) == {"manifest.json"}
    assert (tmp_path / "linked").is_symlink()


def test_of_two_that_start_the_same_run_the_second_is_refused(tmp_path):
    path = tmp_path / "run"
    with claim_new_run(path) as folder:
        with pytest.raises(UserError, match="in use by another process"), claim_new_run(path):
            pass
        folder.begin({})
        folder.write_json("manifest.json", {"status": "running"})
    with pytest.raises(UserError, match="exists already"), claim_new_run(path):
        pass


def test_a_configuration_that_somebody_wrote_there_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not a run"):
            make_anew(tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


@pytest.mark.slow
def test_only_the_very_same_run_before_its_end_goes_on(tmp_path):
    given = loaded(tmp_path)
    folder = write_run(given)
    assert claim_run(folder.path, given)
    with pytest.raises(UserError, match=r"exists already and holds a run with other settings \(seed, training\.lr\)"):
        claim_run(folder.path, loaded(tmp_path, "training.lr=0.5", "seed=9"))
    for changes, way in (
        ({"status": "finished"}, ": this very run, finished. `fedfault report"),
        ({"status": "stopped"}, "; .* `fedfault resume"),
        ({"parent": PARENT}, "; .* `fedfault resume"),
    ):
        folder.write_json("manifest.json", {"status": "running", **changes})
        with pytest.raises(UserError, match=rf"exists already{way} .* --overwrite"):
            claim_run(folder.path, given)
    assert not claim_run(folder.path, given, overwrite=True)


def test_settings_are_compared_as_they_are_loaded_and_not_as_they_are_written(tmp_path):
    given = loaded(tmp_path, "federation.algorithm=fedprox", "federation.algorithm.mu=0.01")
    config = write_run(given).path / "config.yaml"
    short = {key: value for key, value in reversed(given.resolved.items()) if key not in ("device", "clock")}
    config.write_text("# by hand\n" + dump({**short, "federation": {**short["federation"], "algorithm": "fedprox"}}))
    assert claim_run(config.parent, given)
    other = loaded(tmp_path, "federation.algorithm=fedprox", "federation.algorithm.mu=0.5")
    assert find_differences(config.parent, other) == ["federation.algorithm.mu"]
    config.write_text("other: settings\n")
    assert find_differences(config.parent, given) == ["config.yaml"]


def test_a_run_that_was_moved_is_still_the_same(tmp_path):
    given = loaded(tmp_path / "before")
    moved = tmp_path / "after" / "quickstart"
    moved.parent.mkdir()
    write_run(given).path.rename(moved)
    assert claim_run(moved, loaded(tmp_path / "after"))


@pytest.mark.slow
def test_a_free_name_is_the_first_without_another_run(tmp_path):
    said = []
    write_run(loaded(tmp_path, "seed=1"))
    second = write_run(loaded(tmp_path, "seed=2", "experiment_name=quickstart-2"))
    assert choose_free_name(loaded(tmp_path, "seed=1"), False, said.append).experiment.experiment_name == "quickstart"
    assert not said
    assert locate_run(choose_free_name(loaded(tmp_path, "seed=2"), False, said.append).experiment) == second.path
    assert "holds a run with other settings" in said.pop()
    assert choose_free_name(loaded(tmp_path), False, said.append).experiment.experiment_name == "quickstart-3"


def test_overwrite_replaces_runs_and_nothing_else(tmp_path):
    folder = write_run(loaded(tmp_path), status="finished")
    (folder.path / "rounds.jsonl").write_text("old")
    with pytest.raises(UserError, match="--overwrite"):
        make_anew(folder.path)
    assert make_anew(folder.path, overwrite=True) == {"manifest.json"}
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a run"):
        make_anew(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_damaged_run_is_replaced_when_asked(tmp_path):
    folder = write_run(loaded(tmp_path))
    (folder.path / "manifest.json").write_text("{")
    assert make_anew(folder.path, overwrite=True) == {"manifest.json"}


def test_a_file_in_the_way_is_explained(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*results; choose another"):
        check_new_run(tmp_path / "results" / "run")


@pytest.mark.slow
def test_controls_and_studies_go_on_in_their_own_folder_alone(tmp_path):
    given, folder = loaded(tmp_path), tmp_path / "mine"
    claim_folder(folder, "controls", given, ["detectors."])
    claim_folder(folder, "controls", loaded(tmp_path, "detectors.calibration=none"), ["detectors."])
    with pytest.raises(UserError, match=r"controls of another configuration \(training\.lr\)"):
        claim_folder(folder, "controls", loaded(tmp_path, "training.lr=0.5"))
    with pytest.raises(UserError, match="holds controls, not a study"):
        claim_folder(folder, "study")
    run = write_run(given)
    with pytest.raises(UserError, match="holds a run, not a study"):
        claim_folder(run.path, "study")
    with pytest.raises(UserError, match="exists already and holds controls, not a run"):
        check_new_run(folder, overwrite=True)
