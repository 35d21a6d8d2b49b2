"""Sentences and key numbers of a run, computed from its records. Pure functions; missing numbers stay missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.errors import quote
from fedfault.report import timing
from fedfault.report.verdict import list_advice
from fedfault.report.words import (
    Table,
    Tile,
    format_bytes,
    format_change,
    format_count,
    format_number,
    format_perplexity,
    format_seconds,
    format_share,
    name_metric,
)
from fedfault.runs.manifest import MONITORED
from fedfault.runs.outcome import find_best_round
from fedfault.runs.recorded import Fork, RunData, seconds_by_part


def list_warnings(run: RunData, told: bool = False) -> list[str]:
    """List what a reader should know before the numbers: that the run is unfinished or very short, that files are odd.

    told: whether the page says elsewhere how far the run is.
    """
    notes = []
    if not run.records:
        notes += [] if told else ["No round has been recorded yet."]
    elif not run.finished and not told:
        of = f" of {run.rounds_planned}" if run.rounds_planned else ""
        notes.append(f"This run is not finished (status: {run.status}): {run.rounds_done}{of} rounds are recorded.")
    if run.early_end is not None:
        notes.append(f"The run ended after round {run.rounds_done} of {run.rounds_planned}: {run.early_end}.")
    if run.records and not run.rounds_done:
        notes.append("The model has not been trained yet: these are the numbers before training.")
    elif run.records and run.rounds_done < 3:
        notes.append(f"Only {format_count(run.rounds_done, 'round')} of training: too few to show a trend.")
    events = [f"Round {r.round}: {event}." for r in run.records for event in r.events]
    if len(events) > 6:
        events = [*events[:5], f"{len(events) - 5} more such events are in rounds.jsonl."]
    return [*notes, *events, *run.notes]


def list_remarks(run: RunData) -> list[str]:
    """List the notes that the run took at its start, where it comes from, and what a single run cannot tell."""
    noted = [str(n) for n in run.manifest.get("notes") or ()]
    noted += [_describe_fork(f) for f in run.forks if f.name == "parent"]
    if run.clusters:
        noted.append(f"Found before the first round: {run.clusters.get('sentence')}.")
    if run.centralised:
        noted.append(
            "All training data were in one place: client 0 of the rounds has those of all clients, and its bytes are no "
            "traffic. Losses of clients are those of the one model on the texts that each of them held back."
        )
    seed = "One run with one seed: repeat it with other seeds before reading much into small differences."
    return [*noted, seed] if run.rounds_done else noted


def _describe_fork(fork: Fork) -> str:
    of = f" of {fork.source}" if fork.source else ""
    return f"This run went its own way after round {fork.round}{of}: {fork.change}."


def list_sentences(run: RunData) -> list[str]:
    """Summarise the run in a few sentences."""
    parts = (describe_progress, _describe_jumps, _describe_clients, _describe_forgetting)
    return [sentence for describe in parts if (sentence := describe(run))]


def describe_end(run: RunData) -> list[str]:
    """Describe a run that is over in lines for a terminal: the verdict, before and after, what can be done next."""
    said = run.metrics.get("verdict") or {}
    verdict = [f"verdict: {said['state']}. {said['sentence']}"] if said else []
    ways = suggest_commands(run)
    more = [f"next: {', '.join(ways)}"] if ways else []
    return [line for line in (*verdict, describe_progress(run), *more) if line]


def suggest_commands(run: RunData) -> list[str]:
    """Suggest commands with this run's folder: to go on, or to go back and mend what alarms, to compare, to judge again."""
    if run.manifest.get(MONITORED):
        return _suggest_looking(run)
    if not run.finished and run.status != "stopped":
        return [f"fedfault resume {quote(run.folder)}"] if run.manifest else []
    best = find_best_round(run.records)
    back = [f"fedfault fork {quote(run.folder)} --round {best} KEY=VALUE"] if best and best < run.rounds_done else []
    if not back and run.status == "stopped":  # no round was better than none
        back = [f"fedfault run {quote(run.folder / 'config.yaml')} experiment_name=NAME KEY=VALUE"]
    mend = f"fedfault mitigate {quote(run.folder)}"
    advice = [text for f in run.leading_findings() if f.level == "alarm" for text in list_advice(run, f)]
    return [*back, *([mend] if mend in advice else []), *_suggest_looking(run)]


def _suggest_looking(run: RunData) -> list[str]:
    """Suggest to compare the run, with what it was forked from where that lies beside it, and to judge it again."""
    parents = [run.folder.parent / Path(f.source).name for f in run.forks if f.name == "parent" and f.source]
    beside = next((p for p in parents if p.is_dir()), None)
    own = quote(run.folder)
    pair = f"{own} OTHER_RUN" if beside is None else f"{quote(beside)} {own}"
    return [f"fedfault compare {pair}", f"fedfault diagnose {own}"]


def describe_progress(run: RunData) -> str:
    """Describe the validation score before and after, and at its best; nothing where it was not measured."""
    rounds, losses = run.losses("validation")
    if not rounds:
        return ""
    if run.labelled:
        return _describe_metric(run, rounds, losses)
    if len(rounds) == 1:
        return (
            f"The mixed validation perplexity is {format_perplexity(losses[0])}, measured once, in round {rounds[0]}."
        )
    broken = [n for n, loss in zip(rounds, losses, strict=True) if not math.isfinite(loss)]
    good = [(loss, n) for n, loss in zip(rounds, losses, strict=True) if math.isfinite(loss)]
    if broken:
        when = f"in round {broken[0]}" if math.isfinite(losses[-1]) else f"from round {broken[0]} on"
        best = f" Its best perplexity was {format_perplexity(min(good)[0])} in round {min(good)[1]}." if good else ""
        return f"The run diverged: the validation loss is not a finite number {when}.{best}"
    change = losses[-1] - losses[0]
    verb = "stayed at about the same value, from" if abs(change) < 0.005 else "rose from" if change > 0 else "fell from"
    best_loss, best_round = min(good)
    best = "its best" if best_round == rounds[-1] else f"best {format_perplexity(best_loss)} in round {best_round}"
    start, end = format_perplexity(losses[0]), format_perplexity(losses[-1])
    return (
        f"Mixed validation perplexity {verb} {start} to {end} over {format_count(run.rounds_done, 'round')} ({best})."
    )


def _describe_metric(run: RunData, rounds: Sequence[int], losses: Sequence[float]) -> str:
    """Describe the course of the first metric of labels, or of the loss where no metric is defined."""
    metric = next(iter(run.metrics_measured), None)
    if broken := [n for n, loss in zip(rounds, losses, strict=True) if not math.isfinite(loss)]:
        return f"The run diverged: the validation loss is not a finite number in round {broken[0]}."
    name = name_metric(metric) if metric else "loss"
    _, values = run.metric("validation", metric) if metric else (rounds, losses)
    if len(values) == 1:
        return f"The validation {name} is {format_number(values[0])}, measured once."
    best = max(values) if metric else min(values)
    when = "its best" if best == values[-1] else f"best {format_number(best)}"
    start, end, rounds_done = (
        format_number(values[0]),
        format_number(values[-1]),
        format_count(run.rounds_done, "round"),
    )
    if start == end:
        return f"Validation {name} is {end} after {rounds_done}, as before ({when})."
    return f"Validation {name} went from {start} to {end} over {rounds_done} ({when})."


def find_largest_rise(run: RunData) -> tuple[float, int, str] | None:
    """Find the largest rise of a topic's loss between two evaluations: nats, round, topic."""
    rises = [(rise, n, t) for t in run.topics for rise, n in run.rises(f"topic/{t}")]
    return max(rises, default=None)


def _describe_jumps(run: RunData) -> str:
    if len(run.score_names("topic/")) < 2 or all(len(run.losses(n)[0]) < 2 for n in run.score_names("topic/")):
        return ""
    worst = find_largest_rise(run)
    if worst is None or worst[0] < 0.01:
        if not all(math.isfinite(loss) for n in run.score_names("topic/") for loss in run.losses(n)[1]):
            return ""
        return f"No single {run.group}'s loss rose by more than 0.01 {run.short_unit} between two evaluations."
    rise, n, topic = worst
    rounds = run.losses(f"topic/{topic}")[0]
    since = rounds[rounds.index(n) - 1]
    groups = [run.topics_trained(r) for r in run.records if since < r.round <= n]
    who = ""
    if any(groups) and not run.centralised and topic in map(run.dominant_topic, range(run.num_clients)):
        there = any(topic in group for group in groups)
        who = (
            ", although a client that mostly holds it trained"
            if there
            else ", when no client that mostly holds it trained"
        )
    most = f"{rise:.2f} {run.short_unit}"
    return f"Between evaluations the loss of single {run.group}s jumped by up to {most} ({topic}, round {n}{who})."


def _describe_clients(run: RunData) -> str:
    last = find_final_losses(run)
    if len(last) < 2:
        return ""
    (best, b), (worst, w) = min((v, k) for k, v in last.items()), max((v, k) for k, v in last.items())
    ends = [f"{loss:.2f} {run.short_unit} (client {run.label_client(k)})" for loss, k in ((best, b), (worst, w))]
    return f"Held-out loss of single clients ends between {' and '.join(ends)}."


def find_final_losses(run: RunData) -> dict[int, float]:
    """Find the held-out loss of each client when it was last measured, where that is finite."""
    last = {int(n.removeprefix("client/")): run.losses(n)[1][-1] for n in run.score_names("client/")}
    return {client: loss for client, loss in last.items() if math.isfinite(loss)}


def measure_forgetting(run: RunData) -> float | None:
    """Measure by how much the loss on general English has changed since round 0; None when it was not evaluated."""
    rounds, losses = run.losses("general")
    return losses[-1] - losses[0] if len(rounds) > 1 and rounds[0] == 0 else None


def _describe_forgetting(run: RunData) -> str:
    change = measure_forgetting(run)
    if change is None and run.labelled:
        return ""
    if change is None:
        return "General English was not measured." if run.rounds_done else ""
    if not math.isfinite(change):
        return "General English: the loss is no longer a finite number."
    return f"General English: {format_change(change)} nats per token against the model before training."


def make_tiles(run: RunData) -> list[Tile]:
    """Make the tiles of the key numbers; only what was measured has one."""
    found = []
    rounds, losses = run.losses("validation")
    for metric in run.metrics_measured:
        _, values = run.metric("validation", metric)
        found.append(
            Tile(
                f"Validation {name_metric(metric)}",
                format_number(values[-1]),
                f"from {format_number(values[0])}" if values[1:] else "",
            )
        )
    if rounds and not run.labelled:
        remark = f"from {format_perplexity(losses[0])}" if len(rounds) > 1 else f"round {rounds[0]}"
        found.append(Tile("Validation perplexity", format_perplexity(losses[-1]), remark))
    rise = find_largest_rise(run)
    if rise and len(run.topics) > 1:
        found.append(
            Tile(f"Largest jump of a {run.group}", f"{rise[0]:+.2f} {run.short_unit}", f"{rise[2]}, round {rise[1]}")
        )
    last = find_final_losses(run)
    if len(last) > 1:
        found.append(
            Tile(
                "Gap between clients",
                f"{max(last.values()) - min(last.values()):.2f} {run.short_unit}",
                "worst minus best",
            )
        )
    change = measure_forgetting(run)
    if change is not None:
        found.append(
            Tile("General English", format_change(change) + " nats" * math.isfinite(change), "against round 0")
        )
    trained = [len(r.clients) for r in run.records if r.clients]
    if trained:
        cohort = str(max(trained)) if min(trained) == max(trained) else f"{min(trained)} to {max(trained)}"
        who = (
            "all data in one place"
            if run.centralised
            else f"{cohort} of {format_count(run.num_clients, 'client')} in each"
        )
        found.append(Tile("Rounds", f"{run.rounds_done:,}", who))
        if tokens := sum(r.tokens for r in run.records):
            found.append(Tile(f"{run.targets.capitalize()} trained on", f"{tokens:,}", "all clients"))
    up, down = sum(r.bytes_up for r in run.records), sum(r.bytes_down for r in run.records)
    if (up or down) and not run.centralised:
        found.append(Tile("Traffic", format_bytes(up + down), f"{format_bytes(up)} up, {format_bytes(down)} down"))
    parts = [seconds_by_part(r) for r in run.records]
    seconds, probes = sum(sum(p.values()) for p in parts), sum(p.get("probes", 0.0) for p in parts)
    if simulated := timing.make_tile(run):
        found.append(simulated)
    if seconds:
        share = f"; {format_share(probes / seconds)} probes".replace(" %", "\u00a0%") if probes else ""
        measured = f"training and evaluation{share}"
        found.append(Tile("Time", format_seconds(seconds), measured))
    return found


SKEW = {
    "label_emd": "topics: earth mover's distance (0 to 2)",
    "token_js": "tokens: Jensen-Shannon divergence (nats)",
    "embedding_mmd": "embeddings: squared MMD",
    "gradient": "gradients: variance between clients",
    "size_cv": "sizes: coefficient of variation",
}


def tabulate_skew(run: RunData) -> Table | None:
    """Tabulate how different the clients are, an index a row."""
    indices = run.heterogeneity
    rows = [_format_skew(_name_group(run, title), indices[name]) for name, title in SKEW.items() if indices.get(name)]
    return Table(("clients differ in", "value", "by chance", "beyond chance", "z", "p"), rows) if rows else None


def _format_skew(title: str, index: Mapping[str, Any]) -> list[str]:
    columns = (("value", ".4g"), ("chance", ".4g"), ("excess", ".4g"), ("z", ".1f"), ("p", ".3f"))
    return [title, *(format_number(index.get(key), form) for key, form in columns)]


def _name_group(run: RunData, text: str) -> str:
    """Call topics labels where the model predicts them."""
    return re.sub(r"\btopic(?=s?\b)", run.group, text)


def describe_split(run: RunData) -> list[str]:
    """Describe the split in sentences: how different the clients are, and the notes of the partitioner."""
    attempts, accepted = run.split.get("attempts", 1), run.split.get("acceptance")
    notes = (f"{note[0].upper()}{note[1:]}." for note in run.split.get("notes", ()))
    said = [_name_group(run, sentence) for sentence in (*run.heterogeneity.get("sentences", ()), *notes)]
    if accepted is not None and accepted < 1:
        said.append(
            f"The split was accepted at draw {attempts}; about {100 * accepted:.2g} % of draws give every client enough "
            "documents, and choosing them bends the law of the draw."
        )
    if removed := run.split.get("removed"):
        said.append(f"{sum(removed):,} words were taken out of the clients' texts; the validation set is untouched.")
    return said
