"""The command as a whole, what centralised training is, and the answer to an alarm."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fedfault.clustering import remedy
from fedfault.clustering.clusters import Clusters
from fedfault.clustering.remedy import split_up
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.mitigation.central import Pooled, central
from fedfault.mitigation.comparison import TITLES
from fedfault.mitigation.mitigate import mitigate, read
from fedfault.records import Finding
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.folder import RunFolder
from fedfault.session import rollback
from fedfault.session.fork import fork
from fedfault.session.progress import Progress
from fedfault.session.start import resume
from fedfault.setup.experiment import prepare
from small import SMALL, start

QUIET = Progress(quiet=True)
APART = Clusters((0, 1, 0), {2: 0.9}, 0.5, 0.025)
ALIKE = Clusters((0, 0, 0), {2: 0.1}, 0.5, 0.8)
SHORT = ["federation.num_rounds=2", "evaluation.general=none"]


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render", lambda path: path / "report.html")


def small(folder, *words):
    return load("quickstart", [*SMALL, *SHORT, f"logging.results_dir={folder}", *words])


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(remedy, "choose", lambda *args, **options: APART)


@pytest.fixture
def alike(monkeypatch):
    monkeypatch.setattr(remedy, "choose", lambda *args, **options: ALIKE)


def alarm(detector: str, round: int = 1) -> Finding:
    return Finding(detector, round, "alarm", "it is so", 2.0, 1.0, 0, advice=("look",))


@pytest.mark.slow
def test_central_training_has_all_rows_and_as_many_steps():
    p = prepare(small("unused").experiment)
    *_, (_, last) = records = list(rounds(p.federation, begin(p.federation)))
    fed = central(p.federation, [r for _, r in records])
    assert fed.task.examples(0) == sum(len(b) for b in p.split.train)
    assert fed.task.tokens(0) == sum(b.num_tokens for b in p.split.train)
    assert fed.work.steps == 4  # two clients of three a round, two steps each
    *_, (_, only) = rounds(fed, begin(fed))
    assert [(c.client, c.steps) for c in only.clients] == [(0, 4)]
    assert set(only.scores) == set(last.scores)


def test_the_rows_of_central_training_are_those_of_the_clients_in_order():
    p = prepare(small("unused").experiment)
    task, sizes = p.federation.task, [len(b) for b in p.split.train]
    x = p.model.init(0).flat[None]
    from fedfault.types.task import Step

    own = task.grad(x, Step(torch.tensor([1]), torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool)))
    rows = Step(torch.tensor([0]), torch.tensor([[sizes[0] + 2]]), torch.ones(1, 1, dtype=torch.bool))
    pooled = Pooled(task).grad(x, rows)
    assert all(torch.equal(a, b) for a, b in zip(own, pooled, strict=True))


@pytest.mark.parametrize("cause", ["client_drift", "negative_transfer", "fairness_gap"])
def test_alarms_about_differences_are_answered_with_clusters(apart, cause):
    settings, _ = split_up(prepare(small("unused").experiment), ["divergence", cause])
    assert settings == [
        "federation.algorithm=clustered",
        "federation.algorithm.clusters=[0, 1, 0]",
        "federation.algorithm.shrinkage=0.0",
    ]


def test_other_alarms_and_clients_that_are_alike_are_not(alike):
    p = prepare(small("unused").experiment)
    assert split_up(p, ["divergence"]) == (
        [],
        "clusters are an answer to client_drift, fairness_gap, negative_transfer only",
    )
    settings, why = split_up(p, ["client_drift"])
    assert not settings
    assert why.startswith("no clusters")


def test_clients_are_split_up_once(apart):
    p = prepare(small("unused", "federation.algorithm=clustered").experiment)
    assert split_up(p, ["client_drift"]) == ([], "its clients are in clusters already")


@pytest.mark.slow
def test_a_run_finds_the_clusters_that_it_is_not_given_and_remembers_them(tmp_path, apart, monkeypatch):
    folder = start(tmp_path, "federation.algorithm=clustered", "federation.algorithm.shrinkage=0.5", *SHORT)
    manifest = folder.read_json("manifest.json")
    assert manifest["found"] == ["federation.algorithm.clusters=[0, 1, 0]"]
    given = start(tmp_path, "federation.algorithm.clusters=[0, 1, 0]", "federation.algorithm=clustered",
                  "federation.algorithm.shrinkage=0.5", *SHORT, "experiment_name=given")  # fmt: skip
    assert "found" not in given.read_json("manifest.json")
    adapter = load_file(folder.path / "adapter/cluster_1/adapter_model.safetensors")
    assert all(
        torch.equal(adapter[k], v)
        for k, v in load_file(given.path / "adapter/cluster_1/adapter_model.safetensors").items()
    )
    monkeypatch.setattr(remedy, "choose", lambda *args, **options: pytest.fail("looked again"))
    shutil.rmtree(folder.path / "adapter")
    resume(folder.path, QUIET)
    assert load_file(folder.path / "adapter/cluster_1/adapter_model.safetensors").keys() == adapter.keys()
    forked = fork(folder.path, 1, [], QUIET)
    assert load(forked.path / "config.yaml").experiment.federation.algorithm.options["clusters"] == [0, 1, 0]


def test_an_aggregation_that_cannot_work_in_clusters_is_refused_before_the_run():
    with pytest.raises(UserError, match=r"federation\.algorithm=clustered cannot be combined with"):
        prepare(small("unused", "federation.on_failure=cluster", "federation.aggregation=flora").experiment)


@pytest.mark.slow
def test_a_run_goes_on_in_clusters_from_its_best_round_and_resumes_so(tmp_path, apart, monkeypatch):
    """The alarm is raised by hand after round 1 of three."""
    seen = []
    monkeypatch.setattr("fedfault.diagnosis.watch.Watch.find_new", lambda self, records: _once(seen, records))
    folder = start(tmp_path, "federation.on_failure=cluster", "evaluation.general=none")
    entry = folder.read_json("manifest.json")["abandoned"][0]
    assert entry["by"] == ["client_drift"]
    assert entry["settings"][1] == "federation.algorithm.clusters=[0, 1, 0]"
    records = folder.records()
    assert [r.round for r in records] == [0, 1, 2, 3]
    assert any("federation.algorithm=clustered" in e for r in records for e in r.events)
    assert "personal" in records[-1].scores
    p = prepare(load(folder.path / "config.yaml", rollback.settings(folder.read_json("manifest.json"))).experiment)
    state, _ = folder.load(p.federation.task.layout, "cpu")
    assert set(state.memory) == {"cluster_0", "cluster_1"}
    assert not torch.equal(state.memory["cluster_0"].flat, state.memory["cluster_1"].flat)


def _once(seen: list, records) -> list[Finding]:
    if records[-1].round != 1 or seen:
        return []
    seen.append(1)
    return [alarm("client_drift")]


def test_a_run_whose_clients_are_alike_goes_on(tmp_path, alike):
    said: list[str] = []
    p = prepare(small(tmp_path, "federation.on_failure=cluster").experiment)
    progress = Progress(quiet=True)
    progress.say = said.append
    folder = RunFolder.create(tmp_path / "run")
    folder.save(begin(p.federation))
    for _, record in zip(range(2), rounds(p.federation, begin(p.federation)), strict=False):
        folder.append(record[1])
    assert rollback.roll_back(folder, p, [alarm("client_drift")], {}, progress) is None
    assert said == [f"no way back from this alarm: {ALIKE.sentence}; the run goes on"]


@pytest.mark.slow
def test_everything_is_compared_and_a_second_call_trains_nothing(tmp_path, apart, monkeypatch):
    page = mitigate(small(tmp_path), QUIET, argv=["mitigate"])
    root = tmp_path / "quickstart-mitigation"
    found = json.loads((root / "comparison.json").read_text())
    assert set(found["arms"]) == set(TITLES)
    steps = {name: arm["steps"] for name, arm in found["arms"].items()}
    assert set(steps.values()) == {8.0}  # two rounds, two clients, two steps
    assert all(title in page.read_text() for title in TITLES.values())
    vanilla = RunFolder.open(root / "seed-0" / "vanilla").records()
    mine = RunFolder.open(root / "seed-0" / "clusters").records()
    assert [[c.client for c in r.clients] for r in mine] == [[c.client for c in r.clients] for r in vanilla]
    adapters = [load_file(root / f"seed-0/clusters/adapter/cluster_{j}/adapter_model.safetensors") for j in (0, 1)]
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    before = page.read_text()
    monkeypatch.setattr("fedfault.mitigation.arms.start", lambda *args, **options: pytest.fail("trained again"))
    monkeypatch.setattr("fedfault.mitigation.arms.rounds", lambda *args: pytest.fail("trained again"))
    assert mitigate(small(tmp_path), QUIET, argv=["mitigate"]).read_text() == before


@pytest.mark.slow
def test_one_cluster_is_the_vanilla_run_itself(tmp_path, alike):
    found = json.loads((mitigate(small(tmp_path), QUIET).parent / "comparison.json").read_text())
    assert found["losses"]["clusters"] == found["losses"]["vanilla"]
    assert found["differences"]["vanilla"]["mean"] == 0
    assert not (tmp_path / "quickstart-mitigation" / "seed-0" / "clusters").exists()


@pytest.mark.slow
def test_a_finished_run_stands_for_the_vanilla_one(tmp_path, apart):
    run = start(tmp_path, *SHORT)
    loaded, known = read(str(run.path), [])
    mitigate(loaded, QUIET, known=known)
    root = tmp_path / "quickstart-mitigation"
    assert not (root / "seed-0" / "vanilla").exists()
    found = json.loads((root / "comparison.json").read_text())
    last = run.records()[-1].scores
    assert found["losses"]["vanilla"]["0"]["0"] == last["client/0"].loss


def test_results_of_another_configuration_are_left_alone(tmp_path):
    root = tmp_path / "quickstart-mitigation"
    (root / "seed-0").mkdir(parents=True)
    (root / "config.yaml").write_text("training:\n  lr: 0.5\n")
    with pytest.raises(UserError, match=r"holds runs of another configuration \(.*training.lr.*\); give another"):
        mitigate(small(tmp_path), QUIET)


def test_an_aggregation_that_cannot_work_in_clusters_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match=r"cannot be combined with federation\.aggregation=flora"):
        mitigate(small(tmp_path, "federation.aggregation=flora"), QUIET)
    assert not list((tmp_path / "quickstart-mitigation").glob("seed-*"))
