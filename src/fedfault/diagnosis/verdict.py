"""The verdict on a run: its state in a word, since when, why, and how sure that is.

    failed                      a fatal alarm (`Detector.is_failure`) holds to the end, or there was an alarm and the loss
                                ended above where it started
    did not learn               the validation loss did not fall, beyond its error and by as much as shows in a report
    degraded                    any other alarm
    healthy                     no alarm, control runs say how often a healthy run has none, and most of the detectors that
                                they calibrate had the readings that an alarm takes
    not judged                  no detector with a threshold had anything to read
    no alarm (not calibrated)   any other run without an alarm; whether that means anything, nobody has measured

The words are `records.STATES`, and metrics.json, reports, comparisons and studies use no others.

A fault trips several detectors. The causes are the alarms that no other one explains: a detector says which alarms its own
leads to (`Detector.leads_to`), and explains those that came no more than LATER rounds before it, as what sees a cause needs
more rounds than what sees the loss. Of two that lead to each other, the first is the cause. Whether it is can be tried: a
fork without it (`fedfault fork`, then `fedfault compare`) should be rid of the others too.

Severity is how far the worst alarm went: the distance of its statistic from that of healthy runs, in units of the
threshold's distance. 1 is at the threshold. Without controls healthy runs are taken to be at 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedfault.diagnosis.calibration import NEEDED, Calibration
from fedfault.diagnosis.detection import Course, Detection
from fedfault.records import (
    DEGRADED,
    FAILED,
    HEALTHY,
    NO_ALARM,
    UNJUDGED,
    UNLEARNED,
    Detector,
    Finding,
    Records,
)
from fedfault.stats import bound_below

LATER = 6  # rounds that a cause may be seen after what follows from it: the longest window of a detector
LEAST = 0.005  # nats: a smaller change of the loss is "about the same value" in reports


def judge_run(records: Records, calibration: Calibration | None, differs: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict on a run of these records, see `judge_detection`."""
    return judge_detection(Detection(calibration, records=records), differs)


def judge_detection(seen: Detection, differs: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict as metrics.json keeps it; `differs` are settings in which the run differs from the controls."""
    calibration, courses = seen.calibration, seen.courses
    alarms = [f for f in seen.findings if f.level == "alarm"]
    alarmed = {f.detector: f for f in reversed(alarms)}  # the first alarm of each
    alarmed = dict(sorted(alarmed.items(), key=lambda item: alarms.index(item[1])))
    causes = _find_causes({name: course.detector for name, course in courses.items()}, alarmed)
    holding = [name for name in alarmed if courses[name].state == "alarm"]
    ready = _list_ready(seen)
    judged = bool(calibration and ready and 2 * len(ready) >= len(calibration.thresholds))
    change = _measure_change(seen)
    fatal = any(courses[name].detector.is_failure(courses[name].last[-1]) for name in holding)
    read = any(course.last and course.threshold for course in courses.values())
    state = _choose_state(fatal, bool(alarms), change, judged, read)
    severity = max((_measure_severity(courses[name]) for name in alarmed), default=0.0)
    said = ["" if state != UNLEARNED else _explain_change(seen)]
    said += [_explain_alarms(alarmed, causes, holding) if alarmed else _explain_silence(seen, state)]
    said += [_explain_severity(severity)] if alarmed else []
    said += [_explain_doubts(seen)] if state == NO_ALARM and calibration is None else []
    return {
        "state": state,
        "since": alarms[0].round if alarms else None,
        "causes": causes,
        "consequences": [name for name in alarmed if name not in causes],
        "over": [name for name in alarmed if name not in holding],
        "severity": severity,
        "sentence": " ".join(filter(None, said)),
        "sure": _explain_certainty(seen, ready, judged, differs),
        "calibration": calibration.name if calibration and judged else None,
        "controls": calibration.controls if calibration and judged else 0,
        "alpha": calibration.alpha if calibration and judged else None,
    }


def _list_ready(seen: Detection) -> list[str]:
    """The detectors with a threshold of controls that read the run as often as an alarm takes."""
    known = seen.calibration.thresholds if seen.calibration else {}
    return [name for name in known if name in seen.courses and len(seen.courses[name].last) >= NEEDED]


def _measure_change(seen: Detection) -> tuple[float, float] | None:
    """The validation loss at the end minus at the start, and its error, in nats; None where it was not measured twice.

    The error is as many standard errors of the change, paired by block, as Student's t has for so few blocks, 1.645 where
    their number is not known: by chance alone a change is larger in 5 % of runs, upwards, and in 5 % downwards. It is 0.005
    nats at least, as less does not show in a report.
    """
    if len(seen.scores) < 2:
        return None
    first, last = seen.scores
    return last.loss - first.loss, max(LEAST, -bound_below(0.0, last.se or 0.0, last.blocks))


def _choose_state(fatal: bool, alarmed: bool, change: tuple[float, float] | None, judged: bool, read: bool) -> str:
    """The word for a run; `judged`: calibrated detectors have read it; `read`: any detector with a threshold has."""
    risen = change is not None and not change[0] <= change[1]  # NaN has
    if fatal or (alarmed and risen):
        return FAILED
    if change is not None and not change[0] < -change[1]:
        return UNLEARNED
    if alarmed:
        return DEGRADED
    if judged:
        return HEALTHY
    return NO_ALARM if read else UNJUDGED


def _explain_change(seen: Detection) -> str:
    """What the loss did, where that is the verdict."""
    first, last = (score.loss for score in seen.scores)
    if not math.isfinite(last):
        return "The validation loss is not a finite number."
    return f"The validation loss has not fallen beyond its error: it was {first:.3f} and is {last:.3f} at the end."


def _find_causes(known: Mapping[str, Detector], alarmed: Mapping[str, Finding]) -> list[str]:
    """The detectors whose alarms no other one explains, in the order of their first alarms."""
    order = list(alarmed)

    def explains(a: str, b: str) -> bool:
        mutual = a in known[b].leads_to and order.index(b) < order.index(a)
        return b in known[a].leads_to and not mutual and alarmed[a].round <= alarmed[b].round + LATER

    return [b for b in order if not any(explains(a, b) for a in order if a != b)] or order[:1]  # of a circle, the first


def _measure_severity(course: Course) -> float:
    """How far a detector's statistic went while it was in alarm, in units of the threshold's distance from healthy runs."""
    assert course.threshold is not None
    seen = course.threshold.seen
    usual = sum(seen) / len(seen) if seen else 0.0
    return (course.worst - usual) / max(course.threshold.value - usual, course.detector.min_std)


def _explain_severity(severity: float) -> str:
    if not math.isfinite(severity):
        return "Severity: beyond any threshold."
    return f"Severity {severity:.1f} (1 is the threshold)."


def _explain_silence(seen: Detection, state: str) -> str:
    """One sentence where no detector raised an alarm."""
    if state == UNJUDGED:
        return "Nothing was measured that a detector reads."
    doubts: dict[str, list[str]] = {"at the end": [], "for a while": []}
    for name in dict.fromkeys(f.detector for f in seen.findings):
        doubts["for a while" if seen.courses[name].state == "ok" else "at the end"].append(name.replace("_", " "))
    by = ", by conventional thresholds" if seen.calibration is None else ""
    suspected = "".join(f"; suspected {when}: {', '.join(names)}" for when, names in doubts.items() if names)
    return f"No detector raised an alarm{by}{suspected}."


def _explain_alarms(alarmed: Mapping[str, Finding], causes: Sequence[str], holding: Collection[str]) -> str:
    """One sentence: the first cause, then the other causes, then what they explain, in order of first rounds."""
    first = alarmed[causes[0]]
    over = "" if first.detector in holding else ", over by the end"

    def name(detectors: Sequence[str]) -> str:
        each = [alarmed[d] for d in sorted(detectors, key=lambda d: alarmed[d].round)]
        return ", ".join(
            f"{f.detector.replace('_', ' ')} (round {f.round}{'' if f.detector in holding else ', over'})" for f in each
        )

    then = f"; then {name(causes[1:])}" if causes[1:] else ""
    follow = [d for d in alarmed if d not in causes]
    said = f"Round {first.round}{over}: {first.sentence}"
    explained = f"; explained by {'these' if causes[1:] else 'it'}: {name(follow)}" if follow else ""
    return f"{said}{then}{explained}."


def _explain_doubts(seen: Detection) -> str:
    """What is large enough to matter at the end, and only controls could tell from what healthy runs do."""
    last = [(name, c.detector, c.last[-1]) for name, c in seen.courses.items() if c.last and c.detector.calibrated]
    large = [seen.explain(name, r) for name, d, r in last if r.effect >= d.min_effect and r.statistic > d.min_std]
    return f"Only control runs could say whether this is usual: {'; '.join(large)}." if large else ""


def _explain_certainty(seen: Detection, ready: Sequence[str], judged: bool, differs: Sequence[str]) -> str:
    """Explain where the thresholds come from, and how often they are wrong."""
    calibration = seen.calibration
    if calibration is None:
        return "Not calibrated: thresholds are conventions, and how often they are wrong is not known."
    few = f"{len(ready)} of the {len(calibration.thresholds)} detectors that the {calibration.controls} controls calibrate"
    if not judged:
        return f"Not calibrated: {few} had the {NEEDED} readings that an alarm takes."
    kind = "honest control runs of this partition" if calibration.same_partition else "IID control runs"
    said = (
        f"Thresholds come from {calibration.controls} {kind} ({calibration.name}); about "
        f"{100 * calibration.alpha:.0f} % of healthy runs raise any alarm of the detectors that they calibrate "
        f"({len(calibration.thresholds)})."
        if calibration.exact
        else f"Thresholds are extrapolated from only {calibration.controls} {kind} ({calibration.name})."
    )
    if len(ready) < len(calibration.thresholds):
        said += f" Only {few} had the {NEEDED} readings that an alarm takes."
    if others := _list_uncalibrated(seen, calibration):
        said += f" Of {', '.join(others)} the controls say nothing."
    return said + (f" The controls differ in {', '.join(differs)}." if differs else "")


def _list_uncalibrated(seen: Detection, calibration: Calibration) -> list[str]:
    """The detectors that read the run and that such controls could have calibrated, and did not."""
    return [
        name.replace("_", " ")
        for name, course in seen.courses.items()
        if course.last
        and course.detector.calibrated
        and name not in calibration.thresholds
        and (calibration.same_partition or not course.detector.of_partition)
    ]
