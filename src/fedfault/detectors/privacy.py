"""A run gives away more than it claims: `broken_privacy`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from fedfault.records import Detector, Reading, RoundRecord
from fedfault.registry import register


@register("detector", cite=("steinke2023",))
def broken_privacy() -> Detector:
    """The epsilon that canaries prove is above the one that the run claims: something is published without its noise.

    The statistic is the audited lower bound minus the claim, and infinite once that was above 0: the bound holds with 95 %
    confidence over all rounds together, so that no controls are needed and one round is enough. Where the run's delta is
    large, so that little can be proved at it, claim and bound at a small delta count too (`epsilon_small`).

    >>> from fedfault.testing.histories import history
    >>> detector = broken_privacy()
    >>> last = detector.read(history(probes={"epsilon": [None, 1.0], "epsilon_audited": [None, 2.5]}), {})[-1]
    >>> print(f"{last.statistic}: {detector.explain(last)}")
    inf: canaries prove an epsilon of at least 2.50, and the run claims 1.00

    Reference: Steinke, Nasr & Jagielski, NeurIPS 2023, arXiv 2305.08846.
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        proved_wrong = False
        for r in records:
            pairs = [(r.probes.get(name), r.probes.get(f"{name}_audited")) for name in ("epsilon", "epsilon_small")]
            known = [(claim, proved) for claim, proved in pairs if claim is not None and proved is not None]
            if not known:
                yield None
                continue
            claim, proved = max(known, key=lambda pair: pair[1] - pair[0])
            proved_wrong |= proved > claim
            excess = math.inf if proved_wrong else proved - claim
            yield Reading(r.round, excess, proved, {"claimed": claim, "proved": proved})

    return Detector(
        follow,
        lambda r: (
            f"canaries prove an epsilon of at least {r.evidence['proved']:.2f}, and the run claims "
            f"{r.evidence['claimed']:.2f}"
        ),
        advice=(
            "publish nothing of this run",
            "look at where noise is added, and at what the algorithm sends beside its model",
        ),
        min_effect=0.0,
        min_std=0.01,
        default_threshold=0.0,
        calibrated=False,
        is_failure=lambda last: True,
    )
