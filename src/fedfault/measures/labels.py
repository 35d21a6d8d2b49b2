"""Measures of how well labels are predicted, as in GLUE (Wang et al., ICLR 2019). A score that is undefined is left out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def score_classes(
    predicted: NDArray[np.int64], true: NDArray[np.int64], positive: int | None = None
) -> dict[str, float]:
    """Accuracy and F1 of (n,) and (n,): F1 of the positive class, or without one the mean over the classes that occur."""
    from sklearn.metrics import accuracy_score, f1_score

    classes = None if positive is None else [positive]
    f1 = f1_score(true, predicted, labels=classes, average="macro", zero_division=np.nan)
    return _keep_finite({"accuracy": float(accuracy_score(true, predicted)), "f1": float(f1)})


def correlate_scores(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> dict[str, float]:
    """Pearson's and Spearman's correlation of (n,) and (n,); empty where one of the two is constant or not finite."""
    from scipy.stats import pearsonr, spearmanr

    if len(true) < 2 or not np.isfinite(predicted).all() or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return {}
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    found = {name: float(f(predicted, true).statistic) for name, f in (("pearson", pearsonr), ("spearman", spearmanr))}
    return _keep_finite(found)


def _keep_finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}
