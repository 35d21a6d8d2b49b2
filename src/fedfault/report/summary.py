"""What the records say, in words. Pure functions of a run; missing numbers stay missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.report import timing
from fedfault.report.words import Table, Tile, duration, many, number, perplexity, size
from fedfault.runs.recorded import Fork, RunData, seconds_by_part


def status(run: RunData) -> list[str]:
    """What a reader should know before the numbers: unfinished, very short, or odd files."""
    notes = []
    if not run.records:
        notes.append("No round has been recorded yet.")
    elif not run.finished:
        of = f" of {run.rounds_planned}" if run.rounds_planned else ""
        state = run.manifest.get("status", "unfinished")
        notes.append(f"This run is not finished (status: {state}): {run.rounds_done}{of} rounds are recorded.")
    if run.records and not run.rounds_done:
        notes.append("The model has not been trained yet: these are the numbers before training.")
    elif run.records and run.rounds_done < 3:
        notes.append(f"Only {many(run.rounds_done, 'round')} of training: too few to show a trend.")
    events = [f"Round {r.round}: {event}." for r in run.records for event in r.events]
    if len(events) > 6:
        events = [*events[:5], f"{len(events) - 5} more such events are in rounds.jsonl."]
    return [*notes, *events, *run.notes]


def remarks(run: RunData) -> list[str]:
    """What the run itself noted at its start, and what one run cannot say."""
    noted = [*(str(n) for n in run.manifest.get("notes") or ()), *(_fork(f) for f in run.forks if f.name == "parent")]
    if run.clusters:
        noted.append(f"Found before the first round: {run.clusters.get('sentence')}.")
    if run.centralised:
        noted.append(
            "All training data were in one place: client 0 of the rounds has those of all clients, and its bytes are no "
            "traffic. Losses of clients are those of the one model on the texts that each of them held back."
        )
    seed = "One run with one seed: repeat it with other seeds before reading much into small differences."
    return [*noted, seed] if run.rounds_done else noted


def _fork(fork: Fork) -> str:
    of = f" of {fork.source}" if fork.source else ""
    return f"This run went its own way after round {fork.round}{of}: {fork.change}."


def headline(run: RunData) -> list[str]:
    """The run in a few sentences, computed from the records."""
    return [s for s in (_progress(run), _jumps(run), _clients(run), _forgetting(run)) if s]


def _progress(run: RunData) -> str:
    rounds, losses = run.losses("validation")
    if not rounds:
        return ""
    if run.labelled:
        return _learned(run, rounds, losses)
    if len(rounds) == 1:
        return f"The mixed validation perplexity is {perplexity(losses[0])}, measured once, in round {rounds[0]}."
    broken = [n for n, loss in zip(rounds, losses, strict=True) if not math.isfinite(loss)]
    good = [(loss, n) for n, loss in zip(rounds, losses, strict=True) if math.isfinite(loss)]
    if broken:
        when = f"in round {broken[0]}" if math.isfinite(losses[-1]) else f"from round {broken[0]} on"
        best = f" Its best perplexity was {perplexity(min(good)[0])} in round {min(good)[1]}." if good else ""
        return f"The run diverged: the validation loss is not a finite number {when}.{best}"
    change = losses[-1] - losses[0]
    verb = "stayed at about the same value, from" if abs(change) < 0.005 else "rose from" if change > 0 else "fell from"
    best_loss, best_round = min(good)
    best = "its best" if best_round == rounds[-1] else f"best {perplexity(best_loss)} in round {best_round}"
    start, end = perplexity(losses[0]), perplexity(losses[-1])
    return f"Mixed validation perplexity {verb} {start} to {end} over {many(run.rounds_done, 'round')} ({best})."


def _learned(run: RunData, rounds: Sequence[int], losses: Sequence[float]) -> str:
    """The course of the metric of labels that is shown first, or of the loss where it is not defined."""
    metric = next(iter(run.metrics_measured), None)
    if broken := [n for n, loss in zip(rounds, losses, strict=True) if not math.isfinite(loss)]:
        return f"The run diverged: the validation loss is not a finite number in round {broken[0]}."
    name, (_, values) = metric or "loss", run.metric("validation", metric) if metric else (rounds, losses)
    if len(values) == 1:
        return f"The validation {name} is {number(values[0])}, measured once."
    best = max(values) if metric else min(values)
    when = "its best" if best == values[-1] else f"best {number(best)}"
    course = f"went from {number(values[0])} to {number(values[-1])} over {many(run.rounds_done, 'round')}"
    return f"Validation {name} {course} ({when})."


def largest_rise(run: RunData) -> tuple[float, int, str] | None:
    """The largest rise of one topic's loss between two evaluations: nats, round, topic."""
    rises = [(rise, n, t) for t in run.topics for rise, n in run.rises(f"topic/{t}")]
    return max(rises, default=None)


def _jumps(run: RunData) -> str:
    if len(run.score_names("topic/")) < 2 or all(len(run.losses(n)[0]) < 2 for n in run.score_names("topic/")):
        return ""
    worst = largest_rise(run)
    if worst is None or worst[0] < 0.01:
        if not all(math.isfinite(loss) for n in run.score_names("topic/") for loss in run.losses(n)[1]):
            return ""
        return f"No single topic's loss rose by more than 0.01 {run.short_unit} between two evaluations."
    rise, n, topic = worst
    rounds = run.losses(f"topic/{topic}")[0]
    since = rounds[rounds.index(n) - 1]
    groups = [run.topics_trained(r) for r in run.records if since < r.round <= n]
    who = ""
    if any(t for group in groups for t in group):
        there = any(topic in group for group in groups)
        who = (
            ", although a client that mostly holds it trained"
            if there
            else ", when no client that mostly holds it trained"
        )
    most = f"{rise:.2f} {run.short_unit}"
    return f"Between evaluations the loss of single topics jumped by up to {most} ({topic}, round {n}{who})."


def _clients(run: RunData) -> str:
    last = final_clients(run)
    if len(last) < 2:
        return ""
    (best, b), (worst, w) = min((v, k) for k, v in last.items()), max((v, k) for k, v in last.items())
    return (
        f"Held-out loss of single clients ends between {best:.2f} {run.short_unit} (client {b}) and {worst:.2f} "
        f"{run.short_unit} (client {w})."
    )


def final_clients(run: RunData) -> dict[int, float]:
    """Held-out loss of each client when it was last measured, where that is finite."""
    last = {int(n.removeprefix("client/")): run.losses(n)[1][-1] for n in run.score_names("client/")}
    return {client: loss for client, loss in last.items() if math.isfinite(loss)}


def forgetting(run: RunData) -> float | None:
    """Change of the loss on general English since round 0; None when it was not measured."""
    rounds, losses = run.losses("general")
    return losses[-1] - losses[0] if len(rounds) > 1 and rounds[0] == 0 else None


def _forgetting(run: RunData) -> str:
    change = forgetting(run)
    if change is None and run.labelled:
        return ""
    if change is None:
        return "General English was not measured." if run.rounds_done else ""
    if not math.isfinite(change):
        return "General English: the loss is no longer a finite number."
    return f"General English: {number(change, '+.2f')} nats per token against the model before training."


def tiles(run: RunData) -> list[Tile]:
    """The key numbers; a tile only for what was measured."""
    found = []
    rounds, losses = run.losses("validation")
    for metric in run.metrics_measured:
        _, values = run.metric("validation", metric)
        found.append(
            Tile(f"Validation {metric}", number(values[-1]), f"from {number(values[0])}" if values[1:] else "")
        )
    if rounds and not run.labelled:
        remark = f"from {perplexity(losses[0])}" if len(rounds) > 1 else f"round {rounds[0]}"
        found.append(Tile("Validation perplexity", perplexity(losses[-1]), remark))
    rise = largest_rise(run)
    if rise:
        found.append(Tile("Largest jump of a topic", f"{rise[0]:+.2f} {run.short_unit}", f"{rise[2]}, round {rise[1]}"))
    last = final_clients(run)
    if len(last) > 1:
        found.append(
            Tile(
                "Gap between clients",
                f"{max(last.values()) - min(last.values()):.2f} {run.short_unit}",
                "worst minus best",
            )
        )
    change = forgetting(run)
    if change is not None:
        found.append(
            Tile("General English", number(change, "+.2f") + " nats" * math.isfinite(change), "against round 0")
        )
    trained = [len(r.clients) for r in run.records if r.clients]
    if trained:
        cohort = str(max(trained)) if min(trained) == max(trained) else f"{min(trained)} to {max(trained)}"
        who = "all data in one place" if run.centralised else f"{cohort} of {many(run.num_clients, 'client')} in each"
        found.append(Tile("Rounds", f"{run.rounds_done:,}", who))
        found.append(
            Tile(f"{run.targets.capitalize()} trained on", f"{sum(r.tokens for r in run.records):,}", "all clients")
        )
    up, down = sum(r.bytes_up for r in run.records), sum(r.bytes_down for r in run.records)
    if (up or down) and not run.centralised:
        found.append(Tile("Traffic", size(up + down), f"{size(up)} up, {size(down)} down"))
    parts = [seconds_by_part(r) for r in run.records]
    seconds, probes = sum(sum(p.values()) for p in parts), sum(p.get("probes", 0.0) for p in parts)
    if simulated := timing.tile(run):
        found.append(simulated)
    if seconds:
        measured = (
            f"training and evaluation; {100 * probes / seconds:.1f}\u00a0% probes"
            if probes
            else "training and evaluation"
        )
        found.append(Tile("Time", duration(seconds), measured))
    return found


SKEW = {
    "label_emd": "topics: earth mover's distance (0 to 2)",
    "token_js": "tokens: Jensen-Shannon divergence (nats)",
    "embedding_mmd": "embeddings: squared MMD",
    "gradient": "gradients: variance between clients",
    "size_cv": "sizes: coefficient of variation",
}


def skew(indices: Mapping[str, Any]) -> Table | None:
    """The realised heterogeneity, an index a row; `indices` is what heterogeneity.json holds."""
    rows = [_skew_row(title, indices[name]) for name, title in SKEW.items() if indices.get(name)]
    return Table(("clients differ in", "value", "by chance", "beyond chance", "z", "p"), rows) if rows else None


def _skew_row(title: str, index: Mapping[str, Any]) -> list[str]:
    columns = (("value", ".4g"), ("chance", ".4g"), ("excess", ".4g"), ("z", ".1f"), ("p", ".3f"))
    return [title, *(number(index.get(key), form) for key, form in columns)]


def split(run: RunData) -> list[str]:
    """What the split is, in sentences: how different the clients are, what the partitioner said."""
    attempts, accepted = run.split.get("attempts", 1), run.split.get("acceptance")
    said = [
        *run.heterogeneity.get("sentences", ()),
        *(f"{note[0].upper()}{note[1:]}." for note in run.split.get("notes", ())),
    ]
    if accepted is not None and accepted < 1:
        said.append(
            f"The split was accepted at draw {attempts}; about {100 * accepted:.2g} % of draws give every client enough "
            "documents, and choosing them bends the law of the draw."
        )
    if removed := run.split.get("removed"):
        said.append(f"{sum(removed):,} words were taken out of the clients' texts; the validation set is untouched.")
    return said
