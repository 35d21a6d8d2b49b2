"""Loops that do not exchange what they should, seen in the adapters that clients sent: `fedfault diagnose --adapters`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from fedfault.records import Detector, Reading, RoundRecord
from fedfault.registry import register

KEPT = 0.8  # of what sets a client apart, still there after the next round
GROWTH = 1.2  # of the variance between clients, from the middle round on
CHAINED = 0.25  # of the way to the adapter of the client before
FEW = 2.0  # -log10 p: one random order in a hundred
SCALED = 0.25  # |log2|: a factor of 1.19
OFF = 0.005  # of the sum of the server's weights: one of 199 clients that is lost

Follow = Callable[[Iterable[RoundRecord], Mapping[str, float]], Iterator[Reading | None]]


def _read_probes(measure: Callable[..., tuple[float, float]], *names: str) -> Follow:
    """A reading of every round in which all of these probes were taken; measure: (values) -> statistic, effect."""

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for r in records:
            values = [r.probes[name] for name in names if name in r.probes and math.isfinite(r.probes[name])]
            whole = len(values) == len(names)
            yield Reading(r.round, *measure(*values), dict(zip(names, values, strict=True))) if whole else None

    return follow


@register("detector")
def not_averaged() -> Detector:
    """Clients train and send, but each goes on with its own adapter: what they send is never averaged.

    The statistic is how much of what sets a client apart from the others is still there after the next round, over all
    rounds: 0 where clients start together, 1 where each goes on with its own. Clients whose data differ do the same again
    and are at 1, too; only without averaging does the variance between them also grow, which is the effect.

    >>> from fedfault.testing.histories import history
    >>> detector = not_averaged()
    >>> last = detector.read(history(probes={"kept_apart": [None, 1.02], "spread_growth": [None, 1.7]}), {})[-1]
    >>> print(detector.explain(last))
    clients were never averaged: each keeps 102 % of what sets it apart, and the variance between them grows by 1.7
    """
    return Detector(
        _read_probes(lambda kept, growth: (kept, growth), "kept_apart", "spread_growth"),
        lambda r: (
            f"clients were never averaged: each keeps {100 * r.statistic:.0f} % of what sets it apart, and the variance "
            f"between them grows by {r.effect:.1f}"
        ),
        reads=("kept_apart", "spread_growth"),
        advice=("load the server's adapter into the model before a client trains",),
        min_effect=GROWTH,
        min_std=0.05,
        default_threshold=KEPT,
        calibrated=False,
        is_failure=lambda last: True,
        leads_to=("slow_convergence", "client_drift", "negative_transfer"),
    )


@register("detector")
def leaked_factor() -> Detector:
    """A client goes on from the one before it: from its adapter, from a factor of it or from the state of its optimiser.

    A loop over clients with one model in memory has this defect where it does not load everything again: with a factor that
    is to stay with its client, client i + 1 gets that of client i. One optimiser for all clients does the same to where
    they end, as it takes the momentum of client i along, and adapters do not tell these two apart. The statistic is -log10
    of the share of random orders of the clients in which they look as chained as in their own; the effect is how far a
    client starts on the way to the one before, estimated too low where the clients are few.

    >>> from fedfault.testing.histories import history
    >>> detector = leaked_factor()
    >>> last = detector.read(history(probes={"chained": [None, 0.97], "chained_p": [None, 0.001]}), {})[-1]
    >>> print(f"{last.statistic:.0f} > {detector.default_threshold:.0f}: {detector.explain(last)}")
    3 > 2: clients go on from the one before them, 97 % of the way: from its adapter, a factor of it, or its optimiser
    """
    return Detector(
        _read_probes(lambda share, p: (-math.log10(max(p, 1e-9)), max(share, 0.0)), "chained", "chained_p"),
        lambda r: (
            f"clients go on from the one before them, {100 * r.effect:.0f} % of the way: from its adapter, a factor of it, "
            "or its optimiser"
        ),
        reads=("chained", "chained_p"),
        advice=(
            "load everything that a client should start from before it trains, its own factor included, and make its "
            "optimiser anew",
        ),
        min_effect=CHAINED,
        min_std=0.1,
        default_threshold=FEW,
        calibrated=False,
        leads_to=("slow_convergence", "client_drift"),
    )


@register("detector")
def moved_frozen() -> Detector:
    """A part of the adapter that should stand still has moved, such as the factor A of FFA-LoRA.

    One adapter is enough, and no threshold is needed: what is frozen is equal to the bit.

    >>> from fedfault.testing.histories import history
    >>> detector = moved_frozen()
    >>> last = detector.read(history(probes={"frozen_moved": [None, 2.0]}), {})[-1]
    >>> print(f"{last.statistic}: {detector.explain(last)}")
    inf: what should stand still has moved in 2 of the round's adapters
    """
    return Detector(
        _read_probes(lambda moved: (math.inf if moved > 0 else 0.0, moved), "frozen_moved"),
        lambda r: f"what should stand still has moved in {r.effect:.0f} of the round's adapters",
        reads=("frozen_moved",),
        advice=("set requires_grad to False before the optimiser is made, and leave frozen parts out of the average",),
        min_effect=0.0,
        min_std=0.1,
        default_threshold=0.0,
        calibrated=False,
    )


@register("detector")
def wrong_scale() -> Detector:
    """The product B A is not multiplied by alpha / r where it should be, or twice.

    The statistic is |log2 of the factor| by which adapters change the weights too much or too little.

    >>> from fedfault.testing.histories import history
    >>> detector = wrong_scale()
    >>> last = detector.read(history(probes={"scale_ratio": [None, 2.0]}), {})[-1]
    >>> print(detector.explain(last))
    B A is scaled wrongly: it changes the weights 2 times as much as it should
    """
    return Detector(
        _read_probes(lambda ratio: (abs(math.log2(ratio)) if ratio > 0 else math.inf, ratio), "scale_ratio"),
        lambda r: f"B A is scaled wrongly: it changes the weights {r.effect:.3g} times as much as it should",
        reads=("scale_ratio",),
        advice=(
            "state the rank of the factors, and for one rank one lora_alpha, in the configuration of every adapter; where "
            "products are averaged, multiply B A by alpha / r, and divide by it when they become factors again",
        ),
        min_effect=0.0,
        min_std=0.1,
        default_threshold=SCALED,
        calibrated=False,
        leads_to=("divergence", "oscillation", "slow_convergence"),
    )


@register("detector")
def wrong_average() -> Detector:
    """The server's average is none: its weights do not add up to 1, differ between A and B, or go backwards.

    The weights by which it has averaged are solved for, from the clients' models, its own and the one before. They add up
    to 1 with the weight of the one before, whatever the weights and the learning rate of the server are. The statistic is
    by how much they do not, or by how much a client's shares in A and in B differ, or 1 where the server moves against what
    clients have learned.

    >>> from fedfault.testing.histories import history
    >>> detector = wrong_average()
    >>> probes = {"average_total": [None, 0.8], "average_split": [None, 0.0], "average_step": [None, 0.8]}
    >>> last = detector.read(history(probes=probes), {})[-1]
    >>> print(f"{last.statistic:.1f} > {detector.default_threshold}: {detector.explain(last)}")
    0.2 > 0.005: the weights of the clients in the server's model add up to 0.8 and not to 1
    """
    names = ("average_total", "average_split", "average_step")

    def explain(r: Reading) -> str:
        total, split, step = (r.evidence[name] for name in names)
        if step < 0:
            return f"the server moves against what clients have learned: their weights add up to {step:.3g}"
        if abs(total - 1) >= split:
            return f"the weights of the clients in the server's model add up to {total:.3g} and not to 1"
        return f"the server averages the factors of the adapters by weights of their own, which are up to {split:.2f} apart"

    return Detector(
        _read_probes(lambda total, split, step: (max(abs(total - 1), split, float(step < 0)), 1.0), *names),
        explain,
        reads=names,
        advice=(
            "divide by the sum of the weights of those clients whose models are added, and take the same weights for all "
            "parts of the model",
        ),
        min_effect=0.0,
        min_std=0.1,
        default_threshold=OFF,
        calibrated=False,
        leads_to=("divergence", "oscillation", "slow_convergence", "forgetting", "negative_transfer", "rank_collapse"),
    )
