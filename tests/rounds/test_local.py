"""The local work of clients: batches, effort, weights, how large passes are."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.rounds.local import LocalWork, Passes, cut_batches, plan_batches
from fedfault.seeds import rng


def test_an_epoch_uses_every_example_once_and_keeps_the_short_last_batch():
    batches = plan_batches(10, LocalWork(epochs=2, batch_size=4), rng(0, "x"))
    assert batches.shape == (6, 4)
    for epoch in (batches[:3], batches[3:]):
        assert sorted(epoch[epoch >= 0]) == list(range(10))
        assert (epoch >= 0).sum(1).tolist() == [4, 4, 2]
    assert (batches[:3] != batches[3:]).any()


def test_steps_go_on_into_further_epochs():
    batches = plan_batches(5, LocalWork(epochs=None, steps=4, batch_size=2), rng(0, "x"))
    assert (batches >= 0).sum(1).tolist() == [2, 2, 1, 2]


def test_a_batch_larger_than_the_data_is_the_whole_data():
    batches = plan_batches(3, LocalWork(epochs=2, batch_size=8), rng(0, "x"))
    assert [sorted(b[b >= 0]) for b in batches] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(10, 1, 10), (10, 0.5, 5), (10, 0.51, 6), (7, 1e-9, 1), (1, 0.2, 1), (100, 11 / 20, 55)],
)
def test_effort_leaves_the_first_batches_of_a_plan(steps, share, expected):
    """11 / 20 * 100 is 55.00000000000001 in floating point."""
    batches = plan_batches(4 * steps, LocalWork(batch_size=4), rng(0, "x"))
    assert np.array_equal(cut_batches(batches, share), batches[:expected])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_effort_is_a_share(share):
    with pytest.raises(UserError, match=r"above 0 and at most 1.*left out of the cohort"):
        cut_batches(plan_batches(8, LocalWork(), rng(0, "x")), share)


def test_passes_are_about_equally_large():
    assert [Passes(3).next(left) for left in (5, 2, 7, 3, 1)] == [3, 2, 3, 3, 1]
    assert Passes(4).next(5) == 3
