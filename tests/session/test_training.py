"""What a run keeps in memory, and what it leaves to its clients: models of their own, under the names of the data."""

from __future__ import annotations

import csv
import gc
import json
import re
from pathlib import Path

import pandas
import pytest
import torch

from fedfault.config import load
from fedfault.records import ClientRecord
from fedfault.runs.clients import COLUMNS
from fedfault.runs.folder import RunFolder
from fedfault.runs.read import read_run
from fedfault.session.progress import Progress
from fedfault.session.training import LOST
from fedfault.setup.experiment import prepare
from fedfault.text.packing import pack_blocks
from small import start

GROUPS = {"Sales": "offers prices customers", "R&D / Ops": "bolts nuts motors", "Legal": "clauses courts statutes"}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Texts of three groups with nothing in common, of two topics."""
    file = tmp_path_factory.mktemp("texts") / "texts.csv"
    with file.open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["text", "department", "topic"])
        for i in range(60):
            name, words = list(GROUPS.items())[i % 3]
            rows.writerow([f"number {i} is of {words} and {i + 7} too", name, f"topic {i % 2}"])
    return file


def run(table: Path, results: Path, *changes: str) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        return start(
            results,
            "data.dataset=text", f"data.path={table}", "data.group_column=department", "data.topic_column=topic",
            "data.partition=natural", "evaluation.general=none", "experiment_name=departments", "device=cpu",
            *changes,
        )  # fmt: skip


@pytest.fixture(scope="module")
def departments(table, tmp_path_factory) -> RunFolder:
    """A run in which every client keeps a factor to itself."""
    return run(table, tmp_path_factory.mktemp("results"), "federation.aggregation=fedsa_lora")


def code_of(card: Path) -> str:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[0]


@pytest.mark.slow
def test_every_client_has_a_folder_with_its_own_model_and_the_score_of_it(departments):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    p = prepare(load(departments.path / "config.yaml").experiment)
    last, places = departments.read_records()[-1], departments.path / "adapter/clients"
    assert sorted(f.name for f in places.iterdir()) == ["Legal", "R_D_Ops", "Sales"]
    for k, name in enumerate(p.split.deal.names):
        place = places / name.replace("&", "_").replace(" / ", "_")
        base = AutoModelForCausalLM.from_pretrained(p.backbone.source, dtype=torch.float32)
        blocks, model = p.split.held_out[k], PeftModel.from_pretrained(base, place)
        with torch.no_grad():
            logits = model(input_ids=blocks.ids[:, :-1]).logits
        each = torch.nn.functional.cross_entropy(logits.mT, blocks.ids[:, 1:], reduction="none")
        nll = float((each * blocks.mask).sum() / blocks.mask.sum())
        assert nll == pytest.approx(last.scores[f"client/{k}"].loss, rel=1e-5)
        assert f"client {k} ({name})" in (place / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["adapter", "adapter/clients/Legal"])
def test_the_code_on_a_language_model_s_card_gives_the_run_s_own_loss(departments, monkeypatch, capsys, place):
    monkeypatch.chdir(departments.path)
    names: dict = {}
    exec(compile(code_of(Path(place) / "README.md"), "README.md", "exec"), names)
    p = prepare(load("config.yaml").experiment)
    state, _ = departments.load(p.federation.task.layout, "cpu")
    flat = state.adapter.flat
    if place != "adapter":
        private = p.federation.aggregation.private(p.federation.task.layout)
        flat = torch.where(private, state.clients["own"].flat[p.split.deal.names.index("Legal")], flat)
    blocks = pack_blocks([p.backbone.tokenizer([names["text"]])["input_ids"][0]], 64, p.backbone.separator)
    _, each = p.model.losses(flat[None], blocks.ids[None], blocks.mask[None].float())
    assert names["loss"] == pytest.approx(float(each[0][blocks.mask].mean()), rel=1e-4)
    assert re.match(r"\d+\.\d{3} nats per token: The first thing", capsys.readouterr().out)


def test_clients_carry_the_names_of_their_groups(departments):
    names = json.loads((departments.path / "split.json").read_text())["names"]
    assert sorted(names) == sorted(GROUPS)
    rows = pandas.read_parquet(departments.path / "clients.parquet")
    assert list(rows.name) == [names[k] for k in rows.client]
    own = [name for name in rows.columns if not name.startswith("probe_")]
    assert own == [name for name in COLUMNS if name in own]
    assert rows.held_out_loss.notna().all()
    seen = read_run(departments.path)
    assert [seen.label_client(k) for k in range(3)] == [f"{k} ({name})" for k, name in enumerate(names)]


@pytest.mark.slow
def test_clients_of_clusters_have_the_model_of_their_cluster(table, tmp_path):
    folder = run(table, tmp_path, "federation.algorithm=ifca", "federation.num_rounds=1")
    servers = [(folder.path / f"adapter/cluster_{i}/adapter_model.safetensors").read_bytes() for i in range(2)]
    own = [f.read_bytes() for f in (folder.path / "adapter/clients").glob("*/adapter_model.safetensors")]
    assert len(own) == 3
    assert set(own) <= set(servers)


@pytest.mark.slow
def test_a_run_with_one_model_for_all_has_no_folders_of_clients(table, tmp_path):
    folder = run(table, tmp_path, "data.partition=iid", "federation.num_rounds=1")
    assert not (folder.path / "adapter/clients").exists()
    assert "names" not in json.loads((folder.path / "split.json").read_text())


@pytest.mark.slow
@pytest.mark.long
def test_clients_of_old_rounds_are_kept_on_disk_alone(tmp_path, monkeypatch):
    """Two clients a round: in memory are those of the last rounds, however many rounds there were."""

    def count() -> int:
        return sum(type(one) is ClientRecord for one in gc.get_objects())

    before, seen = count(), []
    monkeypatch.setattr(Progress, "show_round", lambda self, record: seen.append(count() - before))
    folder = start(tmp_path, "federation.num_rounds=6", "evaluation.general=none", draw=False)
    assert max(seen) <= 2 * (LOST + 1)
    assert [len(r.clients) for r in folder.read_records()] == [0, *[2] * 6]
