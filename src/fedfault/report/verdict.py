"""The verdict on a run and the findings behind it, as the page shows them."""

from __future__ import annotations

from typing import NamedTuple

from fedfault.records import Finding
from fedfault.report.words import format_count, format_number
from fedfault.runs.recorded import RunData


class Verdict(NamedTuple):
    """The state of a run in a word and a sentence, and how sure that is."""

    state: str
    title: str
    sentence: str
    sure: str
    calibrated: bool


class FindingLine(NamedTuple):
    """A finding in one line: when and what, its numbers, and what to try."""

    level: str
    head: str
    sentence: str
    numbers: str
    advice: str


def read_verdict(run: RunData) -> Verdict | None:
    """Read the verdict from what metrics.json holds; None for a run without one."""
    said = run.metrics.get("verdict")
    if not said:
        return None
    since = "" if said.get("since") is None else f" since round {said['since']}"
    title = f"{said['state'].capitalize()}{since}"
    sentence, sure = (str(said.get(key) or "") for key in ("sentence", "sure"))
    return Verdict(said["state"], title, sentence, sure, bool(said.get("calibration")))


def list_findings(run: RunData) -> tuple[list[FindingLine], list[FindingLine]]:
    """List the leading finding of every detector, alarms first, and then all others in the order of their rounds."""
    leading = run.leading_findings()
    others = sorted((f for f in run.findings if f not in leading), key=lambda f: f.round)
    return [_format_finding(f) for f in leading], [_format_finding(f) for f in others]


def _format_finding(f: Finding) -> FindingLine:
    head = f"Round {f.round} · {f.detector.replace('_', ' ')}"
    numbers = _make_sentence(f"{_format_statistic(f)}{_format_evidence(f)}")
    return FindingLine(f.level, head, _make_sentence(f.sentence), numbers, "; ".join(f.advice))


def _make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _format_statistic(f: Finding) -> str:
    if f.threshold is None:
        return "no threshold was needed"
    behind = format_count(f.controls, "control run") if f.controls else "theory or convention"
    return f"statistic {format_number(f.statistic, '.3g')}, threshold {format_number(f.threshold, '.3g')} from {behind}"


def _format_evidence(f: Finding) -> str:
    found = ", ".join(f"{name.replace('_', ' ')} {format_number(value, '.4g')}" for name, value in f.evidence.items())
    return f"; {found}" if found else ""
