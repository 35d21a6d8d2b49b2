"""The loss hardly falls: `slow_convergence`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Reading, Records, get_validation_losses, multiply_work
from fedfault.registry import register

SHARE = 0.75  # of the improvement that controls make: they get there well before the end, so that twice as late is seen


@register("detector")
def slow_convergence() -> Detector:
    """The loss takes more rounds than healthy runs do, as on a plateau: rounds until it is where they get.

    The target, fixed by the controls, is 75 % of their median improvement L_0 - L_T. The statistic is the round in which the
    run reaches it, interpolated, or the present round while it has not. The effect is the same over the median of the
    controls. Without controls there is no reading. The evidence has the Theil-Sen slope of the loss over the last six
    evaluations (Sen, JASA 63, 1968), in nats a round.

    >>> from fedfault.testing.histories import history
    >>> detector = slow_convergence()
    >>> scale = detector.learn_scale([history([5.0, 4.5, 4.0, 3.5, 3.0])] * 3)
    >>> last = detector.read(history([5.0, 4.9, 4.8, 4.7, 4.6, 4.5]), scale)[-1]
    >>> print(f"{last.statistic} rounds, {last.effect:.1f} times as many: {detector.explain(last)}")
    5.0 rounds, 1.7 times as many: the validation loss has fallen by 0.50 nats; healthy runs gain 1.50 in 3.0 rounds
    """

    def read(records: Records, scale: Mapping[str, float]) -> list[Reading]:
        rounds, losses = get_validation_losses(records)
        finite = [i for i, v in enumerate(losses) if math.isfinite(v)]
        if "drop" not in scale or finite[:1] != [0]:
            return []
        rounds, losses = [rounds[i] for i in finite], [losses[i] for i in finite]
        found = []
        for i in range(1, len(losses)):
            taken = _find_round(rounds[: i + 1], losses[: i + 1], losses[0] - scale["drop"])
            late = min(taken, float(rounds[i]))
            gained = losses[0] - losses[i]
            evidence = {"rounds": late, "usual_rounds": scale["rounds"], "gained": gained, "target": scale["drop"]}
            evidence |= _estimate_slope(rounds[: i + 1], losses[: i + 1])
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
        reads=("score/validation",),
        advice=("training.lr higher", "training.local_steps more", "federation.algorithm=fedadam"),
        remedies=multiply_work(2.0),
        min_effect=1.5,  # times the controls' median
        min_std=0.5,
        default_threshold=None,
        learn_scale=_learn_target,
    )


def _find_round(rounds: Sequence[int], losses: Sequence[float], target: float) -> float:
    """Find the round, interpolated, in which the loss first is at the target; infinite when it never is."""
    for i in range(1, len(losses)):
        if losses[i] <= target:
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i]) if losses[i - 1] > losses[i] else 1.0
            return rounds[i - 1] + min(max(share, 0.0), 1.0) * (rounds[i] - rounds[i - 1])
    return math.inf


def _estimate_slope(rounds: Sequence[int], losses: Sequence[float]) -> dict[str, float]:
    """The Theil-Sen slope of the loss over the last six evaluations, in nats a round: empty for fewer than three."""
    last = list(zip(rounds[-6:], losses[-6:], strict=True))
    if len(last) < 3:
        return {}
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(last) for b in last[i + 1 :]]
    return {"slope": float(np.median(slopes))}


def _learn_target(controls: Sequence[Records]) -> dict[str, float]:
    """The improvement that a run has to make, in nats, and the rounds that the controls take to make it."""
    curves = [(rounds, losses) for rounds, losses in map(get_validation_losses, controls) if losses]
    if not curves:
        return {}
    drop = SHARE * float(np.median([losses[0] - losses[-1] for _, losses in curves]))
    times = [min(_find_round(rounds, losses, losses[0] - drop), rounds[-1]) for rounds, losses in curves]
    return {"drop": drop, "rounds": float(np.median(times))} if drop > 0 else {}
