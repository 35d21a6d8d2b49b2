"""Whole runs on a device that is not the CPU: see `elsewhere.py`. With float64 it is like CUDA, without like a Mac's."""

from __future__ import annotations

import math

import pytest
import torch

from elsewhere import DEVICE, elsewhere
from fedfault.registry import read_declarations
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run
from small import start

QUIET = Progress(quiet=True)
SIZE = [
    "federation.total_clients=6", "federation.participation_rate=1.0", "federation.num_rounds=2",
    "evaluation.max_blocks=1", "evaluation.general_blocks=1", "federation.weighting=uniform",
]  # fmt: skip
RANKS = "federation.scheduler={name: fixed, ranks: [2, 4, 8, 2, 4, 8]}"
LABELS = ["data.task_type=classification", "data.dataset=bbc_news"]
CASES = [
    *([f"federation.algorithm={name}"] for name in sorted(read_declarations("algorithm"))),
    *([f"federation.aggregation={name}"] for name in sorted(read_declarations("aggregation")) if name != "fedper"),
    *([f"federation.aggregation={{name: {name}, space: products}}"] for name in ("coordinate_median", "krum")),
    [*LABELS, "federation.aggregation=fedper"],
    [*LABELS, "personalise={steps: 2}"],
    [RANKS, "federation.aggregation=flexlora"],
    [RANKS, "federation.algorithm=scaffold"],
    ["federation.asynchronous=fedbuff"],
    ["federation.clients_per_round=3", "federation.participation_rate=null", "federation.selection=power_of_choice"],
    ["privacy.unit=client", "privacy.epsilon=8", "privacy.delta=0.01"],
    ["privacy.unit=example", "privacy.epsilon=8", "privacy.delta=1e-4"],
    ["attacks=[{name: alie, by: 2}]"],
    ["data.dataset=skills", "data.task_type=instruction", "model.max_length=64"],
    ["metrics.gradients=true", "metrics.representation=true", "metrics.attention=true", "metrics.contributions=true"],
    ["model.lora.init=pissa"],
    ["training.lr_ratio=4", "training.gradient_accumulation=2", "training.optimizer=sgd"],
]


@pytest.mark.long
@pytest.mark.parametrize("doubles", [True, False], ids=["float64", "no float64"])
@pytest.mark.parametrize("settings", CASES, ids=" ".join)
def test_a_run_that_is_stopped_goes_on_from_its_checkpoint_on_another_device(tmp_path, monkeypatch, settings, doubles):
    def stop(self, record):
        if record.round == 1:
            raise KeyboardInterrupt

    with elsewhere(monkeypatch, doubles):
        with monkeypatch.context() as until:
            until.setattr(Progress, "show_round", stop)
            with pytest.raises(KeyboardInterrupt):
                start(tmp_path, *SIZE, *settings)
        folder = resume_run(tmp_path / "quickstart", QUIET)
    last = folder.read_records()[-1]
    assert last.round == 2
    assert all(math.isfinite(score.loss) for score in last.scores.values())


@pytest.mark.slow
def test_a_run_on_another_device_gets_the_same_numbers_to_rounding(tmp_path, monkeypatch):
    here = start(tmp_path / "here").read_records()
    with elsewhere(monkeypatch):
        there = start(tmp_path / "there").read_records()
    for one, other in zip(here, there, strict=True):
        assert other.scores["validation"].loss == pytest.approx(one.scores["validation"].loss, rel=1e-5)
        assert [c.loss for c in other.clients] == pytest.approx([c.loss for c in one.clients], rel=1e-5)


def test_the_device_refuses_what_others_refuse(monkeypatch):
    with elsewhere(monkeypatch, doubles=False):
        x = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(TypeError, match="no float64"):
            x.double()
        assert x[torch.tensor([0, 1])].cpu().tolist() == [1, 1]  # places may lie on the CPU
        assert (x + 1).sum().item() == 6
