"""metrics.json: what a run came to, from its records alone. What was not measured is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.measures.fairness import backward_transfer, measure_fairness
from fedfault.measures.punctuality import bytes_per_client_round, elapsed_seconds, measure_punctuality
from fedfault.records import ANSWERS, Records, RoundRecord, bits_per_byte

LOSS, LABEL_LOSS = "nats per token", "nats per example; of a regression the squared error"
IN_LOSS = ("initial", "final", "best", "fairness", "backward_transfer")  # their losses, gains and falls have its unit
UNITS = {
    "forgetting": "nats per token",
    "bytes_up": "bytes",
    "bytes_down": "bytes",
    "bytes_per_client_round": "bytes",
    "tokens": "targets",
    "tokens_per_second": "targets per second",
    "probe_seconds": "seconds",
    "probe_share": "share of all seconds",
    "peak_memory_mb": "MB (10^6 bytes)",
}


def summarise_run(
    records: Records,
    bytes_per_token: Mapping[str, float] | None = None,
    target: tuple[str, float] | None = None,
    labelled: bool = False,
) -> dict[str, Any]:
    """Return what metrics.json says: scores at the start, the end and the best round, fairness, forgetting, cost.

    `clock` is there where hardware is simulated; fairness is over all clients that have texts of their own, drawn or not.

    bytes_per_token: of each evaluation set, for bits per byte; target: a metric of the validation set and the value that it
    is to reach; labelled: whether labels or scores were learned, of whose loss there is no perplexity.
    """
    labelled = labelled or any(s.metrics.keys() - {*ANSWERS} for r in records for s in r.scores.values())
    scored = [r for r in records if r.scores]
    out: dict[str, Any] = {"rounds": records[-1].round if records else 0}
    if scored:
        first, last = scored[0], scored[-1]
        out["initial"] = _collect_scores(first, bytes_per_token or {}, labelled)
        out["final"] = _collect_scores(last, bytes_per_token or {}, labelled)
        if (best := find_best_round(records)) is not None:
            out["best"] = {"round": best, "loss": next(r for r in records if r.round == best).scores["validation"].loss}
        if "general" in last.scores:
            out["forgetting"] = last.scores["general"].loss - first.scores["general"].loss
        if spread := _measure_fairness(first, last):
            out["fairness"] = spread
        if topics := [name for name in last.scores if name.startswith("topic/")]:
            out["backward_transfer"] = {name: _measure_backward_transfer(records, name) for name in topics}
    if target is not None:
        out["time_to_target"] = _find_time_to_target(records, *target)
    if clock := measure_punctuality(records):
        out["clock"] = clock
    out |= _sum_cost(records)
    loss = dict.fromkeys(IN_LOSS, LABEL_LOSS if labelled else LOSS)
    return {**out, "units": {key: unit for key, unit in {**loss, **UNITS}.items() if key in out}}


def find_best_round(records: Sequence[RoundRecord]) -> int | None:
    """Return the round with the lowest finite validation loss, the first of equals; None without one."""
    scored = [(r.scores["validation"].loss, r.round) for r in records if "validation" in r.scores]
    finite_ones = [(loss, t) for loss, t in scored if math.isfinite(loss)]
    return min(finite_ones)[1] if finite_ones else None


def _collect_scores(
    record: RoundRecord, bytes_per_token: Mapping[str, float], labelled: bool
) -> dict[str, dict[str, float]]:
    return {
        name: {"loss": s.loss, **({} if labelled else {"perplexity": s.perplexity}), **s.metrics, "tokens": s.tokens}
        | ({"bits_per_byte": bits_per_byte(s.loss, bytes_per_token[name])} if name in bytes_per_token else {})
        for name, s in record.scores.items()
    }


def _find_time_to_target(records: Records, metric: str, value: float) -> dict[str, Any]:
    """Return the first round in which the metric reaches the value, and the seconds until then; neither if it never does.

    `seconds` are those of this machine, `simulated_seconds` those of the simulated hardware where there is any.
    """
    out: dict[str, Any] = {"metric": metric, "target": value}
    scored = [r for r in records if "validation" in r.scores]
    reached = [r.round for r in scored if r.scores["validation"].metrics.get(metric, -math.inf) >= value]
    if reached:
        out["round"] = reached[0]
        out["seconds"] = sum(sum(r.seconds.values()) for r in records if r.round <= reached[0])
        if spent := elapsed_seconds(records):
            out["simulated_seconds"] = spent[reached[0]]
    return out


def _measure_fairness(first: RoundRecord, last: RoundRecord) -> dict[str, dict[str, float]]:
    """Return how unequal the clients' losses are at the end, and their gains since the start."""
    names = [name for name in last.scores if name.startswith("client/") and name in first.scores]
    losses = [last.scores[name].loss for name in names]
    gains = [first.scores[name].loss - last.scores[name].loss for name in names]
    found = {"losses": measure_fairness(losses, gains=False), "gains": measure_fairness(gains, gains=True)}
    return {name: spread for name, spread in found.items() if spread}


def _measure_backward_transfer(records: Records, name: str) -> float:
    return backward_transfer([r.scores[name].loss for r in records if name in r.scores])[-1]


def _sum_cost(records: Records) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    for r in records:
        for part, spent in r.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + spent
    probes = {part.removeprefix("probe/"): spent for part, spent in seconds.items() if part.startswith("probe/")}
    tokens = sum(r.tokens for r in records)
    out: dict[str, Any] = {
        "bytes_up": sum(r.bytes_up for r in records),
        "bytes_down": sum(r.bytes_down for r in records),
        "tokens": tokens,
    }
    if each := bytes_per_client_round(records):
        out["bytes_per_client_round"] = each
    if seconds.get("train"):
        out["tokens_per_second"] = tokens / seconds["train"]
    if probes:
        out["probe_seconds"] = probes
        out["probe_share"] = sum(probes.values()) / sum(seconds.values())
    if memory := [r.probes["peak_memory_mb"] for r in records if "peak_memory_mb" in r.probes]:
        out["peak_memory_mb"] = max(memory)
    return out
