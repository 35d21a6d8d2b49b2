"""The server's step on some of the updates of a round: the others' weights make up for those that are left out."""

from __future__ import annotations

import pytest
import torch

from fedfault.testing.toys import Quadratic, measure_round
from fedfault.types.task import Measurements, Probe

TASK = Quadratic([[1.0], [1.0], [1.0]], [[0.0], [4.0], [8.0]], [4, 12, 4])


def finish_round(*parts, **changes):
    """A round after one step of gradient descent from 3: clients send 2.7, 3.1 and 3.5, of weights 4, 12 and 4."""
    found = []
    probe = Probe(lambda m: found.append(m) or Measurements())
    measure_round(probe, TASK, *parts, **{"work": {"steps": 1, "batch_size": 12}, **changes})
    return found[0]


@pytest.mark.parametrize(
    ("taken", "model"),
    [
        ([True, True, True], (2.7 * 4 + 3.1 * 12 + 3.5 * 4) / 20),
        ([True, False, True], 3.1),
        ([True, True, False], 3.0),
        ([False, False, True], 3.5),
        ([False, False, False], 3.0),
    ],
)
def test_a_model_of_some_updates_is_their_mean(taken, model):
    m = finish_round()
    found = m.ablate(taken)
    assert found.served.adapter.flat.item() == pytest.approx(model)
    assert found.served.personal is None
    assert not found.base


def test_all_updates_make_the_model_of_the_round_to_the_bit_and_memories_stay():
    m = finish_round("fedavgm")
    assert torch.equal(m.ablate([True] * 3).served.adapter.flat, m.after.adapter.flat)
    assert m.ablate([False] * 3).served.adapter.flat.item() == 3.0  # no momentum without an update
    assert m.good == [True] * 3


def test_who_is_left_out_keeps_what_it_remembers():
    m = finish_round("scaffold")
    kept = m.after.clients["c"].flat.clone()
    m.ablate([False, True, True])
    assert torch.equal(m.after.clients["c"].flat, kept)
