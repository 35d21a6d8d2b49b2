"""What the detectors made of a run: the verdict and the findings behind it, as the page shows them."""

from __future__ import annotations

from typing import NamedTuple

from fedfault.records import Finding
from fedfault.report.words import many, number
from fedfault.runs.recorded import RunData


class Verdict(NamedTuple):
    """The state of a run in a word and a sentence, and how sure that is."""

    state: str
    title: str
    sentence: str
    sure: str
    calibrated: bool


class Line(NamedTuple):
    """A finding in one line: when and what, its numbers, and what to try."""

    level: str
    head: str
    sentence: str
    numbers: str
    advice: str


def verdict(run: RunData) -> Verdict | None:
    """The verdict as metrics.json has it; None for a run without one."""
    said = run.metrics.get("verdict")
    if not said:
        return None
    since = "" if said.get("since") is None else f" since round {said['since']}"
    title = f"{said['state'].capitalize()}{since}"
    sentence, sure = (str(said.get(key) or "") for key in ("sentence", "sure"))
    return Verdict(said["state"], title, sentence, sure, bool(said.get("calibration")))


def findings(run: RunData) -> tuple[list[Line], list[Line]]:
    """A line a finding: what every detector has to say, alarms first, and what it said before and after that."""
    leading = run.leading_findings()
    others = sorted((f for f in run.findings if f not in leading), key=lambda f: f.round)
    return [_line(f) for f in leading], [_line(f) for f in others]


def _line(f: Finding) -> Line:
    head = f"Round {f.round} · {f.detector.replace('_', ' ')}"
    numbers = _sentence(f"{_compared(f)}{_evidence(f)}")
    return Line(f.level, head, _sentence(f.sentence), numbers, "; ".join(f.advice))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _compared(f: Finding) -> str:
    if f.threshold is None:
        return "no threshold was needed"
    behind = many(f.controls, "control run") if f.controls else "theory or convention"
    return f"statistic {number(f.statistic, '.3g')}, threshold {number(f.threshold, '.3g')} from {behind}"


def _evidence(f: Finding) -> str:
    found = ", ".join(f"{name.replace('_', ' ')} {number(value, '.4g')}" for name, value in f.evidence.items())
    return f"; {found}" if found else ""
