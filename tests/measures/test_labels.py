"""Metrics of labels by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.measures.labels import correlate_scores, score_classes


def classes(*values: int) -> np.ndarray:
    return np.array(values)


def test_accuracy_and_f1_by_hand():
    found = score_classes(classes(0, 0, 1, 1, 1), classes(0, 1, 1, 1, 0))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 0: 2 / (2 + 1 + 1), class 1: 4 / (4 + 1 + 1)


def test_with_a_positive_class_f1_is_that_one_s():
    predicted, true = classes(0, 0, 1, 1, 1), classes(0, 1, 1, 1, 0)
    assert score_classes(predicted, true, positive=1)["f1"] == pytest.approx(2 / 3)
    assert score_classes(predicted, true, positive=0)["f1"] == pytest.approx(1 / 2)
    assert score_classes(classes(0, 0), classes(1, 0), positive=1)["f1"] == 0
    assert "f1" not in score_classes(classes(0, 0), classes(0, 0), positive=1)  # the class does not occur at all


def test_classes_that_do_not_occur_have_no_part_in_the_mean():
    assert score_classes(classes(3, 3), classes(3, 3)) == {"accuracy": 1.0, "f1": 1.0}
    assert score_classes(classes(3, 3), classes(2, 3))["f1"] == pytest.approx((0 + 2 / 3) / 2)


def test_correlations_by_hand():
    found = correlate_scores(np.float32([1, 2, 4]), np.float32([0, 1, 5]))
    assert found["spearman"] == pytest.approx(1)
    x, y = np.array([1, 2, 4]) - 7 / 3, np.array([0, 1, 5]) - 2.0
    assert found["pearson"] == pytest.approx(x @ y / np.sqrt(x @ x * (y @ y)))
    assert correlate_scores(np.float32([1, 2, 4]), np.float32([5, 1, 0]))["spearman"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 2], [1, 1, 1]),
        ([1], [1]),
        ([0, np.nan, 2], [0, 1, 2]),
        ([0, np.inf, 2], [0, 1, 2]),
    ],
)
def test_an_undefined_correlation_is_absent(predicted, true):
    assert correlate_scores(np.float32(predicted), np.float32(true)) == {}
