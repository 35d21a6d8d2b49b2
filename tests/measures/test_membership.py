"""Areas and recalls of membership by hand, and by chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedfault.measures.membership import find_area, find_recall


def test_the_area_is_scikit_learn_s_also_with_ties():
    g = np.random.default_rng(0)
    members, others = g.integers(0, 9, 40).astype(float), g.integers(0, 7, 70).astype(float)
    truth = np.repeat([1, 0], [40, 70])
    assert find_area(members, others) == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))


@pytest.mark.parametrize(("others", "recall"), [(99, 0.0), (100, 0.5), (200, 1.0)])
def test_recall_lets_one_of_a_hundred_others_through(others, recall):
    """The others are 0, and the two members lie below and above the others that are large."""
    values = np.zeros(others)
    values[:2] = [10.0, 5.0]
    if others == 100:
        values[1] = 0.0
        assert find_recall(np.array([1.0, -1.0]), values) == recall
    else:
        assert find_recall(np.array([7.0, 6.0]), values) == recall


def test_who_knows_nothing_finds_one_of_a_hundred():
    g = np.random.default_rng(1)
    found = [find_recall(g.random(500), g.random(500)) for _ in range(200)]
    assert np.mean(found) <= 0.013
    assert np.mean([find_area(g.random(50), g.random(50)) for _ in range(200)]) == pytest.approx(0.5, abs=0.02)
