"""The tables of the page. Pure functions of a run; missing numbers stay missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.config.changes import find_changes, flatten_settings, spell_value
from fedfault.config.schema import Experiment
from fedfault.errors import quote
from fedfault.measures.fairness import backward_transfer
from fedfault.measures.fairness import measure_fairness as spread
from fedfault.records import bits_per_byte
from fedfault.report.words import (
    NOTHING,
    Table,
    format_bytes,
    format_number,
    format_perplexity,
    format_share,
    name_metric,
)
from fedfault.runs.recorded import RunData

LONGEST = 300  # letters of an answer that are shown
SPREAD = {
    "worst": "worst",
    "cvar_20": "CVaR 20 %",
    "p10": "p10",
    "p50": "median",
    "p90": "p90",
    "gap": "gap",
    "sd": "sd",
    "jain": "Jain",
}


def tabulate_scores(run: RunData) -> Table | None:
    """Tabulate the losses of the mixture, every topic and general English: start, best, final, gain, what was given back."""
    apart = {f"topic/{t}": t for t in run.topics} if len(run.topics) > 1 else {}
    names = {"validation": "mixture" if apart else "validation", **apart, "general": "general English"}
    names["backdoor"] = _describe_backdoor(run)
    measured = [name for name in names if run.losses(name)[0]]
    rows = [_format_score(run, name, names[name]) for name in measured]
    columns = ["loss of", "start", "best", "in round", "final", "gain", "given back", "largest rise"]
    if not run.labelled:
        columns += ["perplexity", "bits per byte"]
    shown = [row if not run.labelled else row[:-2] for row in rows]
    if not run.labelled and all(row[-1] == NOTHING for row in rows):
        columns, shown = columns[:-1], [row[:-1] for row in rows]
    metrics = run.metrics_measured
    found = [[*row, *_format_metrics(run, name, metrics)] for name, row in zip(measured, shown, strict=True)]
    return Table([*columns, *map(name_metric, metrics)], found) if found else None


def _describe_backdoor(run: RunData) -> str:
    """Name the score of a backdoor: of classes its accuracy stands in the row, of a language model how often it is said."""
    _, said = run.metric("backdoor", "exact_match")
    return (
        f"backdoor: said after {format_share(said[-1])} of prompts"
        if said
        else "backdoor: accuracy is how often it works"
    )


def _format_metrics(run: RunData, name: str, metrics: Sequence[str]) -> list[str]:
    """Write the last value of each metric."""
    found = [run.metric(name, metric)[1] for metric in metrics]
    return [format_number(values[-1] if values else None) for values in found]


def _format_score(run: RunData, name: str, title: str) -> list[str]:
    rounds, losses = run.losses(name)
    best = min(((v, n) for n, v in zip(rounds, losses, strict=True) if math.isfinite(v)), default=(None, None))
    rise = max((rise for rise, _ in run.rises(name)), default=None)
    later, width = len(losses) > 1, run.split.get("bytes_per_token", {}).get(name)
    return [
        title,
        format_number(losses[0]),
        format_number(best[0]),
        format_number(best[1], "d"),
        format_number(losses[-1]),
        format_number(losses[0] - losses[-1] if later else None, "+.3f"),
        format_number(backward_transfer(losses)[-1] if later else None),
        format_number(rise),
        format_perplexity(losses[-1]),
        format_number(bits_per_byte(losses[-1], width) if width else None),
    ]


def tabulate_answers(run: RunData) -> Table | None:
    """Tabulate some prompts with the true answers, and the model's before and after."""
    keys = ("prompt", "reference", "before", "after")
    rows = [[_cut_text(own.get(key)) for key in keys] for own in run.answers]
    return Table(("prompt", "true answer", "before", "after"), rows, text=(1, 2, 3)) if rows else None


def describe_answers(run: RunData) -> str:
    """Describe the tokens that answers are made of: the likeliest, or drawn, and how."""
    own = run.config.get("evaluation", {})
    if not (temperature := own.get("temperature", 0.0)):
        return "the likeliest tokens"
    of = "" if (top_p := own.get("top_p", 1.0)) == 1 else f" from {format_share(top_p)} of the probability"
    return f"tokens drawn at temperature {temperature:g}{of}, by the same draws,"


def tabulate_benchmarks(run: RunData) -> Table | None:
    """Tabulate what lm-evaluation-harness has found: a row a task and metric, a column a model, with standard errors."""
    if not run.benchmarks:
        return None
    models = list(dict.fromkeys((str(own["model"]), int(own["round"])) for own in run.benchmarks))
    found: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for own in run.benchmarks:
        error = own.get("error")
        value = format_number(own["value"], ".4f") + ("" if error is None else f" ± {format_number(error, '.4f')}")
        name = own["metric"] if own["filter"] == "none" else f"{own['metric']} ({own['filter']})"
        found.setdefault((own["task"], name), {})[str(own["model"]), int(own["round"])] = value
    heads = ["base" if model == "base" else f"{model}, round {at}" for model, at in models]
    rows = [[task, name, *(own.get(model, NOTHING) for model in models)] for (task, name), own in found.items()]
    return Table(("task", "metric", *heads), rows, text=(1,))


def _cut_text(text: str | None) -> str:
    """Cut a long text, and say so; an empty answer is one."""
    if text is None:
        return NOTHING
    return f"{text[:LONGEST]} …" if len(text) > LONGEST else text or "(empty)"


def tabulate_fairness(run: RunData) -> Table | None:
    """Tabulate how evenly gains and losses are spread over the clients at the last evaluation."""
    gains = run.gains()
    if not gains or len(gains[-1][1]) < 2:
        return None
    last, of_clients = gains[-1]
    losses = [next(r for r in run.records if r.round == last).scores[f"client/{k}"].loss for k in of_clients]
    rows = {
        "gain since round 0": (spread(list(of_clients.values()), gains=True), "+.3f"),
        "held-out loss": (spread(losses, gains=False), ".3f"),
    }
    signed = {"worst", "cvar_20", "p10", "p50", "p90"}
    text = [
        [title, *(format_number(found.get(key), form if key in signed else ".3f") for key in SPREAD)]
        for title, (found, form) in rows.items()
        if found
    ]
    table = Table((f"{run.unit}, round {last}", *SPREAD.values()), text)
    return _leave_out_empty(table) if text else None


def _leave_out_empty(table: Table) -> Table:
    """Leave out the columns of numbers in which every row has a dash, as Jain's index where some clients lost."""
    kept = [i for i in range(len(table.columns)) if any(row[i] != NOTHING for row in table.rows)]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


def tabulate_clients(run: RunData) -> Table | None:
    """Tabulate the clients: what each holds, how often it trained, and its held-out loss."""
    if not run.num_clients:
        return None
    took_part = [c.client for r in run.records for c in r.clients]
    rows = [_format_client(run, client, took_part.count(client)) for client in range(run.num_clients)]
    held = ("client", f"main {run.group}", "its share", "documents", run.held)
    columns = (*held, "rounds trained", "start", "final", "gain")
    if len(run.topics) < 2:  # all clients hold the same
        return Table((columns[0], *columns[3:]), [(row[0], *row[3:]) for row in rows])
    return Table(columns, rows, text=(1,))


def _format_client(run: RunData, client: int, rounds: int) -> list[str]:
    rows = run.split.get("clients", ())
    held = rows[client] if client < len(rows) else ()
    _, losses = run.losses(f"client/{client}")
    start, end = (losses[0], losses[-1]) if losses else (None, None)
    gain = start - end if start is not None and end is not None and len(losses) > 1 else None
    return [
        run.label_client(client),
        run.dominant_topic(client) or NOTHING,
        format_share(max(held) / sum(held)) if sum(held) else NOTHING,
        f"{sum(held):,}" if held else NOTHING,
        f"{run.split['tokens'][client]:,}" if held else NOTHING,
        str(rounds),
        format_number(start),
        format_number(end),
        format_number(gain, "+.3f"),
    ]


def list_settings(run: RunData) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """List the settings that differ from the defaults, and all others; those without a value are left out."""
    changed = find_changes(Experiment().model_dump(), run.config)
    own: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for key, text in format_settings(run.config):
        (own if any(key == k or key.startswith(f"{k}.") for k in changed) else rest).append((key, text))
    return own, rest


def format_settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write settings as pairs of their dotted key and a text; those without a value are left out."""
    return [
        (key, spell_value(value) or NOTHING) for key, value in flatten_settings(values).items() if value is not None
    ]


SECRET = "privacy.secret="  # what noise follows from is in the manifest alone
ELSEWHERE = ("notes", "command", "argv", "parent", "abandoned", "continued", "config")  # in the manifest


def list_provenance(run: RunData) -> list[tuple[str, str]]:
    """List versions, machine, data, memory, seconds and bytes, as far as the run recorded them."""
    rest = {k: v for k, v in run.manifest.items() if k not in ELSEWHERE}
    rest |= {k: [text for text in v if not text.startswith(SECRET)] for k, v in rest.items() if k == "found"}
    rest |= {"status": run.status} if run.manifest else {}
    moved = [
        (f"bytes {way}", f"{total:,} ({format_bytes(total)})")
        for way, total in (
            ("up", sum(r.bytes_up for r in run.records)),
            ("down", sum(r.bytes_down for r in run.records)),
        )
        if total
    ]
    memory = [v for v in run.probe("peak_memory_mb")[1] if math.isfinite(v)]
    peak = [("peak memory", format_bytes(1e6 * max(memory)))] if memory else []
    speed = run.metrics.get("tokens_per_second")
    fast = [(f"{run.targets} per second of training", f"{speed:,.0f}")] if speed else []
    return [*format_settings(rest), *peak, *fast, *moved]


def find_command(run: RunData) -> str:
    """Find the command that repeats the run."""
    return str(run.manifest.get("command") or f"fedfault run {quote(run.folder / 'config.yaml')}")
