"""The loss rises and stays up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedfault.detectors.hostile import find_longest
from fedfault.records import Detector, Multiply, Reading, Records, RoundRecord, get_validation_losses
from fedfault.registry import register

HALF = 0.5  # of the improvement
SIGMA = 0.05  # nats: noise of a validation loss between rounds, where no controls say
LEAST = 0.01  # nats: falling losses have no residuals
LONG = 10.0  # times the median update: one client is most of the average of ten
BROKEN = "server_not_finite"  # the probe of a round after which the server's model is not finite, whatever loss is told
LOOK = (
    "look at what the client with the long updates trains on and sends",
    "federation.aggregation=geometric_median",
)


@register("detector")
def divergence() -> Detector:
    """The validation loss rises and stays up, or it or the server's model is no longer a number.

    The statistic is a CUSUM of the loss L_t above its best value so far:
    C_t = max(0, C_{t-1} + (L_t - min_{s<t} L_s) / sigma - 1/2), C_0 = 0, where sigma is the noise of healthy losses:
    1.4826 times the median absolute residual of the controls' losses about their best falling fit. The effect is
    L_t - min_s L_s in nats per token. A run that ends with half of what it had gained given back has failed. Where since the
    best round a client has sent an update ten times as long as the median one, the sentence names it, and the first advice
    is to look there: a lower learning rate for all does not mend it.

    >>> from fedfault.testing.histories import history
    >>> detector = divergence()
    >>> last = detector.read(history([4.0, 3.0, 3.2, 3.3]), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold}: {detector.explain(last)}")
    9.00 > 5.0: the validation loss is 0.30 nats above its best value and does not come back

    Reference: Page, Biometrika 41 (1954).
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        first, C, best = None, 0.0, math.inf
        long: dict[str, float] = {}  # the longest update since the best round, if it is long
        for r in records:
            score, reading = r.scores.get("validation"), None
            long = max(long, _find_long(r), key=lambda found: found.get("times", 0.0))
            if score is not None:
                loss, first = score.loss, score.loss if first is None else first
                if not math.isfinite(loss):
                    known = {"best": best} if math.isfinite(best) else {}
                    known |= {BROKEN: 1.0} if r.probes.get(BROKEN) else {}
                    reading = Reading(r.round, math.inf, math.inf, long | known)
                elif math.isfinite(best):
                    C = max(0.0, C + (loss - best) / scale.get("sigma", SIGMA) - 0.5)
                    long = {} if loss <= best else long
                    best = min(best, loss)
                    reading = Reading(r.round, C, loss - best, _describe_rise(first, best, loss) | long)
                else:
                    best = loss
            yield reading

    def explain(r: Reading) -> str:
        if BROKEN in r.evidence:
            return f"the server's model is not finite{_name_long(r)}"
        if not math.isfinite(r.effect):
            return f"the validation loss is not a finite number{_name_long(r)}"
        return f"the validation loss is {r.effect:.2f} nats above its best value and does not come back{_name_long(r)}"

    return Detector(
        follow,
        explain,
        reads=("score/validation",),
        advice=("training.lr at half", "training.max_grad_norm lower", "federation.on_failure=rollback"),
        advise=lambda r: LOOK if "times" in r.evidence else (),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.05,  # nats
        min_std=1.0,
        default_threshold=5.0,
        learn_scale=lambda controls: {"sigma": max(_estimate_noise(controls), LEAST)},
        is_failure=lambda last: last.evidence.get("given_back", math.inf) >= HALF,
        leads_to=(
            "oscillation",
            "forgetting",
            "negative_transfer",
            "slow_convergence",
            "representation_collapse",
            "fairness_gap",
        ),
    )


def _find_long(r: RoundRecord) -> dict[str, float]:
    """The client whose update is far longer than the median one, as evidence; empty where none is."""
    client, times = find_longest(r) or (0, 0.0)
    return {"client": float(client), "times": times, "long_in": float(r.round)} if times >= LONG else {}


def _name_long(r: Reading) -> str:
    """The client whose update is far longer than the median one, if there is one."""
    if "times" not in r.evidence:
        return ""
    client, times, round = (r.evidence[name] for name in ("client", "times", "long_in"))
    return f"; in round {round:.0f} the update of client {client:.0f} was {times:.3g} times as long as the median one"


def _describe_rise(first: float, best: float, loss: float) -> dict[str, float]:
    """The loss beside its best value, and the share that was given back of what it had gained since the first, if any."""
    evidence = {"loss": loss, "best": best, "rise": loss - best}
    return evidence | ({"given_back": (loss - best) / (first - best)} if first > best else {})


def _estimate_noise(controls: Sequence[Records]) -> float:
    """The noise of a validation loss between rounds, in nats: residuals about the best falling fit of each control."""
    from scipy.optimize import isotonic_regression

    residuals = []
    for records in controls:
        losses = np.array([v for v in get_validation_losses(records)[1] if math.isfinite(v)])
        if len(losses) > 2:
            residuals.append(losses - isotonic_regression(losses, increasing=False).x)
    return 1.4826 * float(np.median(np.abs(np.concatenate(residuals)))) if residuals else SIGMA
