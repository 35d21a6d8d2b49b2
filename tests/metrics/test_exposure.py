"""What models remember word by word: known secrets are exposed, those that nobody has are not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedfault.metrics.exposure import exposure
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.task import SecretLosses

LAYOUT = Layout.of([Site("x", "full", (1,))])


class Remembering:
    """A model x lowers the loss of client k's secret by x; all others lose what chance says."""

    def __init__(self) -> None:
        g = np.random.default_rng(0)
        self.planted, self.decoys, self.others = g.normal(9, 1, 3), g.normal(9, 1, 3), g.normal(9, 1, 255)
        self.folds: list[str] = []

    def secret_losses(self, models, clients):
        return [
            SecretLosses(self.planted[own] - float(x), self.decoys[own], self.others)
            for x, own in zip(models, clients, strict=True)
        ]

    def fold(self, base):
        self.folds.append(base)


def measure(task, after, uploads, base=""):
    trained = SimpleNamespace(adapter=Adapter(LAYOUT, torch.tensor(uploads)[:, None]))
    state = SimpleNamespace(adapter=Adapter(LAYOUT, torch.tensor([after])), base=base)
    before = SimpleNamespace(base=base and "before")
    return exposure().measure(SimpleNamespace(task=task, clients=[0, 2], after=state, before=before, trained=trained))


def test_a_secret_that_a_model_knows_is_exposed_and_the_null_beside_it_is_not():
    found = measure(Remembering(), 9.0, [0.0, 9.0])
    assert found.probes["exposure"] == 8
    assert found.probes["exposure_null"] < 4
    assert found.clients["exposure"][0] < 4
    assert found.clients["exposure"][1] == 8


def test_uploads_are_looked_at_with_the_frozen_weights_that_they_were_trained_on():
    task = Remembering()
    measure(task, 0.0, [0.0, 0.0], base="after")
    assert task.folds == ["before", "after"]


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_of_losses_that_are_no_numbers_nothing_is_said(lost):
    assert "exposure" not in measure(Remembering(), -lost, [0.0, 0.0]).probes


def test_without_secrets_there_is_nothing():
    found = measure(SimpleNamespace(secret_losses=lambda models, clients: None), 0.0, [0.0, 0.0])
    assert (found.probes, found.clients) == ({}, {})
