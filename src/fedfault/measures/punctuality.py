"""Measures of a run on the simulated clock: how long it took, which clients were in time, whose work was lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from fedfault.records import Fate, Records, RoundRecord, Turn

FATES: tuple[Fate, ...] = get_args(Fate)
ON_TIME: tuple[Fate, ...] = ("done", "excluded")  # a client that is left out keeps nobody waiting


def elapsed_seconds(records: Records) -> dict[int, float]:
    """Simulated seconds from the start to the end of each round, by round; empty where no clock is simulated.

    >>> elapsed_seconds([RoundRecord(0), RoundRecord(1, probes={"round_seconds": 2.0})])
    {0: 0.0, 1: 2.0}
    """
    if not any("round_seconds" in r.probes for r in records):
        return {}
    found, total = {}, 0.0
    for r in records:
        total += r.probes.get("round_seconds", 0.0)
        found[r.round] = total
    return found


def measure_punctuality(records: Records) -> dict[str, Any]:
    """Measure a run on the simulated clock; empty where no clock is simulated.

    seconds         simulated, of all rounds
    compliance      mean over the rounds in which any client had work: share of those clients that were done in time
    rounds_in_time  share of these rounds in which all were done in time
    regret          mean over rounds: seconds of the slowest client with all of its work, over those of the shortest round
                    in which the same clients have ranks of the same sum; 1 is the best
    dropped         how often nothing of a client arrived in time
    by_tier         tier -> how often its clients were drawn and met which fate, and the mean rank of those with work
    """
    if not (spent := elapsed_seconds(records)):
        return {}
    busy = [r for r in records if has_work(r)]
    regret = [v for r in records if math.isfinite(v := r.probes.get("regret", math.nan))]
    turns = [t for r in records for t in r.turns]
    out: dict[str, Any] = {"seconds": list(spent.values())[-1]}
    if busy:
        out["compliance"] = sum(r.probes["compliance"] for r in busy) / len(busy)
        out["rounds_in_time"] = sum(is_in_time(r) for r in busy) / len(busy)
    if regret:
        out["regret"] = sum(regret) / len(regret)
    out["dropped"] = sum(t.fate == "dropped" for t in turns)
    tiers = dict.fromkeys(t.tier for t in sorted(turns, key=lambda t: t.client))
    out["by_tier"] = {tier: count_fates([t for t in turns if t.tier == tier]) for tier in tiers}
    return out


def has_work(record: RoundRecord) -> bool:
    """Tell whether any client was asked to train."""
    return any(t.fate != "excluded" for t in record.turns)


def is_in_time(record: RoundRecord) -> bool:
    """Tell whether no client exceeded the deadline."""
    return all(t.fate in ON_TIME for t in record.turns)


def count_fates(turns: Sequence[Turn]) -> dict[str, float]:
    """Count how often clients were drawn and met each fate, with the mean rank of those that had work.

    >>> count_fates([Turn(0, "slow", 4, "done"), Turn(1, "slow", 0, "excluded")])
    {'drawn': 2, 'done': 1, 'late': 0, 'partial': 0, 'dropped': 0, 'excluded': 1, 'mean_rank': 4.0}
    """
    count, ranks = Counter(t.fate for t in turns), [t.rank for t in turns if t.rank > 0]
    found: dict[str, float] = {"drawn": len(turns), **{fate: count[fate] for fate in FATES}}
    return found | ({"mean_rank": sum(ranks) / len(ranks)} if ranks else {})


def bytes_per_client_round(records: Records) -> dict[str, float]:
    """Mean bytes a round: up from a client whose message arrived, and down to a client that was sent the model."""
    up = sum(len(r.clients) for r in records)
    down = sum(sum(t.fate != "excluded" for t in r.turns) if r.turns else len(r.clients) for r in records)
    found = {"up": (sum(r.bytes_up for r in records), up), "down": (sum(r.bytes_down for r in records), down)}
    return {way: total / count for way, (total, count) in found.items() if count}
