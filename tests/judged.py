"""Detectors whose readings are what a test says."""

from __future__ import annotations

from fedfault.records import Detector, Reading


def fake(values, effects=None, **changes) -> Detector:
    """A detector that reads values[t - 1] after round t; its threshold is 1, its least effect 0.5."""
    effects = effects or [1.0] * len(values)
    every = [Reading(t + 1, v, e, {"seen": v}) for t, (v, e) in enumerate(zip(values, effects, strict=True))]

    def follow(records, scale):
        for t, _ in enumerate(records):
            yield every[t - 1] if 0 < t <= len(every) else None

    given = {
        "min_effect": 0.5,
        "min_std": 0.1,
        "default_threshold": 1.0,
        "advice": ("do something", "or something else"),
        **changes,
    }
    return Detector(follow, lambda r: f"it reads {r.statistic:g}", **given)
