"""The command as a whole: what it writes, what it refuses, and that its study is one like any other."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml

from fedfault.clustering import remedy
from fedfault.clustering.clusters import Clusters
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.runs.folder import RunFolder
from fedfault.studies import doors, file, mitigate, runner
from small import SMALL, start

pytestmark = pytest.mark.usefixtures("without_report")

APART = Clusters((0, 1, 0), {2: 0.9}, 0.5, 0.025, 0.025)
ALIKE = Clusters((0, 0, 0), {2: 0.1}, 0.5, 0.8, 0.8)
SHORT = [
    "federation.num_rounds=2", "evaluation.general=none", "metrics.representation=false", "metrics.attention=false",
    "metrics.gradients=false",
]  # fmt: skip


@pytest.fixture
def plans(monkeypatch):
    """The studies that would have been run."""
    found = []
    monkeypatch.setattr(doors, "run_plan", lambda plan, progress: found.append(plan) or 0)
    return found


def find(monkeypatch, clusters):
    monkeypatch.setattr(remedy, "choose_clusters", lambda *args, **options: clusters)


def small(folder, *words):
    return load("quickstart", [*SMALL, *SHORT, f"logging.results_dir={folder}", *words])


def configs(plan):
    """Arm -> the configuration of its first run."""
    return {cell.choices["arm"]: plan.configs[cell.runs[0]].experiment for cell in plan.study.cells}


@pytest.mark.slow
def test_the_study_has_an_arm_for_every_way_to_train(tmp_path, monkeypatch, plans):
    find(monkeypatch, APART)
    monkeypatch.setattr(mitigate, "find_clusters", lambda p, encoder: APART)
    exp = small(tmp_path, "federation.algorithm=scaffold", "federation.on_failure=stop")
    mitigate.mitigate(exp, seeds=3, encoder="minilm", shrinkage=0.5, quiet=True)
    (plan,) = plans
    arms = configs(plan)
    named = {arm: exp.federation.algorithm for arm, exp in arms.items()}
    assert {arm: a.name for arm, a in named.items()} == {
        "vanilla": "scaffold", "clusters": "clustered", "ifca": "ifca", "local": "clustered", "central": "fedavg",
    }  # fmt: skip
    assert named["clusters"].options == {"clusters": None, "shrinkage": 0.5, "encoder": "minilm"}
    assert named["ifca"].options == {"num_clusters": 2}
    assert named["local"].options["clusters"] == [0, 1, 2]
    assert [arm for arm, exp in arms.items() if exp.federation.centralised] == ["central"]
    assert {exp.federation.on_failure for exp in arms.values()} == {"continue"}
    assert plan.study.seeds == (0, 1, 2)
    assert {h.metric for h in plan.study.hypotheses} == {"client_loss"}


@pytest.mark.slow
def test_what_is_written_is_a_study_that_can_be_run_again(tmp_path, monkeypatch, plans):
    find(monkeypatch, ALIKE)
    mitigate.mitigate(small(tmp_path), quiet=True)
    written = tmp_path / "quickstart-mitigation/study.yaml"
    again = file.load_study(written)
    assert (again.folder, again.study.runs) == (plans[0].folder, plans[0].study.runs)
    assert yaml.safe_load(written.read_text())["arms"]["ifca"]["federation.algorithm"]["num_clusters"] == 2  # at least


@pytest.mark.parametrize("name", ["clustered", "ifca"])
def test_one_model_for_all_is_fedavg_where_the_configuration_has_clusters(tmp_path, name):
    exp = small(tmp_path, f"federation.algorithm={name}").experiment
    assert mitigate.make_study(exp, {}, 2, 1)["arms"]["vanilla"] == {"federation.algorithm": "fedavg"}


def test_clients_with_simulated_hardware_are_not_compared_with_one_place_that_has_none(tmp_path):
    study = mitigate.make_study(small(tmp_path, "deadline.seconds=9").experiment, {}, 2, 1)
    assert "central" not in study["arms"]
    assert "clusters and central" not in study["hypotheses"]


@pytest.mark.slow
@pytest.mark.long
def test_everything_is_compared_and_a_second_call_trains_nothing(tmp_path, monkeypatch, capsys):
    """One cluster: its run is FedAvg itself."""
    find(monkeypatch, ALIKE)
    assert mitigate.mitigate(small(tmp_path), quiet=True) == 0
    root = tmp_path / "quickstart-mitigation"
    runs = {path.name.partition("-")[0]: RunFolder.open(path) for path in (root / "runs").iterdir()}
    steps = {arm: sum(c.steps for r in run.read_records() for c in r.clients) for arm, run in runs.items()}
    assert steps == dict.fromkeys(("vanilla", "clusters", "ifca", "local", "central"), 8)  # two rounds, clients, steps
    ends = {arm: {n: s.loss for n, s in run.read_records()[-1].scores.items()} for arm, run in runs.items()}
    assert {n: ends["clusters"][n] for n in ends["vanilla"]} == ends["vanilla"]
    assert json.loads((runs["clusters"].path / "clusters.json").read_text())["sentence"] == ALIKE.sentence
    page = (root / "report.md").read_text()
    assert "| clusters − vanilla | +0.000 | – | 0 of 3 | 0 of 3 |" in page
    assert ALIKE.sentence in page
    assert "clients       clusters − central: " in capsys.readouterr().out
    monkeypatch.setattr(
        runner,
        "_execute_all",
        lambda tasks, jobs, progress, lender: iter([pytest.fail("trained again")] if tasks else []),
    )
    assert mitigate.mitigate(small(tmp_path), quiet=True) == 0


WHOLE = {"status": "finished"}
OTHERWISE = [
    (
        WHOLE | {"continued": [{"after": 1, "changes": {"device": ["cpu", "auto"]}}]},
        "run is the run vanilla of the study",
    ),
    (WHOLE | {"continued": [{"after": 1, "changes": {"federation.num_rounds": [1, 2]}}]}, "followed two schedules"),
    (WHOLE | {"parent": {"run": "results/a", "round": 3, "changes": {}}}, "it is a fork"),
    (
        WHOLE | {"abandoned": [{"to": 1, "changes": {}, "settings": [], "records": "rounds-1.jsonl", "done": True}]},
        "it went back at an alarm",
    ),
    ({"status": "stopped"}, "it is stopped, not finished"),
]


@pytest.mark.parametrize(("manifest", "told"), OTHERWISE)
def test_only_a_run_that_was_trained_by_its_settings_alone_stands_for_one_of_the_study(
    tmp_path, monkeypatch, manifest, told
):
    loaded = load("quickstart", [*SHORT, f"logging.results_dir={tmp_path}"])
    plan = SimpleNamespace(configs={"vanilla": loaded}, path=lambda name: tmp_path / "copy")
    run = RunFolder.create(tmp_path / "run")
    monkeypatch.setattr(mitigate, "load_own", lambda *_: loaded)
    run.write_json("manifest.json", manifest)
    assert mitigate.adopt_run(plan, run).endswith(told)


@pytest.mark.long
def test_a_finished_run_stands_for_the_vanilla_one(tmp_path, monkeypatch, plans):
    find(monkeypatch, APART)
    run = start(tmp_path, *SHORT)
    loaded, known = mitigate.load_or_open(str(run.path), [])
    mitigate.mitigate(loaded, known=known, quiet=True)
    (copied,) = (tmp_path / "quickstart-mitigation/runs").iterdir()
    assert copied.name.startswith("vanilla-seed0-")
    assert RunFolder.open(copied).read_records() == run.read_records()
    assert mitigate.adopt_run(plans[0], run).endswith(f"already: {copied.name}")
    other = start(tmp_path, *SHORT, "training.lr=0.1", "experiment_name=other")
    assert mitigate.adopt_run(plans[0], other).endswith("no run of the study has all of its settings")


@pytest.mark.slow
def test_results_of_another_configuration_are_left_alone(tmp_path, monkeypatch):
    find(monkeypatch, APART)
    root = tmp_path / "quickstart-mitigation"
    root.mkdir()
    (root / "study.json").write_text("{}")
    (root / "config.yaml").write_text("training:\n  lr: 0.5\n")
    with pytest.raises(UserError, match=r"holds a study of another configuration \(.*training.lr.*\); give another"):
        mitigate.mitigate(small(tmp_path), quiet=True)


@pytest.mark.slow
def test_an_aggregation_that_cannot_work_in_clusters_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    find(monkeypatch, APART)
    with pytest.raises(UserError, match=r"cannot be combined with federation\.aggregation=flora"):
        mitigate.mitigate(small(tmp_path, "federation.aggregation=flora"), quiet=True)
    assert not (tmp_path / "quickstart-mitigation").exists()


def test_data_in_one_place_have_no_clients_to_cluster(tmp_path):
    with pytest.raises(UserError, match="one of the ways that clusters are compared with; leave it out"):
        mitigate.mitigate(small(tmp_path, "federation.centralised=true"), quiet=True)
