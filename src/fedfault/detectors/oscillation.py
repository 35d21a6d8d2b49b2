"""The loss goes up and down from round to round."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Multiply, Reading, RoundRecord
from fedfault.registry import register

WINDOW = 6  # steps from one evaluation to the next
WARM_UP = 1  # evaluations that are passed over: the first step from the untrained model is the largest
LEAST = 4  # evaluations before the path is worth a look
STILL = 0.003  # nats a step: less is no movement, and the path is not divided by it


@register("detector")
def oscillation() -> Detector:
    """The validation loss goes up and down: the path that it takes is far longer than the way that it gets.

    With the n last steps d = L_t - L_{t-1}, six at most, the statistic is log Q, Q = sum |d| / max(|sum d|, 0.003 n); it is
    0 when the loss only falls. The effect is the standard deviation of the loss about a straight line over the same window,
    in nats per token. The evidence has the mean cosine between consecutive updates of the server: below zero it overshoots.

    >>> from fedfault.testing.histories import history
    >>> detector = oscillation()
    >>> last = detector.read(history([6.0, 4.0, 3.5, 4.0, 3.4, 3.9]), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold:.2f}: {detector.explain(last)}")
    3.04 > 1.10: the validation loss goes up and down by about 0.33 nats: its path is 21.0 times as long as the way it gets
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        passed, window = 0, deque[tuple[int, float, float | None]](maxlen=WINDOW + 1)  # round, loss, cosine
        for r in records:
            if "validation" not in r.scores:
                yield None
                continue
            if passed >= WARM_UP:
                window.append((r.round, r.scores["validation"].loss, r.probes.get("round_cosine")))
            passed += 1
            yield _measure_swing(window) if len(window) >= LEAST else None

    return Detector(
        follow,
        lambda r: (
            f"the validation loss goes up and down by about {r.effect:.2f} nats: its path is "
            f"{r.evidence['path_over_way']:.1f} times as long as the way it gets"
        ),
        reads=("score/validation",),
        advice=(
            "federation.participation_rate higher",
            "federation.algorithm.server_lr or its momentum lower",
            "training.local_steps fewer",
        ),
        remedies=(Multiply("federation.algorithm.server_lr", 0.5), Multiply("training.lr", 0.5)),
        min_effect=0.01,  # nats
        min_std=0.1,
        default_threshold=math.log(3),
        leads_to=("divergence", "forgetting", "negative_transfer", "slow_convergence"),
    )


def _measure_swing(window: Sequence[tuple[int, float, float | None]]) -> Reading | None:
    """Measure path and way of the loss in a window of (round, loss, cosine of the update); None where one is no number."""
    rounds, losses, cosines = zip(*window, strict=True)
    part = np.array(losses)
    if not np.isfinite(part).all():
        return None
    steps = np.diff(part)
    way = max(abs(float(steps.sum())), STILL * len(steps))
    path = float(np.abs(steps).sum())
    rest = part - np.polyval(np.polyfit(rounds, part, 1), rounds)
    sd = float(np.sqrt((rest**2).sum() / max(len(rest) - 2, 1)))
    turns = [cosine for cosine in cosines[1:] if cosine is not None]
    evidence = {"path_over_way": path / way, "swing": sd}
    evidence |= {"round_cosine": float(np.mean(turns))} if turns else {}
    return Reading(rounds[-1], math.log(max(path / way, 1.0)), sd, evidence)
