"""Sites with data of their own, in this process: what they learn, and what of it is the server's to say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

import torch
import yaml

from fedfault import registry
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.flower.client import app
from fedfault.flower.local import LocalGrid
from fedfault.flower.payload import Refused
from fedfault.flower.server import serve
from fedfault.flower.site import _read_at_site, prepare_site
from fedfault.rounds.engine import begin, rounds
from fedfault.session.progress import Progress
from fedfault.setup.federation import build_federation
from fedfault.tasks.classification import ClassificationTask

TEXTS = {
    "animal": "the cat sat on mat {i} and the dog ate a rat",
    "number": "we add {i} to the sum and return one",
    "sea": "the ship of {i} men is small and the sea is wide",
}


def write(folder, topics, n):
    """A folder of texts, a sub-folder for each topic, and the configuration of its site."""
    for topic in topics:
        (folder / "data" / topic).mkdir(parents=True)
        for i in range(n):
            (folder / "data" / topic / f"{i}.txt").write_text(TEXTS[topic].format(i=i))
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"data": {"dataset": "text", "path": str(folder / "data"), "held_out": 0.2}}))
    return file


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("aggregation", ["fedit", "coordinate_median"])
def test_sites_that_have_some_of_the_classes_learn_to_tell_them_all_apart(aggregation, tmp_path, monkeypatch):
    """To the numbers of one process with the same three clients: a class has the same number everywhere."""
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    files = [
        write(tmp_path / f"site{k}", topics, 8 + k) for k, topics in enumerate([["sea"], ["number", "sea"], ["animal"]])
    ]
    server = write(tmp_path / "server", sorted(TEXTS), 8)
    loaded = load(
        server,
        [
            "experiment_name=run", "federation.total_clients=3", "federation.num_rounds=2", "data.task_type=classification",
            "training.local_steps=3", "training.batch_size=4", "model.max_length=32", "model.precision=fp32",
            "federation.participation_rate=1.0", "evaluation.general=none", f"federation.aggregation={aggregation}",
            f"logging.results_dir={tmp_path}",
        ],
    )  # fmt: skip
    grid = LocalGrid(app, [{"partition-id": k, "site": str(file)} for k, file in enumerate(files)])
    folder = serve(grid, loaded, Progress(quiet=True))

    exp = loaded.experiment
    told = exp.model_copy(update={"data": exp.data.model_copy(update={"label_names": sorted(TEXTS)})})
    sites = [prepare_site(told, load(file).experiment) for file in files]
    assert [sorted(set(p.split.train[0].labels.tolist())) for p in sites] == [[2], [1, 2], [0]]
    model = sites[0].model
    task = ClassificationTask(model, [p.split.train[0] for p in sites], sites[0].federation.task.sets, seed=exp.seed)
    fed = replace(build_federation(exp, task), probes={})
    *_, (here, _) = rounds(fed, begin(fed))
    there, _ = folder.load(task.layout, "cpu")
    assert (here.adapter.flat - task.init(exp.seed).flat).norm() > 0
    torch.testing.assert_close(there.adapter.flat, here.adapter.flat, rtol=1e-5, atol=3e-6)  # padded to other lengths
    assert folder.read_json("manifest.json")["data_elsewhere"] is True
    assert "accuracy" in folder.read_records()[-1].scores["validation"].metrics


def test_a_site_has_to_name_the_plug_ins_of_the_server_itself(tmp_path):
    """No code comes over the network: the same file at both ends, or a sentence."""
    source = (Path(__file__).parents[1] / "newcomers" / "sign_step.py").read_text()
    for place, text in (("server", source), ("same", source), ("other", source + "\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "sign_step.py").write_text(text)
        (tmp_path / place / "site.yaml").write_text("plugins: [sign_step.py]\n")
    (tmp_path / "none.yaml").write_text("seed: 1\n")
    with registry.keep_plugins():
        sent = load(tmp_path / "server" / "site.yaml", ["federation.algorithm=sign_step"]).experiment
        text = sent.model_dump_json()
        assert _read_at_site(text, str(tmp_path / "same" / "site.yaml")) == sent
        assert "sign_step" in registry.load_builders("algorithm")
        for file, why in (("other/site.yaml", r"has the hash \w+"), ("none.yaml", "it names none like it")):
            with pytest.raises(Refused, match=rf"uses the plug-in sign_step\.py with the hash \w+, and .*: .*{why}"):
                _read_at_site(text, str(tmp_path / file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["federation.aggregation=coordinate_median"],
        ["federation.aggregation={name: fltrust, trusted: 2}"],
        ["federation.selection=power_of_choice", "federation.clients_per_round=5"],
    ],
)
def test_a_site_is_not_asked_for_the_clients_that_the_server_has(settings, tmp_path):
    site = load(write(tmp_path / "site", ["sea", "number"], 8)).experiment
    server = load(None, ["model.name=micro", "federation.total_clients=10", "data.dataset=synthetic", *settings])
    assert prepare_site(server.experiment, site).task.examples(0) > 0
    few = load(None, ["model.name=micro", "federation.aggregation=krum", "federation.clients_per_round=2"]).experiment
    with pytest.raises(UserError, match=r"krum needs at least 5 clients a round .* and a round has 2"):
        prepare_site(few, site)
