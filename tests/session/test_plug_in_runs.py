"""Runs with components from files of the user: what is kept, what goes on, and what is refused after an edit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import small
from fedfault import registry
from fedfault.config import load
from fedfault.diagnosis.watch import diagnose_run
from fedfault.errors import UserError
from fedfault.session.claim import (
    choose_free_name,
    claim_run,
    find_differences,
    locate_run,
    write_configuration,
)
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run
from fedfault.studies.file import load_study

NEWCOMERS = Path(__file__).parents[1] / "newcomers"
QUIET = Progress(quiet=True)
PROBE = """
from fedfault.registry import register
from fedfault.types.task import Measurements, Probe


@register("probe", on={on})
def sevens():
    "Measures seven."
    return Probe(lambda finished: Measurements({{"seven": 7.0}}))
"""
WITH = ["plugins=[mine.py]", "federation.algorithm=sign_step", "data.partition=by_length"]


pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture(autouse=True)
def _keep_plugins():
    with registry.keep_plugins():
        yield


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The working folder with an algorithm, a partitioner, a detector and a probe in one file."""
    monkeypatch.chdir(tmp_path)
    parts = [(NEWCOMERS / f"{name}.py").read_text() for name in ("sign_step", "by_length", "lost_ground")]
    Path("mine.py").write_text("\n".join([*parts, PROBE.format(on=True)]))
    return Path("mine.py")


@pytest.mark.long
def test_a_users_own_components_run_and_go_on_from_the_source_that_the_folder_keeps(mine, tmp_path, monkeypatch):
    """After an edit, and from another folder: to the same numbers, as the run has the source that it began with."""
    folder = small.start(tmp_path / "results", *WITH)
    assert (folder.path / "plugins" / "mine.py").read_bytes() == mine.read_bytes()
    (about,) = folder.read_json("manifest.json")["plugins"]
    assert load(folder.path / "config.yaml").resolved["plugins"] == [f"mine.py#{about['fingerprint']}"]
    records = folder.read_records()
    assert [r.probes.get("seven") for r in records] == [None, 7.0, 7.0, 7.0]
    before = small.final(folder)
    folder.rewind(1)
    folder.write_json("manifest.json", {**folder.read_json("manifest.json"), "status": "running"})
    mine.write_text(mine.read_text().replace("= 0.05", "= 0.06"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume_run(folder.path, QUIET)
    assert small.final(folder) == before
    fork = fork_run(folder.path, 1, ["federation.algorithm.server_lr=0.01"], QUIET)
    assert (fork.path / "plugins" / "mine.py").read_bytes() == (folder.path / "plugins" / "mine.py").read_bytes()
    told, _ = diagnose_run(folder.path)
    assert "lost_ground" in registry.load_builders("detector")
    assert told.startswith("quickstart: ")
    shutil.rmtree(folder.path / "plugins")
    for door in (lambda: resume_run(folder.path, QUIET), lambda: diagnose_run(folder.path)):
        with pytest.raises(
            UserError, match=rf"mine\.py is not there, with the hash {about['fingerprint']}; put it back"
        ):
            door()


@pytest.fixture
def begun(mine, tmp_path):
    """A run that was stopped at its start, and its configuration."""
    loaded = load("quickstart", [*WITH, f"logging.results_dir={tmp_path}/results"])
    path = locate_run(loaded.experiment)
    path.mkdir(parents=True)
    write_configuration(path, loaded)
    (path / "manifest.json").write_text('{"status": "running"}')
    return loaded, path


@pytest.mark.slow
def test_an_edited_plug_in_is_another_setting_and_the_new_one_stays_in_use(begun, mine):
    loaded, path = begun
    assert find_differences(path, loaded) == []
    assert claim_run(path, loaded)
    mine.write_text(mine.read_text().replace("= 0.05", "= 0.06"))
    edited = load("quickstart", [*WITH, f"logging.results_dir={path.parent}"])
    new = registry.describe_plugins()
    assert find_differences(path, edited) == ["plugins", "federation.algorithm.server_lr"]
    with pytest.raises(UserError, match=r"holds a run with other settings \(plugins, federation"):
        claim_run(path, edited)
    assert choose_free_name(edited, False, lambda line: None).experiment.experiment_name == "quickstart-2"
    assert registry.describe_plugins() == new


def test_a_plug_in_has_its_place_in_the_error(mine, tmp_path):
    (tmp_path / "own.yaml").write_text("seed: 1\nplugins: [mine.py, bad.py]\n")
    (tmp_path / "bad.py").write_text("def (")
    with pytest.raises(UserError, match=r"^own\.yaml:2: plugins: bad\.py:1: syntax error: "):
        load("own.yaml")
    with pytest.raises(UserError, match=r"^command line: plugins: bad\.py:1: syntax error: "):
        load("quickstart", [], ["bad.py"])


def test_further_plug_ins_come_beside_those_of_the_configuration(mine, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own.yaml").write_text("plugins: [weather.py]\n")
    shutil.copy(NEWCOMERS / "weather.py", tmp_path / "folder")
    found = load("folder/own.yaml", ["data.dataset=weather"], ["mine.py"]).resolved["plugins"]
    assert [text.partition("#")[0] for text in found] == ["folder/weather.py", "mine.py"]


@pytest.mark.parametrize("on", [True, False])
def test_a_probe_of_a_plug_in_has_its_switch(mine, on):
    mine.write_text(PROBE.format(on=on))
    metrics = load("quickstart", ["plugins=[mine.py]"]).resolved["metrics"]
    assert (list(metrics)[-1], metrics["sevens"]) == ("sevens", on)
    assert load("quickstart", ["plugins=[mine.py]", "metrics.sevens=true"]).experiment.metrics.sevens is True
    with pytest.raises(UserError, match="metrics: sevens must be true or false; it is 7"):
        load("quickstart", ["plugins=[mine.py]", "metrics.sevens=7"])
    with pytest.raises(UserError, match=r"no key 'sevens' in section metrics \(known: updates"):
        load("quickstart", ["metrics.sevens=true"])


def test_a_study_with_an_edited_plug_in_has_other_runs(mine, tmp_path):
    (tmp_path / "study.yaml").write_text(
        "plugins: [mine.py]\narms: {sign: {federation.algorithm: sign_step}, plain: {}}\n"
    )
    before = load_study("study.yaml").study.runs
    assert load_study("study.yaml").study.runs == before
    mine.write_text(mine.read_text() + "\n")
    assert not set(before) & set(load_study("study.yaml").study.runs)
