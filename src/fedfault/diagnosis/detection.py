"""From records to findings and a verdict: pure functions, so that the same records always give the same answer.

    records --Detector.read--> statistic after every round --threshold--> ok, suspect, alarm --> verdict

A statistic above its threshold in one round makes the detector suspicious; in two of the last three it raises an alarm,
which is what calibration counts. A loss that is not a number, a dead adapter, a server that stands still alarm at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedfault.diagnosis.calibration import LAST, NEEDED, Calibration, Threshold
from fedfault.records import Detector, Finding, Reading, Records, get_validation_losses
from fedfault.registry import build, load_builders

WORSE = ("ok", "suspect", "alarm")


@functools.cache
def build_detectors() -> Mapping[str, Detector]:
    """Build all registered detectors, by name."""
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


def judge_run(records: Records, calibration: Calibration | None, differs: Sequence[str] = ()) -> dict[str, Any]:
    """The run in one word and one sentence: healthy, degraded or failed, since when, why, and how sure that is.

    failed: an alarm that is fatal (`Detector.is_failure`) holds to the end, or the loss ended above where it started;
    degraded: any other alarm. `differs` are settings in which the run differs from the controls.
    """
    findings = detect_failures(records, calibration)
    alarms = [f for f in findings if f.level == "alarm"]
    causes = list(dict.fromkeys(f.detector for f in alarms))
    known = build_detectors()
    holding = {name: last for name in causes if (last := _find_last_alarm(name, known[name], records, calibration))}
    _, losses = get_validation_losses(records)
    lost = bool(alarms) and len(losses) > 1 and not losses[-1] <= losses[0]
    failed = lost or any(known[name].is_failure(last) for name, last in holding.items())
    state = "failed" if failed else "degraded" if causes else "healthy"
    return {
        "state": state,
        "since": alarms[0].round if alarms else None,
        "causes": causes,
        "over": [name for name in causes if name not in holding],
        "sentence": _explain_state(state, alarms, holding, findings),
        "sure": _explain_certainty(calibration, differs),
        "calibration": None if calibration is None else calibration.name,
        "controls": 0 if calibration is None else calibration.controls,
        "alpha": None if calibration is None else calibration.alpha,
    }


def _find_last_alarm(
    name: str, detector: Detector, records: Records, calibration: Calibration | None
) -> Reading | None:
    """The last reading, if the alarm is still on after it."""
    threshold = choose_threshold(name, detector, calibration)
    assert threshold is not None
    readings = detector.read(records, threshold.scale)
    return readings[-1] if judge_readings(detector, threshold, readings) == "alarm" else None


def _explain_state(state: str, alarms: Sequence[Finding], holding: Collection[str], findings: Sequence[Finding]) -> str:
    """One sentence: the first alarm, then the others in order of their first rounds."""
    if state == "healthy":
        doubts = list(dict.fromkeys(f.detector.replace("_", " ") for f in findings))
        return "No detector raised an alarm" + (f"; suspected for a while: {', '.join(doubts)}." if doubts else ".")
    first = alarms[0]
    over = "" if first.detector in holding else " (over by the end)"
    others = {f.detector: f for f in reversed(alarms) if f.detector != first.detector}  # the first alarm of each
    then = [
        f"{f.detector.replace('_', ' ')} (round {f.round}{'' if f.detector in holding else ', over'})"
        for f in sorted(others.values(), key=lambda f: f.round)
    ]
    return f"Since round {first.round} {first.sentence}{over}" + (f"; then {', '.join(then)}." if then else ".")


def _explain_certainty(calibration: Calibration | None, differs: Sequence[str]) -> str:
    """Explain where the thresholds come from, and how often they are wrong."""
    if calibration is None:
        return "Not calibrated: thresholds are conventions, and how often they are wrong is not known."
    said = (
        f"Thresholds come from {calibration.controls} IID control runs ({calibration.name}); at most "
        f"{calibration.alpha:.0%} of healthy runs raise any alarm of the {len(calibration.thresholds)} detectors that they "
        "calibrate."
        if calibration.exact
        else f"Thresholds are extrapolated from only {calibration.controls} IID control runs ({calibration.name})."
    )
    return said + (f" The controls differ in {', '.join(differs)}." if differs else "")
