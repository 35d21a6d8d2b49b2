"""The loss hardly falls: `slow_convergence`."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Reading, Records, RoundRecord, get_validation_losses, multiply_work
from fedfault.registry import register

WINDOW = 6  # evaluations that the slope is over
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

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        first: float | None = None
        last = deque[tuple[int, float]](maxlen=WINDOW)  # rounds and losses
        taken = math.inf
        for r in records:
            score, reading = r.scores.get("validation"), None
            if "drop" in scale and score is not None:
                first = score.loss if first is None else first
                if math.isfinite(score.loss) and math.isfinite(first):
                    last.append((r.round, score.loss))
                    taken = min(taken, _find_round(list(last)[-2:], first - scale["drop"]))
                    reading = _judge_pace(first, last, taken, scale) if len(last) > 1 else None
            yield reading

    def explain(r: Reading) -> str:
        gained = r.evidence["gained"]
        way = f"fallen by {gained:.2f}" if gained >= 0 else f"risen by {-gained:.2f}"
        return (
            f"the validation loss has {way} nats; healthy runs gain "
            f"{r.evidence['target']:.2f} in {r.evidence['usual_rounds']:.1f} rounds"
        )

    return Detector(
        follow,
        explain,
        reads=("score/validation",),
        advice=("training.lr higher", "training.local_steps more", "federation.algorithm=fedadam"),
        remedies=multiply_work(2.0),
        min_effect=1.5,  # times the controls' median
        min_std=0.5,
        default_threshold=None,
        learn_scale=_learn_target,
    )


def _judge_pace(first: float, last: Sequence[tuple[int, float]], taken: float, scale: Mapping[str, float]) -> Reading:
    """Judge a run by the round, `taken`, in which it has reached the target, or by the present one while it has not."""
    round, loss = last[-1]
    late = min(taken, float(round))
    evidence = {"rounds": late, "usual_rounds": scale["rounds"], "gained": first - loss, "target": scale["drop"]}
    return Reading(round, late, late / scale["rounds"], evidence | _estimate_slope(last))


def _find_round(curve: Sequence[tuple[int, float]], target: float) -> float:
    """Find the round, interpolated, in which the loss first is at the target; infinite when it never is.

    curve: rounds and losses.
    """
    for (before, was), (now, loss) in itertools.pairwise(curve):
        if loss <= target:
            share = (was - target) / (was - loss) if was > loss else 1.0
            return before + min(max(share, 0.0), 1.0) * (now - before)
    return math.inf


def _estimate_slope(last: Sequence[tuple[int, float]]) -> dict[str, float]:
    """The Theil-Sen slope of the loss over these rounds, in nats a round: empty for fewer than three."""
    if len(last) < 3:
        return {}
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(last, 2)]
    return {"slope": float(np.median(slopes))}


def _learn_target(controls: Sequence[Records]) -> dict[str, float]:
    """The improvement that a run has to make, in nats, and the rounds that the controls take to make it."""
    curves = [(rounds, losses) for rounds, losses in map(get_validation_losses, controls) if losses]
    if not curves:
        return {}
    drop = SHARE * float(np.median([losses[0] - losses[-1] for _, losses in curves]))
    times = [min(_find_round(list(zip(*curve, strict=True)), curve[1][0] - drop), curve[0][-1]) for curve in curves]
    return {"drop": drop, "rounds": float(np.median(times))} if drop > 0 else {}
