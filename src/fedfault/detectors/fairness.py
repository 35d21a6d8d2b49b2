"""Some clients are worse off than before, or than the others: `negative_transfer`, `fairness_gap`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from statistics import NormalDist

from fedfault.records import Detector, Reading, RoundRecord, Score
from fedfault.registry import register
from fedfault.stats import ALPHA, bound_below, holm, score_normally

SEEN = 4  # clients before a median means anything


@register("detector")
def negative_transfer() -> Detector:
    """The loss of a client on its own held-out text is higher than before training: with the base it would be better off.

    With the gain G_i = L_i(base) - L_i of client i and its standard error se_i, paired by block, the statistic is
    max_i -G_i / se_i. The effect is what that client loses at least, the lower 95 % bound of -G_i in nats per token. The
    evidence has how many clients lose significantly (Holm, Scand. J. Statist. 6, 1979).

    The error of a client is that of its few blocks, so that -G_i / se_i is Student's t. Against controls, which have as few,
    it counts as it is; without them as the normal number that is as unlikely, and the bound is that of t.

    >>> from fedfault.testing.histories import history, paired_history
    >>> detector = negative_transfer()
    >>> scores = {"client/0": paired_history([0.2], 0.02), "client/1": paired_history([-0.3], 0.02)}
    >>> last = detector.read(history(scores=scores), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold:.2f}: {detector.explain(last)}")
    10.00 > 2.58: client 0 is 0.20 nats worse off than with the base (1 of 2 clients lose beyond chance)
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        first: dict[str, float] | None = None
        for r in records:
            own = {n: s for n, s in r.scores.items() if n.startswith("client/") and math.isfinite(s.loss)}
            if first is None:
                first = {n: s.loss for n, s in own.items()}
                yield None
            else:
                yield _compare_with_base(r.round, first, own, "student" in scale)

    def explain(r: Reading) -> str:
        client, lost, losers, of = (r.evidence[key] for key in ("worst_client", "lost", "clients_that_lose", "clients"))
        worst = f"the worst of {of:.0f} clients" if of > 1 else "a client"
        how = (
            f"{losers:.0f} of {of:.0f} clients lose beyond chance"
            if losers
            else f"in one round {worst} can lose as much by chance"
        )
        return f"client {client:.0f} is {lost:.2f} nats worse off than with the base ({how})"

    return Detector(
        follow,
        explain,
        reads=("score/client with se",),
        advice=(
            "federation.aggregation=fedsa_lora",
            "fedfault mitigate RUN",
            "federation.algorithm=ifca",
            "training.lr lower",
        ),
        wants_clusters=True,
        min_effect=0.02,  # nats
        min_std=1.0,
        default_threshold=NormalDist().inv_cdf(1 - ALPHA / 10),  # Bonferroni for ten clients
        default_scale={"student": 1.0},
    )


def _compare_with_base(
    round: int, first: Mapping[str, float], now: Mapping[str, Score], student: bool
) -> Reading | None:
    """Compare clients' scores with their losses before training; None where no client has an error beside its change.

    student: whether few blocks make changes less sure, see `negative_transfer`.
    """
    lost = {
        n: (s.loss - first[n], s.se, s.blocks)
        for n, s in now.items()
        if n in first and s.se and s.blocks is not None and s.blocks > 2
    }
    if not lost:
        return None
    scores = {n: score_normally(change / se, blocks) for n, (change, se, blocks) in lost.items()}
    z = scores if student else {n: change / se for n, (change, se, _) in lost.items()}
    worst = max(z, key=z.__getitem__)
    evidence = {
        "worst_client": float(worst.removeprefix("client/")),
        "clients_that_lose": float(_count_losers(scores.values())),
        "clients": float(len(z)),
        "median_gain": -statistics.median(change for change, _, _ in lost.values()),
        "lost": lost[worst][0],
    }
    change, se, blocks = lost[worst]
    return Reading(round, z[worst], bound_below(change, se, blocks if student else None), evidence)


def _count_losers(z: Iterable[float]) -> int:
    """How many of these one-sided tests are significant together by Holm's correction."""
    return sum(p <= ALPHA for p in holm([1 - NormalDist().cdf(value) for value in z]))


@register("detector")
def fairness_gap() -> Detector:
    """One client is left behind: at the shared model its gradient is far steeper than the others'.

    The probe `gradients` estimates |grad f_i|^2 from two halves of a client's data, so that noise cancels; the mean is over
    the rounds in which the client took part. The statistic is the log of the largest root mean square over the median one,
    once four clients have taken part, the effect that ratio. Losses would not do: domains differ in entropy, and a model can
    be at the optimum of a hard one.

    >>> from fedfault.testing.histories import history
    >>> detector = fairness_gap()
    >>> norms = {k: {"gradient_norm": 9.0 if k == 3 else 1.0} for k in range(5)}
    >>> last = detector.read(history(clients=[{}, norms]), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold:.2f}: {detector.explain(last)}")
    2.20 > 1.61: client 3 is left behind: its gradient is 9.0 times as steep as the median client's
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        sums: dict[int, float] = {}  # of squares
        counts: dict[int, int] = {}
        for r in records:
            own = {c.client: c.probes["gradient_norm"] ** 2 for c in r.clients if "gradient_norm" in c.probes}
            for k, square in own.items():
                sums[k], counts[k] = sums.get(k, 0.0) + square, counts.get(k, 0) + 1
            steep = {k: math.sqrt(sums[k] / counts[k]) for k in sums} if own else {}
            yield _compare_with_median(r.round, steep) if len(steep) >= SEEN else None

    return Detector(
        follow,
        lambda r: (
            f"client {r.evidence['worst_client']:.0f} is left behind: its gradient is {r.effect:.1f} times as steep as the "
            "median client's"
        ),
        reads=("client/gradient_norm",),
        advice=(
            "look at that client's data",
            "fedfault mitigate RUN",
            "federation.algorithm=ifca",
            "federation.aggregation=fedsa_lora",
        ),
        wants_clusters=True,
        min_effect=4.0,  # times the median: registers of English differ by three
        min_std=0.05,
        default_threshold=math.log(5),
        leads_to=("client_drift", "oscillation", "divergence", "forgetting", "negative_transfer", "slow_convergence"),
    )


def _compare_with_median(round: int, steep: Mapping[int, float]) -> Reading | None:
    """Compare the steepest client with the median one, by the norms of their gradients; None where that is zero."""
    worst, median = max(steep, key=steep.__getitem__), statistics.median(steep.values())
    if not median > 0:
        return None
    ratio = steep[worst] / median
    evidence = {"worst_client": float(worst), "ratio": ratio, "gradient_norm": steep[worst], "median": median}
    return Reading(round, math.log(ratio), ratio, evidence)
