"""A small task of three clients with unequal data, and the terms that algorithms add to its steps."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.registry import build
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import PLAIN, ExtraTerms
from tiny import VOCAB, tiny_llama

T = 8
EXTRA = ("plain", "fedprox", "scaffold", "scaffold after the step", "moon")


def make_task(make=tiny_llama, device: str = "cpu", dropout: float = 0.1) -> LanguageTask:
    with torch.device(device):
        model = make()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=dropout)
    g = torch.Generator().manual_seed(0)
    # Clients with 3, 2 and 2 steps, short blocks, short batches
    sizes = ((5, [8, 8, 8, 8, 3]), (3, [8, 8, 1]), (4, [8] * 4))
    clients = [Blocks(torch.randint(VOCAB, (n, T + 1), generator=g), torch.tensor(own)) for n, own in sizes]
    return LanguageTask(opened, clients, {}, {})


def extra_terms(task: LanguageTask) -> dict[str, ExtraTerms]:
    """What FedProx, SCAFFOLD in both ways and MOON add."""
    c = torch.ones(3, task.layout.size, device=task.model.device)
    moon = build("algorithm", "moon")
    seen: list[ExtraTerms] = []

    class Spy:
        def __call__(self, start, extra=PLAIN, **_):
            seen.append(extra)
            raise StopIteration

    x = Adapter(task.layout, c[0] * 0.1)
    with pytest.raises(StopIteration):
        moon.client({"x": x}, {name: Adapter(task.layout, c.clone()) for name in moon.init_client(x)}, Spy())
    return {
        "plain": PLAIN,
        "fedprox": ExtraTerms(gradient=lambda y, x, rows: 0.1 * (y - x)),
        "scaffold": ExtraTerms(gradient=lambda y, x, rows: c[rows]),
        "scaffold after the step": ExtraTerms(step=lambda y, x, rows: c[rows]),
        "moon": seen[0],
    }
