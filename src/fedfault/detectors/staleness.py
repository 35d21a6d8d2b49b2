"""SCAFFOLD's control variates make it worse: `stale_controls`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fedfault.records import Detector, Reading, Replace, RoundRecord
from fedfault.registry import register

DRAWS = 400
LEAST = 4  # control variates before their error is worth a look
ALIKE = 0.05  # of the squared gradient: clients and batches that differ by less are taken for the same
UNITS = (0.2, 5.0)  # |c_i| / |grad f_i| of control variates that are gradients


@register("detector")
def stale_controls() -> Detector:
    """SCAFFOLD's control variates c_i take the clients' steps further from the shared gradient than none would, and by far.

    A client's step goes along g - c_i + c in the place of g, with g the gradient of a batch. The statistic is the lower 95 %
    bound, by a Poisson bootstrap over clients and rounds, of the squared distance from grad f with them over that without,

    rho = sum (|(grad f_i - grad f) - (c_i - c)|^2 + sigma^2) / sum (|grad f_i - grad f|^2 + sigma^2)

    over the clients of all rounds so far, measured by the probe `gradients`; sigma^2 is that of a draw of at most four
    examples, `drift_within`. Below 1 they help, above 1 they hurt, which is the threshold by theory. Where neither
    clients nor batches differ, 5 % of sum |grad f_i|^2 takes the place of the denominator.

    The effect is max(|log u|, log rho) with u = |c_i| / |grad f_i|, and has to reach a factor of five. u far from 1 says
    that they are in wrong units, as momentum or an adaptive optimiser make them. With IID clients there is nothing to
    correct, and c_i are noise of a few batches: small beside that of one, so that rho stays near 1.

    >>> from fedfault.testing.histories import history
    >>> detector = stale_controls()
    >>> own = {"gradient_norm": 1.0, "control_error": 99.0, "control_spread": 1.0, "control_age": 2.0}
    >>> last = detector.read(history(clients=[{}, {k: own for k in range(4)}]), {})[-1]
    >>> print(f"{last.statistic:.0f} > {detector.default_threshold:.0f}: {detector.explain(last)}")
    99 > 1: steps with control variates are 99.0 times as far from the shared gradient, squared, as without
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        # Distance with c_i and without, gradient, squared; and bootstrapped
        total, drawn = np.zeros(3), np.zeros((DRAWS, 3))
        age, count = 0.0, 0
        for r in records:
            own = [c.probes for c in r.clients if {"control_error", "gradient_norm"} <= set(c.probes)]
            if not own:
                yield None
                continue
            noise = r.probes.get("drift_within", 0.0)
            rows = np.array(
                [(p["control_error"] + noise, p["control_spread"] + noise, p["gradient_norm"] ** 2) for p in own]
            )
            total, drawn = total + rows.sum(axis=0), drawn + _draw_weights(r.round, len(rows)) @ rows
            age, count = age + sum(p["control_age"] for p in own), count + len(own)
            rho, low = float(_divide(total)), float(np.quantile(_divide(drawn), 0.05))
            units = r.probes.get("control_ratio", 1.0)
            if count < LEAST or low <= 0 or units <= 0:
                yield None
                continue
            evidence = {"rho": rho, "lower_bound": low, "size_ratio": units, "mean_age": age / count}
            yield Reading(r.round, low, max(abs(math.log(units)), math.log(max(rho, low))), evidence)

    def explain(r: Reading) -> str:
        ratio = r.evidence.get("size_ratio", 1.0)
        units = (
            "" if UNITS[0] <= ratio <= UNITS[1] else f"; they are {ratio:.3g} times as large as gradients: wrong units"
        )
        return (
            f"steps with control variates are {r.evidence['rho']:.1f} times as far from the shared gradient, squared, as "
            f"without{units}"
        )

    return Detector(
        follow,
        explain,
        reads=("client/control_error", "client/gradient_norm"),
        advice=("federation.algorithm.option=I", "federation.participation_rate higher", "federation.algorithm=fedavg"),
        remedies=(Replace("federation.algorithm.option", "I", old="II"), Replace("federation.algorithm", "fedavg")),
        min_effect=math.log(5),
        min_std=0.1,
        default_threshold=1.0,
        leads_to=("client_drift", "oscillation", "divergence", "forgetting", "negative_transfer", "slow_convergence"),
    )


def _divide(sums: np.ndarray) -> np.ndarray:
    """Divide sums (..., 3) of squared distances with and without c_i, and of squared gradient norms, into rho (...)."""
    error, spread, square = np.moveaxis(sums, -1, 0)
    rho: np.ndarray = error / np.maximum(np.maximum(spread, ALIKE * square), 1e-300)
    return rho


def _draw_weights(round: int, n: int) -> np.ndarray:
    """Draw how often each of the n clients of a round is in each bootstrap sample, (400, n), the same for the same round.

    Poisson numbers instead of draws from all rounds, so that a longer history leaves earlier readings alone (Hanley and
    MacGibbon, Comput. Methods Programs Biomed. 83, 2006).
    """
    return np.random.default_rng(round).poisson(1.0, (DRAWS, n))
