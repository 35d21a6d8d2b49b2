"""What aggregations add to the frozen weights of an nn.Linear (v_proj, 24 -> 12) and of a Conv1D (c_attn, 24 -> 72)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.registry import build
from fedfault.rounds.exchange import add_fold
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State, Uploads
from tiny import VOCAB

WEIGHT = torch.tensor([3.0, 1.0, 2.0])


def opened(model) -> CohortModel:
    return CohortModel(model, lora_targets(model, None), r=4, alpha=10.0)


def clients(layout) -> Adapter:
    return Adapter(layout, 0.3 * torch.randn(3, layout.size, generator=torch.Generator().manual_seed(2)))


def served(c: CohortModel, name: str, state: State | None = None) -> State:
    """The server after a round, or one more, of three clients that are anywhere."""
    state = state or State(c.init(0))
    got = Uploads(state.adapter, clients(c.layout), WEIGHT, torch.tensor([4, 4, 4]), round=state.round + 1, seed=0)
    pooled = build("aggregation", name).combine(got)
    return replace(add_fold(state, pooled.fold), adapter=pooled.adapter, round=state.round + 1)


def merged(model, layout):
    """The same model with the exact mean of the clients' products written into its weights by hand."""
    mean = {s.name: torch.einsum("k,kij->ij", WEIGHT / 6, clients(layout).delta(s)) for s in layout.lora}
    with torch.no_grad():
        for name, change in mean.items():
            layer = model.get_submodule(name)
            layer.weight += change if isinstance(layer, torch.nn.Linear) else change.T
    return model


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_the_model_is_the_exact_mean_of_the_clients(tiny, name):
    """I-E1, I-FL1: a residual that is transposed on one kind of layer shows where d_in != d_out, and in every loss."""
    c = opened(tiny())
    state = served(c, name)
    c.fold(state.base)
    ids = torch.randint(VOCAB, (1, 2, 8), generator=torch.Generator().manual_seed(1))
    _, each = c.losses(state.adapter.flat[None], ids, torch.ones(1, 2, 7))
    plain = opened(merged(tiny(), c.layout))
    _, expected = plain.losses(torch.zeros(1, c.layout.size), ids, torch.ones(1, 2, 7))
    torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-5)
    _, before = opened(tiny()).losses(torch.zeros(1, c.layout.size), ids, torch.ones(1, 2, 7))
    assert (before - expected).abs().max() > 0.01


def test_folds_start_from_the_original_weights_and_can_be_taken_back(tiny):
    """Weights that are changed in place drift by rounding, and a resumed run would not find them again."""
    c = opened(tiny())
    original, one = c.checksums(), served(c, "flora")
    two = served(c, "flora", one)
    torch.testing.assert_close(two.base, {name: 2 * change for name, change in one.base.items()})
    seen = []
    for base in (one.base, two.base, one.base, {}):
        c.fold(base)
        seen.append(c.checksums())
    assert seen[0] == seen[2] != seen[1]
    assert seen[3] == original != seen[0]
