"""The verdict on a run and the findings behind it, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedfault.errors import quote
from fedfault.records import DEGRADED, FAILED, HEALTHY, NO_ALARM, UNJUDGED, UNLEARNED, Finding
from fedfault.report.words import format_count, format_number
from fedfault.runs.recorded import RunData

SIGNS = {HEALTHY: "✓", NO_ALARM: "○", UNJUDGED: "?", UNLEARNED: "–", DEGRADED: "!", FAILED: "✕"}
CLASSES = {
    HEALTHY: "healthy",
    NO_ALARM: "unknown",
    UNJUDGED: "unjudged",
    UNLEARNED: "unlearned",
    DEGRADED: "degraded",
    FAILED: "failed",
}


class Verdict(NamedTuple):
    """The state of a run in a word and a sentence, and how sure that is."""

    state: str
    sign: str  # in front of the state, so that it is not told by its colour alone
    css: str  # class of the style sheet
    title: str
    sentence: str
    sure: str
    remark: str  # that it is not calibrated, where the state does not say so


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
    state = str(said["state"])
    sentence, sure = (str(said.get(key) or "") for key in ("sentence", "sure"))
    remark = "" if said.get("calibration") or state in (NO_ALARM, UNJUDGED) else "not calibrated"
    return Verdict(state, SIGNS[state], CLASSES[state], f"{state[0].upper()}{state[1:]}", sentence, sure, remark)


def format_state(verdict: Mapping[str, Any]) -> str:
    """Write the state of a verdict for a table, and since when where that is known: `failed since round 2`.

    >>> format_state({"state": "did not learn", "since": 2})
    'did not learn'
    """
    since = verdict.get("since") if verdict["state"] != UNLEARNED else None
    return str(verdict["state"]) if since is None else f"{verdict['state']} since round {since}"


def list_findings(run: RunData) -> tuple[list[FindingLine], list[FindingLine]]:
    """List the leading finding of every detector, alarms first, and then all others in the order of their rounds."""
    leading = run.leading_findings()
    others = sorted((f for f in run.findings if f not in leading), key=lambda f: f.round)
    again = [_format_finding(run, f)._replace(advice="") for f in others]  # each detector's first line says what to try
    return [_format_finding(run, f) for f in leading], again


def list_advice(run: RunData, f: Finding) -> list[str]:
    """List what a reader of a finding can try, commands with the run's own folder."""
    return [text.replace(" RUN", f" {quote(run.folder)}") if "fedfault " in text else text for text in f.advice]


def _format_finding(run: RunData, f: Finding) -> FindingLine:
    head = f"Round {f.round} · {f.detector.replace('_', ' ')}"
    numbers = _make_sentence(f"{_format_statistic(f)}{_format_evidence(f)}")
    return FindingLine(f.level, head, _make_sentence(f.sentence), numbers, "; ".join(list_advice(run, f)))


def _make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _format_statistic(f: Finding) -> str:
    if f.threshold is None:
        return "no threshold was needed"
    behind = format_count(f.controls, "control run") if f.controls else "theory or convention"
    return f"statistic {format_number(f.statistic, '.3g')}, threshold {format_number(f.threshold, '.3g')} from {behind}"


def _format_evidence(f: Finding) -> str:
    found = ", ".join(
        f"{name.replace('_', ' ').replace('/', ' ')} {format_number(value, '.4g')}"
        for name, value in f.evidence.items()
    )
    return f"; {found}" if found else ""
