"""What the alarms of a fork say beside those of its parent, and whether runs are judged by the same thresholds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedfault.records import UNJUDGED
from fedfault.runs.recorded import RunData


def explain_alarms(parent: RunData, fork: RunData, since: int) -> str:
    """Explain of which alarms after round `since`, the last that both have, a fork is rid, which stay, and which are new.

    An alarm counts that is raised after that round, or that held on from before. Nothing is said of one that lies beyond
    the other run's end, but that it does.
    """
    if differ_in_thresholds([parent, fork]):
        return "It is not judged by the thresholds of its parent, so that nothing says of which alarms it is rid."
    unknown = _find_unknown(parent, since) | _find_unknown(fork, since)
    before, after = (
        {d: t for d, t in sorted(_find_alarms(run, since).items()) if d not in unknown} for run in (parent, fork)
    )
    lost, new = ({d: t for d, t in one.items() if d not in other} for one, other in ((before, after), (after, before)))
    gone = [_name(d) for d, t in lost.items() if t <= fork.rounds_done]
    stay = [_name(d) for d in before if d in after]
    said = []
    if gone:
        left = f"; what stays: {', '.join(stay)}" if stay else ""
        said.append(f"It is without {', '.join(gone)}, which followed from what it changed{left}.")
    elif stay:
        said.append("It is not rid of any alarm of its parent.")
    if early := {d: t for d, t in lost.items() if t > fork.rounds_done}:
        said.append(f"It ends in round {fork.rounds_done}, too early to tell whether it is rid of {_list(early)}.")
    if held := {d: t for d, t in new.items() if t <= since}:
        said.append(f"What its parent gets over stays in it: {_list(held)}.")
    if own := {d: t for d, t in new.items() if since < t <= parent.rounds_done}:
        said.append(f"New in it: {_list(own)}.")
    if late := {d: t for d, t in new.items() if t > parent.rounds_done}:
        said.append(f"After the end of its parent: {_list(late)}.")
    return " ".join(said)


def explain_thresholds(runs: Sequence[RunData], names: Sequence[str]) -> list[str]:
    """Explain that runs are judged by different thresholds; nothing where they are not."""
    if not differ_in_thresholds(runs):
        return []
    each = ", ".join(f"{by} ({name})" for run, name in zip(runs, names, strict=True) if (by := _name_thresholds(run)))
    return [
        f"Verdicts and alarms are by different thresholds and cannot be set beside each other: {each}. `fedfault diagnose "
        "RUN --calibration none` judges a run by conventions."
    ]


def differ_in_thresholds(runs: Sequence[RunData]) -> bool:
    """Whether runs are judged by different thresholds, as far as verdicts and findings tell."""
    known: dict[str, set[float]] = defaultdict(set)
    for f in (f for run in runs for f in run.findings):
        known[f.detector] |= set() if f.threshold is None else {f.threshold}
    names = {name for run in runs if (name := _name_thresholds(run))}
    whole = {name for name in names if not any(other.startswith(f"{name} of ") for other in names)}
    return len(whole) > 1 or any(len(values) > 1 for values in known.values())


def _name_thresholds(run: RunData) -> str:
    """Name where a run's thresholds come from, as far as its verdict and findings tell; empty where it was not judged."""
    verdict = run.metrics.get("verdict") or {}
    if verdict.get("calibration"):
        return f"{verdict['controls']} control runs of {verdict['calibration']}"
    if controls := max((f.controls for f in run.findings), default=0):
        return f"{controls} control runs"
    return "conventions" if run.findings or verdict.get("state", UNJUDGED) != UNJUDGED else ""


def _find_alarms(run: RunData, since: int) -> dict[str, int]:
    """Find the round of each detector's first alarm after round `since`, or of the earlier one that held to the end."""
    found: dict[str, int] = {}
    for f in sorted(run.findings, key=lambda f: f.round):
        if f.level == "alarm" and f.round > since:
            found.setdefault(f.detector, f.round)
    verdict = run.metrics.get("verdict") or {}
    if "over" not in verdict:
        return found
    return {d: t for d, t in _find_standing(run, since).items() if d not in verdict["over"]} | found


def _find_unknown(run: RunData, since: int) -> set[str]:
    """Find the detectors in alarm in round `since` of which only a verdict, which is not there, says whether that held."""
    return set() if "over" in (run.metrics.get("verdict") or {}) else {*_find_standing(run, since)}


def _find_standing(run: RunData, since: int) -> dict[str, int]:
    """Find the alarms by round `since` after which their detector found nothing: they hold, or are over."""
    last = {f.detector: f for f in sorted(run.findings, key=lambda f: f.round)}
    return {d: f.round for d, f in last.items() if f.level == "alarm" and f.round <= since}


def _list(alarms: Mapping[str, int]) -> str:
    return ", ".join(f"{_name(d)} (round {t})" for d, t in alarms.items())


def _name(detector: str) -> str:
    return detector.replace("_", " ")
