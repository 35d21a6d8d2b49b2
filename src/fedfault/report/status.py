"""Where a run stands that is not over: at work or interrupted, how far, how long the rest takes."""

from __future__ import annotations

from typing import Literal

from fedfault.errors import quote
from fedfault.report.verdict import Verdict
from fedfault.report.words import format_seconds
from fedfault.runs.files import is_in_use
from fedfault.runs.recorded import RunData

Activity = Literal["running", "interrupted"]
RECENT = 5  # rounds, by whose mean the time that is left is reckoned


def find_activity(run: RunData) -> Activity | None:
    """Tell whether a process works on a run, or one was stopped before its end; None for a run that is over."""
    if run.manifest.get("status") not in ("begun", "running", "trained"):
        return None
    return "running" if is_in_use(run.folder) else "interrupted"


def describe_activity(run: RunData, activity: Activity, clock: str) -> Verdict:
    """Describe in the place of a verdict where the run stands; clock: the time of day at which that was so."""
    sign, title = ("▸", "Running") if activity == "running" else ("‖", "Interrupted")
    of = f" of {run.rounds_planned}" if run.rounds_planned else ""
    done = f"{run.rounds_done}{of} rounds are recorded." if run.records else "No round is recorded yet."
    sentences = [done]
    left = estimate_seconds_left(run)
    if activity == "running" and left:
        sentences.append(f"The rest takes about {format_seconds(left)}.")
    if activity == "interrupted":
        sure = f"Nothing of these rounds is lost: fedfault resume {quote(run.folder)} goes on after the last one."
    else:
        sure = f"As of {clock}. Where this time stands still for minutes, the run was killed."
    return Verdict(activity, sign, "unknown", title, " ".join(sentences), sure, "")


def describe_phase(run: RunData) -> str:
    """Say in a word or two what a run is doing, by its manifest and its records."""
    status = run.manifest.get("status")
    if status == "begun" or (status == "running" and not run.records):
        return "preparing"
    if status == "trained":
        return "writing results"
    return f"round {min(run.rounds_done + 1, run.rounds_planned or run.rounds_done + 1)}"


def estimate_seconds_left(run: RunData) -> float | None:
    """Estimate the seconds of the rounds that are left by those of the last ones; None where nothing says."""
    took = [sum(r.seconds.values()) for r in run.records if r.round][-RECENT:]
    if not took or run.rounds_planned is None:
        return None
    return sum(took) / len(took) * max(run.rounds_planned - run.rounds_done, 0)
