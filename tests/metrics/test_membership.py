"""What models give away of texts: a memorised one is found, hard ones are not taken for others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedfault.metrics.membership import membership
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.task import TextLosses

LAYOUT = Layout.of([Site("x", "full", (1,))])


class Texts:
    """Texts of unequal difficulty; a model x lowers the loss of those that were trained on by x."""

    def __init__(self, kept: int = 60) -> None:
        g = np.random.default_rng(0)
        self.hard = [(g.normal(4, 1, 40), g.normal(4, 1, kept)) for _ in range(2)]
        self.folds: list[str] = []

    def text_losses(self, models, clients, most):
        x = [0.0] * len(clients) if models is None else [float(flat) for flat in models]
        return [TextLosses(self.hard[k][0] - x[i], self.hard[k][1]) for i, k in enumerate(clients)]

    def fold(self, base):
        self.folds.append(base)


def measure(task, after, uploads, base=""):
    adapter = Adapter(LAYOUT, torch.tensor([after]))
    state = SimpleNamespace(adapter=adapter, base=base)
    trained = SimpleNamespace(adapter=Adapter(LAYOUT, torch.tensor(uploads)[:, None]))
    m = SimpleNamespace(
        task=task, clients=[0, 1], after=state, before=SimpleNamespace(base=base and "before"), trained=trained
    )
    m.seed, m.round = 0, 1
    return membership().measure(m)


def test_the_reference_attack_finds_what_was_memorised_beneath_the_difficulty_of_texts():
    found = measure(Texts(), 0.5, [0.0, 2.0])
    assert found.probes["membership_reference"] == found.probes["membership_recall"] == 1.0
    assert 0.5 < found.probes["membership_loss"] < 0.8  # half a standard deviation
    assert found.probes["membership_base"] == pytest.approx(0.5, abs=0.15)
    assert found.probes["membership_null"] == 0.5
    assert found.clients["membership_reference"] == [0.5, 1.0]
    assert found.clients["membership_recall"] == [0.0, 1.0]


def test_uploads_are_scored_with_the_frozen_weights_that_they_were_trained_on():
    task = Texts()
    measure(task, 0.5, [0.0, 2.0], base="after")
    assert task.folds == ["before", "after"]


def test_without_texts_that_are_kept_back_there_is_nothing():
    assert not measure(Texts(kept=0), 0.5, [0.0, 2.0]).probes
