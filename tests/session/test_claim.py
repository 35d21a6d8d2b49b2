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
    claim_run,
    find_differences,
    find_kind,
    locate_run,
    make_run_folder,
)


def loaded(folder, *words):
    return load("quickstart", [f"logging.results_dir={folder}", *words])


def write_run(given, status="running", **more) -> RunFolder:
    """A run of a configuration that has not trained a round."""
    folder = RunFolder.create(locate_run(given.experiment))
    (folder.path / "config.yaml").write_text(dump(given.resolved))
    folder.write_json("manifest.json", {"status": status, **more})
    return folder


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


def test_what_a_kill_leaves_before_the_manifest_is_free(tmp_path):
    given = loaded(tmp_path)
    folder = write_run(given)
    (folder.path / "manifest.json").unlink()
    assert find_kind(folder.path) == "nothing"
    assert not claim_run(folder.path, given)
    assert not any(make_run_folder(folder.path).checkpoints.iterdir())
    (folder.checkpoints / "round-00000.safetensors").touch()
    assert find_kind(folder.path) == "something else"


def test_a_configuration_that_somebody_wrote_there_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not a run"):
            make_run_folder(tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_only_the_very_same_run_before_its_end_goes_on(tmp_path):
    given = loaded(tmp_path)
    folder = write_run(given)
    assert claim_run(folder.path, given)
    with pytest.raises(UserError, match=r"exists already and holds a run with other settings \(seed, training\.lr\)"):
        claim_run(folder.path, loaded(tmp_path, "training.lr=0.5", "seed=9"))
    for changes in ({"status": "finished"}, {"status": "stopped"}, {"parent": {"run": "another"}}):
        folder.write_json("manifest.json", {"status": "running", **changes})
        with pytest.raises(UserError, match=r"exists already; .* `fedfault resume .* --overwrite"):
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
        make_run_folder(folder.path)
    assert not (make_run_folder(folder.path, overwrite=True).path / "rounds.jsonl").exists()
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a run"):
        make_run_folder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_damaged_run_is_replaced_when_asked(tmp_path):
    folder = write_run(loaded(tmp_path))
    (folder.path / "manifest.json").write_text("{")
    assert not any(make_run_folder(folder.path, overwrite=True).checkpoints.iterdir())


def test_a_file_in_the_way_is_explained(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*results; choose another"):
        check_new_run(tmp_path / "results" / "run")


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
