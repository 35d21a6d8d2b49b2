"""From records to findings: pure functions, so that the same records always give the same answer.

    records --Detector.read--> statistic after every round --threshold--> ok, suspect, alarm

A statistic above its threshold in one round makes the detector suspicious; in two of the last three it raises an alarm,
which is what calibration counts. A loss that is not a number, a dead adapter, a server that stands still alarm at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.diagnosis.calibration import LAST, NEEDED, Calibration, Threshold
from fedfault.plugins import PlugIn
from fedfault.records import Detector, Finding, Reading, Records
from fedfault.registry import build, list_plugins, load_builders

WORSE = ("ok", "suspect", "alarm")


def build_detectors() -> Mapping[str, Detector]:
    """Build all detectors that are known now, by name: with those of the plug-ins of the configuration loaded last."""
    return _build_with(list_plugins())


@functools.lru_cache(maxsize=16)
def _build_with(plugins: tuple[PlugIn, ...]) -> Mapping[str, Detector]:
    return {name: build("detector", name) for name in load_builders("detector")}


def detect_failures(records: Records, calibration: Calibration | None) -> list[Finding]:
    """Let the detectors judge a run so far: one finding whenever a detector's state gets worse, in order of rounds."""
    found = []
    for name, detector in build_detectors().items():
        threshold = choose_threshold(name, detector, calibration)
        if threshold is not None:
            found += _find_changes(name, detector, threshold, records)
    return sorted(found, key=lambda f: (f.round, f.level != "alarm", f.detector))


def choose_threshold(name: str, detector: Detector, calibration: Calibration | None) -> Threshold | None:
    """The threshold in force: the controls' where there is one, else the detector's default; None: it stays silent."""
    if calibration is not None and name in calibration.thresholds:
        return calibration.thresholds[name]
    return None if detector.default_threshold is None else Threshold(detector.default_threshold, 0)


def _find_changes(name: str, detector: Detector, threshold: Threshold, records: Records) -> list[Finding]:
    """A finding for every reading after which the detector's state is worse than before."""
    found, state = [], "ok"
    readings = detector.read(records, threshold.scale)
    for i, r in enumerate(readings):
        now = judge_readings(detector, threshold, readings[: i + 1])
        if WORSE.index(now) > WORSE.index(state):
            found.append(_make_finding(name, detector, threshold, r, now))
        state = now
    return found


def judge_readings(detector: Detector, threshold: Threshold, readings: Sequence[Reading]) -> str:
    """The state of a detector after the last of these readings: ok, suspect or alarm."""
    above = [_exceeds(detector, threshold, r) for r in readings[-LAST:]]
    if not above or not above[-1]:
        return "ok"
    return "alarm" if sum(above) >= NEEDED or math.isinf(readings[-1].statistic) else "suspect"


def _exceeds(detector: Detector, threshold: Threshold, r: Reading) -> bool:
    return r.statistic > threshold.value and r.effect >= detector.min_effect


def _make_finding(name: str, detector: Detector, threshold: Threshold, r: Reading, now: Any) -> Finding:
    return Finding(
        detector=name,
        round=r.round,
        level=now,
        sentence=detector.explain(r),
        statistic=r.statistic,
        threshold=None if math.isinf(r.statistic) else threshold.value,
        controls=threshold.controls,
        evidence=dict(r.evidence),
        advice=detector.advice,
    )
