"""Clients pull in different directions, and the model pays for it: `client_drift`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedfault.records import Detector, Reading, Records, Replace, RoundRecord, multiply_work
from fedfault.registry import register

REAL = 0.1  # smallest variance ratio that is worth the name of drift
PERMUTATIONS = 400
ROUNDS = 3  # before the ratio is worth a look


@register("detector")
def client_drift() -> Detector:
    """Clients pull apart beyond the noise of their batches, and their mean update turns away from the descent direction.

    The statistic is the split-half variance ratio of the probe `gradients`, rho = sum_t V_b / sum_t V_w over the rounds so
    far, three at least: the variance of gradients between clients over that within them. Noise of the draws leaves it at
    zero on average where clients have the same data, and a finite IID split at a little more.

    A large ratio alone is a fact about the data, not a failure. The effect is the harm, 0 where rho < 0.1: 1 - a / a_0, with
    a the median over the rounds of cos(mean update, -gradient) and a_0 the same of the controls (with AdamW about 0.4 for
    IID clients too, so that the 1/2 of plain gradient descent says nothing); without controls the share of the loss's path
    that was taken back, 1 - |L_0 - L_t| / sum |L_s - L_{s-1}|. The evidence has p of the test that exchanges second halves
    between the clients of a round (400 random exchanges).

    >>> from fedfault.testing.histories import history
    >>> detector = client_drift()
    >>> drift = {"drift_between": [None, 3.0, 3.0, 3.0], "drift_within": [None, 2.0, 2.0, 2.0]}
    >>> last = detector.read(history([4.0, 3.0, 3.5, 3.2], probes=drift), {})[-1]
    >>> print(f"{last.statistic} > {detector.default_threshold}: {detector.explain(last)}")
    1.5 > 0.2: clients pull apart: their gradients vary 1.5 times as much between as within them
    >>> print(f"{100 * last.effect:.0f} % was taken back")
    56 % was taken back
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        sums, alignment, losses = HalfSums(), list[float](), Path()
        for r in records:
            if "validation" in r.scores:
                losses = losses.extend(r.scores["validation"].loss)
            if not {"drift_between", "drift_within"} <= r.probes.keys():
                yield None
                continue
            sums.add(r)
            alignment += _read_alignment([r])
            if sums.rounds < ROUNDS or sums.within <= 0:
                yield None
                continue
            rho = sums.between / sums.within
            evidence = {"variance_ratio": rho, **_measure_harm(alignment, losses, scale)}
            if sums.tested:
                evidence["p"] = sums.compute_p()
            harm = evidence.get("turned_away", evidence.get("taken_back", 0.0))
            yield Reading(r.round, rho, harm if rho >= REAL else 0.0, evidence)

    def explain(r: Reading) -> str:
        away = r.evidence.get("turned_away")
        cost = f", and their mean update is {100 * away:.0f} % less aligned with the descent direction" if away else ""
        return f"clients pull apart: their gradients vary {r.statistic:.1f} times as much between as within them{cost}"

    return Detector(
        follow,
        explain,
        reads=("drift_between", "drift_within"),
        advice=(
            "federation.algorithm=scaffold",
            "federation.algorithm=fedprox",
            "training.local_steps fewer",
            "fedfault mitigate RUN",
        ),
        remedies=(Replace("federation.algorithm", "scaffold", old="fedavg"), *multiply_work(0.5)),
        wants_clusters=True,
        min_effect=0.2,
        min_std=0.02,
        default_threshold=0.2,
        learn_scale=_learn_alignment,
        leads_to=("oscillation", "divergence", "forgetting", "negative_transfer", "slow_convergence"),
    )


class HalfSums:
    """Sums over rounds of what the halves of the clients' batches say of their gradients."""

    def __init__(self) -> None:
        self.rounds = 0
        self.between, self.within = 0.0, 0.0  # variance between clients and within them
        self.tested = 0  # rounds that have the products of all halves
        self.seen = 0.0  # sum over those of the products of each client's halves
        self.exchanged = np.zeros(PERMUTATIONS)  # the same with second halves exchanged at random

    def add(self, r: RoundRecord) -> None:
        """Add a round."""
        self.rounds += 1
        self.between += r.probes["drift_between"]
        self.within += r.probes["drift_within"]
        if "halves" in r.matrices:
            own, exchanged = _exchange_halves(np.array(r.matrices["halves"]), r.round)
            self.seen, self.exchanged, self.tested = self.seen + own, self.exchanged + exchanged, self.tested + 1

    def compute_p(self) -> float:
        """The p value of the permutation test that halves are of no client."""
        as_large = self.exchanged >= self.seen - 1e-12 * abs(self.seen)
        return (1 + float(as_large.sum())) / (1 + PERMUTATIONS)


class Path(NamedTuple):
    """The path of a loss: its first value, its last one, and the length of all steps; NaN once a value is no number."""

    first: float | None = None
    last: float = math.nan
    length: float = 0.0

    def extend(self, loss: float) -> Path:
        """The path with one more value."""
        loss = loss if math.isfinite(loss) else math.nan
        return Path(loss, loss) if self.first is None else Path(self.first, loss, self.length + abs(loss - self.last))


def _measure_harm(alignment: Sequence[float], losses: Path, scale: Mapping[str, float]) -> dict[str, float]:
    """What drift costs, by the name of the measure: empty where it is not known."""
    if "alignment" in scale:
        return {"turned_away": 1 - float(np.median(alignment)) / scale["alignment"]} if alignment else {}
    if losses.first is None or not losses.length > 0:
        return {}
    return {"taken_back": 1 - abs(losses.first - losses.last) / losses.length}


def _read_alignment(records: Records) -> list[float]:
    """Read the cosines of the updates with the descent direction, where they are known.

    Older versions recorded one below its own noise too, where it can leave the bounds of a cosine: that one is left out.
    """
    found = [r.probes["gradient_alignment"] for r in records if "gradient_alignment" in r.probes]
    return [value for value in found if abs(value) <= 1]


def _learn_alignment(controls: Sequence[Records]) -> dict[str, float]:
    own = [_read_alignment(records) for records in controls]
    medians = [float(np.median(values)) for values in own if values]
    usual = float(np.median(medians)) if medians else 0.0
    return {"alignment": usual} if usual > 0 else {}


def _exchange_halves(halves: np.ndarray, round: int) -> tuple[float, np.ndarray]:
    """Sum the products <g_i1, g_i2> of a round; also with second halves exchanged at random between clients, (400,)."""
    generator = np.random.default_rng(round)  # of the test alone: the same records give the same number
    K = len(halves)
    order = generator.permuted(np.tile(np.arange(K), (PERMUTATIONS, 1)), axis=1)
    return float(np.trace(halves)), halves[np.arange(K), order].sum(axis=1)
