"""Clusters that a run finds by itself: before its first round, and as the answer to an alarm."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fedfault.clustering import remedy
from fedfault.clustering.clusters import Clusters
from fedfault.clustering.remedy import answer_with_clusters, describe_clusters, fill_in_clusters
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.records import Finding
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.folder import RunFolder
from fedfault.session import rollback
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.settings import find_own_settings
from fedfault.session.start import resume_run
from fedfault.setup.experiment import prepare
from small import SMALL, start

pytestmark = pytest.mark.usefixtures("without_report")

QUIET = Progress(quiet=True)
APART = Clusters((0, 1, 0), {2: 0.9}, 0.5, 0.025, 0.025)
ALIKE = Clusters((0, 0, 0), {2: 0.1}, 0.5, 0.8, 0.8)
SHORT = ["federation.num_rounds=2", "evaluation.general=none"]


def small(folder, *words):
    return load("quickstart", [*SMALL, *SHORT, f"logging.results_dir={folder}", *words])


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(remedy, "choose_clusters", lambda *args, **options: APART)


@pytest.fixture
def alike(monkeypatch):
    monkeypatch.setattr(remedy, "choose_clusters", lambda *args, **options: ALIKE)


def alarm(detector: str, round: int = 1) -> Finding:
    return Finding(detector, round, "alarm", "it is so", 2.0, 1.0, 0, advice=("look",))


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["client_drift", "negative_transfer", "fairness_gap"])
def test_alarms_about_differences_are_answered_with_clusters(apart, cause):
    settings, _ = answer_with_clusters(prepare(small("unused").experiment), ["divergence", cause])
    assert settings == [
        "federation.algorithm=clustered",
        "federation.algorithm.clusters=[0, 1, 0]",
        "federation.algorithm.shrinkage=0.0",
    ]


@pytest.mark.slow
def test_other_alarms_and_clients_that_are_alike_are_not(alike):
    p = prepare(small("unused").experiment)
    assert answer_with_clusters(p, ["divergence"]) == (
        [],
        "clusters are an answer to client_drift, fairness_gap, negative_transfer only",
    )
    settings, why = answer_with_clusters(p, ["client_drift"])
    assert not settings
    assert why.startswith("no clusters")


@pytest.mark.slow
def test_clients_are_split_up_once(apart):
    p = prepare(small("unused", "federation.algorithm=clustered").experiment)
    assert answer_with_clusters(p, ["client_drift"]) == ([], "its clients are in clusters already")


@pytest.mark.slow
@pytest.mark.long
def test_a_run_finds_the_clusters_that_it_is_not_given_and_remembers_them(tmp_path, apart, monkeypatch):
    folder = start(tmp_path, "federation.algorithm=clustered", "federation.algorithm.shrinkage=0.5", *SHORT)
    manifest = folder.read_json("manifest.json")
    assert manifest["found"] == ["federation.algorithm.clusters=[0, 1, 0]"]
    kept = json.loads((folder.path / "clusters.json").read_text())
    assert kept["sentence"] == APART.sentence
    assert -1 <= kept["agreement"] <= 1
    assert len(kept["topics"]) == 3
    given = start(tmp_path, "federation.algorithm.clusters=[0, 1, 0]", "federation.algorithm=clustered",
                  "federation.algorithm.shrinkage=0.5", *SHORT, "experiment_name=given")  # fmt: skip
    assert "found" not in given.read_json("manifest.json")
    adapter = load_file(folder.path / "adapter/cluster_1/adapter_model.safetensors")
    assert all(
        torch.equal(adapter[k], v)
        for k, v in load_file(given.path / "adapter/cluster_1/adapter_model.safetensors").items()
    )
    monkeypatch.setattr(remedy, "choose_clusters", lambda *args, **options: pytest.fail("looked again"))
    shutil.rmtree(folder.path / "adapter")
    resume_run(folder.path, QUIET)
    assert load_file(folder.path / "adapter/cluster_1/adapter_model.safetensors").keys() == adapter.keys()
    forked = fork_run(folder.path, 1, [], QUIET)
    assert load(forked.path / "config.yaml").experiment.federation.algorithm.options["clusters"] == [0, 1, 0]


def test_an_aggregation_that_cannot_work_in_clusters_is_refused_before_the_run():
    with pytest.raises(UserError, match=r"federation\.algorithm=clustered cannot be combined with"):
        prepare(small("unused", "federation.on_failure=cluster", "federation.aggregation=flora").experiment)


@pytest.mark.long
def test_a_run_goes_on_in_clusters_from_its_best_round_and_resumes_so(tmp_path, apart, monkeypatch):
    """The alarm is raised by hand after round 1 of three."""
    seen = []
    monkeypatch.setattr("fedfault.diagnosis.detection.Detection.add", lambda self, record: _once(seen, record))
    folder = start(tmp_path, "federation.on_failure=cluster", "evaluation.general=none")
    entry = folder.read_json("manifest.json")["abandoned"][0]
    assert entry["by"] == ["client_drift"]
    assert entry["settings"][1] == "federation.algorithm.clusters=[0, 1, 0]"
    records = folder.read_records()
    assert [r.round for r in records] == [0, 1, 2, 3]
    assert any("federation.algorithm=clustered" in e for r in records for e in r.events)
    assert "personal" in records[-1].scores
    p = prepare(load(folder.path / "config.yaml", find_own_settings(folder.read_json("manifest.json"))).experiment)
    state, _ = folder.load(p.federation.task.layout, "cpu")
    assert set(state.memory) == {"cluster_0", "cluster_1"}
    assert not torch.equal(state.memory["cluster_0"].flat, state.memory["cluster_1"].flat)


def _once(seen: list, record) -> list[Finding]:
    if record.round != 1 or seen:
        return []
    seen.append(1)
    return [alarm("client_drift")]


@pytest.mark.slow
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
def test_the_encoder_that_is_named_embeds_the_texts(monkeypatch):
    asked = []
    monkeypatch.setattr(remedy, "find_clusters", lambda p, encoder: asked.append(encoder) or APART)
    p = prepare(small("unused", "federation.algorithm={name: clustered, encoder: minilm, shrinkage: 0.5}").experiment)
    q, found = fill_in_clusters(p, lambda line: None)
    assert (asked, found) == (["minilm"], APART)
    assert q.config.federation.algorithm.options == {"clusters": [0, 1, 0], "shrinkage": 0.5, "encoder": "minilm"}


@pytest.mark.slow
def test_clusters_that_are_the_topics_agree_with_them():
    p = prepare(small("unused", "data.partition=topic_isolation", "federation.total_clients=6").experiment)
    counts = p.split.counts.argmax(1).tolist()
    numbers = {topic: i for i, topic in enumerate(dict.fromkeys(counts))}
    found = describe_clusters(p, Clusters(tuple(numbers[t] for t in counts), {3: 0.9}, 0.5, 0.025, 0.025))
    assert found["agreement"] == 1.0
    assert found["topics"] == [p.split.topics[t] for t in counts]


@pytest.mark.slow
def test_all_data_in_one_place_are_not_clustered():
    centralised = small("unused", "federation.centralised=true").experiment
    p = prepare(centralised)
    assert answer_with_clusters(p, ["client_drift"]) == ([], "all data are in one place already")
    with pytest.raises(UserError, match=r"client 0 has all data; use fedavg"):
        prepare(small("unused", "federation.centralised=true", "federation.algorithm=clustered").experiment)
