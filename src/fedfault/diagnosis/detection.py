"""From records to findings: pure functions, so that the same records always give the same answer.

    records --Detector.follow--> statistic after every round --threshold--> ok, suspect, alarm

A statistic above its threshold in one round makes the detector suspicious; in two of the last three it raises an alarm,
which is what calibration counts. A loss that is not a number, a dead adapter, a server that stands still alarm at once.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedfault.diagnosis.calibration import LAST, NEEDED, Calibration, Threshold
from fedfault.diagnosis.plain import say_plainly
from fedfault.plugins import PlugIn
from fedfault.records import Detector, Finding, Reading, Records, RoundRecord, Score, add_client_names
from fedfault.registry import build, list_plugins, load_builders

WORSE = ("ok", "suspect", "alarm")


def build_detectors() -> Mapping[str, Detector]:
    """Build all detectors that are known now, by name: with those of the plug-ins of the configuration loaded last."""
    return _build_with(list_plugins())


@functools.lru_cache(maxsize=16)
def _build_with(plugins: tuple[PlugIn, ...]) -> Mapping[str, Detector]:
    return {name: build("detector", name) for name in load_builders("detector")}


@dataclass
class Course:
    """What one detector has made of a run so far."""

    detector: Detector
    threshold: Threshold | None  # the one in force
    read: Callable[[RoundRecord], Reading | None]
    state: str = WORSE[0]
    last: deque[Reading] = field(default_factory=lambda: deque(maxlen=LAST))
    worst: float = -math.inf  # the largest statistic with which it was in alarm

    def add(self, record: RoundRecord) -> tuple[Reading, Threshold] | None:
        """Read one more record; returns the reading and its threshold if the state has become worse by it."""
        reading, before = self.read(record), self.state
        if reading is None:
            return None
        self.last.append(reading)
        if self.threshold is None:
            return None
        self.state = judge_readings(self.detector, self.threshold, self.last)
        if self.state == "alarm":
            self.worst = max(self.worst, reading.statistic)
        return (reading, self.threshold) if WORSE.index(self.state) > WORSE.index(before) else None


class Detection:
    """The detectors on one run: each is given every record once, so that a round costs the same however long a run is.

    `findings` are those so far, `courses` what each detector has come to, `scores` the first and the last of the mixture.
    """

    def __init__(
        self,
        calibration: Calibration | None,
        names: Sequence[str] = (),
        records: Records = (),
        *,
        foreign: bool = False,
    ) -> None:
        """names: of the clients, for sentences; records: those there already; foreign: whether another program trains."""
        self.calibration, self.names, self.foreign = calibration, names, foreign
        self.findings: list[Finding] = []
        self.scores: list[Score] = []
        self.courses = dict[str, Course]()
        for name, detector in build_detectors().items():
            threshold = choose_threshold(name, detector, calibration)
            self.courses[name] = Course(detector, threshold, detector.start(threshold.scale if threshold else {}))
        for record in records:
            self.add(record)

    def add(self, record: RoundRecord) -> list[Finding]:
        """Give the next record to every detector; returns a finding for each whose state gets worse, alarms first."""
        if (score := record.scores.get("validation")) is not None:
            self.scores = [*self.scores[:1], score]
        new = []
        for name, course in self.courses.items():
            if (changed := course.add(record)) is not None:
                found = _make_finding(name, course, *changed, self.explain(name, changed[0]))
                new.append(replace(found, advice=tuple(map(say_plainly, found.advice))) if self.foreign else found)
        new.sort(key=lambda f: (f.level != "alarm", f.detector))
        self.findings += new
        return new

    def explain(self, name: str, reading: Reading) -> str:
        """What a detector read, in plain words, with the names of clients that have some."""
        return add_client_names(self.courses[name].detector.explain(reading), self.names)


def detect_failures(records: Records, calibration: Calibration | None) -> list[Finding]:
    """Let the detectors judge a run so far: one finding whenever a detector's state gets worse, in order of rounds."""
    return Detection(calibration, records=records).findings


def choose_threshold(name: str, detector: Detector, calibration: Calibration | None) -> Threshold | None:
    """The threshold in force: the controls' where there is one, else the detector's default; None: it stays silent."""
    if calibration is not None and name in calibration.thresholds:
        return calibration.thresholds[name]
    default = detector.default_threshold
    return None if default is None else Threshold(default, 0, detector.default_scale)


def judge_readings(detector: Detector, threshold: Threshold, readings: Sequence[Reading]) -> str:
    """The state of a detector after the last of these readings: ok, suspect or alarm."""
    above = [_exceeds(detector, threshold, r) for r in list(readings)[-LAST:]]
    if not above or not above[-1]:
        return "ok"
    return "alarm" if sum(above) >= NEEDED or math.isinf(readings[-1].statistic) else "suspect"


def _exceeds(detector: Detector, threshold: Threshold, r: Reading) -> bool:
    return r.statistic > threshold.value and r.effect >= detector.min_effect


def _make_finding(name: str, course: Course, r: Reading, threshold: Threshold, sentence: str) -> Finding:
    level: Any = course.state
    return Finding(
        detector=name,
        round=r.round,
        level=level,
        sentence=sentence,
        statistic=r.statistic,
        threshold=None if math.isinf(r.statistic) else threshold.value,
        controls=threshold.controls,
        evidence=dict(r.evidence),
        advice=(*course.detector.advise(r), *course.detector.advice),
    )
