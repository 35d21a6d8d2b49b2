"""What is said of runs beside one another in sentences: how they end, what to know before, why some are not paired."""

from __future__ import annotations

import math

import numpy as np

from fedfault.compare.figures import find_first_alarms
from fedfault.compare.forks import explain_alarms, explain_thresholds
from fedfault.compare.pairs import Comparison, RunPair, explain_budgets
from fedfault.measures.punctuality import elapsed_seconds
from fedfault.report.words import format_interval, format_number, format_perplexity
from fedfault.runs.manifest import MONITORED
from fedfault.runs.recorded import RunData


def describe_ends(c: Comparison) -> list[str]:
    """Describe how every other run ends beside the first: a sentence with its loss, and one with what its clients lose."""
    said = []
    for name, found in zip(c.names[1:], c.pairs, strict=True):
        ends = [run.losses("validation")[1][-1:] for run in (found.first, found.other)]
        if found.first.unit != found.other.unit:
            units = f"{name} is in {found.other.unit}, that of {c.names[0]} in {found.first.unit}"
            said.append(f"The loss of {units}: they cannot be compared.")
        elif found.topics.apart:
            said.append(f"{name} is scored on other texts than {c.names[0]}: their losses cannot be compared.")
        elif all(end and math.isfinite(end[0]) for end in ends):
            said.append(f"{_describe_end(name, c.names[0], found, ends[1][0] - ends[0][0])}{_describe_clients(found)}")
            if any(run.manifest.get(MONITORED) for run in (found.first, found.other)):
                said.append(f"Nothing says whether {name} and {c.names[0]} are scored on the same data.")
    return said


def _describe_end(name: str, first: str, found: RunPair, change: float) -> str:
    one, other = (run.losses("validation")[1][-1] for run in (found.first, found.other))
    how = f"{'better' if change < 0 else 'worse'} than" if abs(change) >= 0.0005 else "as"
    after = [f"{run.rounds_done:,}" for run in (found.other, found.first)]
    when = f" (after {after[0]} rounds against {after[1]})" if after[0] != after[1] else ""
    more = "" if found.first.labelled else f", perplexity {format_perplexity(other)} against {format_perplexity(one)}"
    return (
        f"{name} ends {how} {first}{when}: final loss {format_number(other)} against {format_number(one)} "
        f"{found.first.unit}{more}."
    )


def _describe_clients(found: RunPair) -> str:
    clients = found.clients
    if not clients.losses or not math.isfinite(clients.mean):
        return ""
    around = clients.interval
    sure = "" if around is None else f" (95 % interval {format_interval(around, '+.3f')})"
    better = sum(v < 0 for v in clients.differences.values())
    return (
        f" Its clients' losses differ by {format_number(clients.mean, '+.3f')} on average{sure}; {better} of "
        f"{len(clients.losses)} are better off."
    )


def list_notes(c: Comparison) -> list[str]:
    """List what a reader should know before the numbers: odd files, and runs that are not finished, diverged, or stopped."""
    said = [f"{name}: {note}" for name, run in zip(c.names, c.runs, strict=True) for note in run.notes]
    for name, run in zip(c.names, c.runs, strict=True):
        if not run.finished:
            of = f" of {run.rounds_planned}" if run.rounds_planned else ""
            said.append(f"{name} is not finished: {run.rounds_done}{of} rounds are recorded.")
        rounds, losses = run.losses("validation")
        broken = [t for t, loss in zip(rounds, losses, strict=True) if not math.isfinite(loss)]
        if broken:
            when = f"in round {broken[0]}" if math.isfinite(losses[-1]) else f"from round {broken[0]} on"
            said.append(f"{name} diverged: its loss is not a finite number {when}.")
    ends = {run.rounds_done for run in c.runs}
    if len(ends) > 1:
        each = ", ".join(f"{run.rounds_done} ({name})" for name, run in zip(c.names, c.runs, strict=True))
        said.append(f"The runs end after different rounds, and each is taken at its own end: {each}.")
    schedulers = [str(run.setting("federation", "scheduler", "name")) for run in c.runs]
    said += explain_budgets({n: run.mean_rank for n, run in zip(c.names, c.runs, strict=True)}, schedulers)
    return [*said, *explain_thresholds(c.runs, c.names), *_list_equal_clocks(c)]


def _list_equal_clocks(c: Comparison) -> list[str]:
    """Explain why schedulers that give other ranks can take the same simulated time, and then end at other losses."""
    first, said = c.runs[0], []
    for name, run in zip(c.names[1:], c.runs[1:], strict=True):
        clocks = [elapsed_seconds(r.records) for r in (first, run)]
        same = clocks[0].keys() == clocks[1].keys() and np.allclose([*clocks[0].values()], [*clocks[1].values()])
        if clocks[0] and same and _list_ranks(first) != _list_ranks(run):
            said.append(
                f"{name} and {c.names[0]} take the same simulated time with other ranks: a round lasts as long as its "
                "slowest client, and leaves the ranks of the others open within that time. Schedulers break such ties "
                "each in its own way, so clients train with other ranks and end at other losses."
            )
    return said


def _list_ranks(run: RunData) -> list[tuple[int, int, int]]:
    """List who had which rank in which round on the simulated clock."""
    return [(r.round, t.client, t.rank) for r in run.records for t in r.turns]


def explain_unpaired(c: Comparison) -> list[str]:
    """Explain in a sentence each why runs cannot be paired by clients or topics."""
    said = []
    for name, found in zip(c.names[1:], c.pairs, strict=True):
        both = f"{name} and {c.names[0]}"
        if found.clients == found.topics and found.clients.why_not:
            follow = (
                ", and the texts that they are scored on follow from that" if found.clients.apart == "settings" else ""
            )
            said.append(f"{both} are not paired: {found.clients.why_not}{follow}.")
            continue
        for what, paired in (("Clients", found.clients), ("Topics", found.topics)):
            if paired.why_not:
                follow = ", and their texts follow from that" if paired.apart == "settings" else ""
                said.append(f"{what} of {both} are not paired: {paired.why_not}{follow}.")
    return said


def list_remarks(c: Comparison) -> list[str]:
    """List where runs come from and what their detectors found, a sentence each."""
    known = {str(run.folder.resolve()): (name, run) for name, run in zip(c.names, c.runs, strict=True)}
    said = []
    for name, run in zip(c.names, c.runs, strict=True):
        for f in (f for f in run.forks if f.name == "parent"):
            called, parent = known.get(f.source, (f.source, None))
            said.append(f"{name} forks after round {f.round} of {called}: {f.change}.")
            said += [explain_alarms(parent, run, f.round)] if parent else []
        if alarms := find_first_alarms(run):
            found = ", ".join(f"{detector.replace('_', ' ')} (round {t})" for detector, t in alarms.items())
            said.append(f"First alarms of {name}: {found}.")
    return [sentence for sentence in said if sentence]
