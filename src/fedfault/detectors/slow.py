"""The loss hardly falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Reading, Records, get_validation_losses, multiply_work
from fedfault.registry import register

SHARE = 0.75  # of the improvement that controls make: they get there well before the end, so that twice as late is seen


@register("detector")
def slow_convergence() -> Detector:
    """Rounds to a loss that healthy runs reach, counted on while it is not reached: plateaus and slow convergence.

    The target, fixed by the controls, is 75 % of their median improvement L_0 - L_T. The statistic is min(round in which the
    target is reached, interpolated; the present round). Effect: the same over the median of the controls. Evidence:
    the Theil-Sen slope of the loss over the last six evaluations (Sen, JASA 63, 1968), nats a round.
    """

    def read(records: Records, scale: Mapping[str, float]) -> list[Reading]:
        rounds, losses = get_validation_losses(records)
        finite = [i for i, v in enumerate(losses) if math.isfinite(v)]
        if "drop" not in scale or finite[:1] != [0]:
            return []
        rounds, losses = [rounds[i] for i in finite], [losses[i] for i in finite]
        found = []
        for i in range(1, len(losses)):
            taken = _reached(rounds[: i + 1], losses[: i + 1], losses[0] - scale["drop"])
            late = min(taken, float(rounds[i]))
            gained = losses[0] - losses[i]
            evidence = {"rounds": late, "usual_rounds": scale["rounds"], "gained": gained, "target": scale["drop"]}
            evidence |= _slope(rounds[: i + 1], losses[: i + 1])
            found.append(Reading(rounds[i], late, late / scale["rounds"], evidence))
        return found

    def explain(r: Reading) -> str:
        gained = r.evidence["gained"]
        way = f"fallen by {gained:.2f}" if gained >= 0 else f"risen by {-gained:.2f}"
        return (
            f"the validation loss has {way} nats; healthy runs gain "
            f"{r.evidence['target']:.2f} in {r.evidence['usual_rounds']:.1f} rounds"
        )

    return Detector(
        read,
        explain,
        advice=("training.lr higher", "training.local_steps more", "federation.algorithm=fedadam"),
        remedies=multiply_work(2.0),
        min_effect=1.5,  # times the controls' median
        min_std=0.5,
        default_threshold=None,
        learn_scale=_target,
    )


def _reached(rounds: Sequence[int], losses: Sequence[float], target: float) -> float:
    """The interpolated round in which the loss first is at the target; infinite when it never is."""
    for i in range(1, len(losses)):
        if losses[i] <= target:
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i]) if losses[i - 1] > losses[i] else 1.0
            return rounds[i - 1] + min(max(share, 0.0), 1.0) * (rounds[i] - rounds[i - 1])
    return math.inf


def _slope(rounds: Sequence[int], losses: Sequence[float]) -> dict[str, float]:
    last = list(zip(rounds[-6:], losses[-6:], strict=True))
    if len(last) < 3:
        return {}
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(last) for b in last[i + 1 :]]
    return {"slope": float(np.median(slopes))}


def _target(controls: Sequence[Records]) -> dict[str, float]:
    curves = [(rounds, losses) for rounds, losses in map(get_validation_losses, controls) if losses]
    if not curves:
        return {}
    drop = SHARE * float(np.median([losses[0] - losses[-1] for _, losses in curves]))
    times = [min(_reached(rounds, losses, losses[0] - drop), rounds[-1]) for rounds, losses in curves]
    return {"drop": drop, "rounds": float(np.median(times))} if drop > 0 else {}
