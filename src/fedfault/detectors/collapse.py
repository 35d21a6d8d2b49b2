"""The model or its adapter loses dimensions: `representation_collapse`, `rank_collapse`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Multiply, Reading, Records, RoundRecord, counts_nobody
from fedfault.registry import register


@register("detector")
def representation_collapse() -> Detector:
    """Hidden states lose dimensions: their effective rank beside that of the base model, on the same held-out text.

    The probe `representation` measures both ranks in the last layer. The statistic is -log(rank / rank of the base), the
    effect the share of the dimensions that is lost, 1 - rank / rank of the base. The evidence has the mean cosine between
    the embeddings of two blocks, and the share of distinct bigrams in greedy continuations, where they are measured.

    >>> from fedfault.testing.histories import history
    >>> detector = representation_collapse()
    >>> ranks = {"hidden_rank": [None, 20.0, 10.0], "hidden_rank_base": [None, 21.0, 21.0]}
    >>> last = detector.read(history(probes=ranks), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold:.2f}: {detector.explain(last)}")
    0.74 > 0.36: hidden states have lost 52 % of the dimensions that they had in the base
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for r in records:
            if not {"hidden_rank", "hidden_rank_base"} <= set(r.probes) or r.probes["hidden_rank"] <= 0:
                yield None
                continue
            share = r.probes["hidden_rank"] / r.probes["hidden_rank_base"]
            more = {name: r.probes[name] for name in ("embedding_cosine", "distinct_2") if name in r.probes}
            yield Reading(r.round, -math.log(share), 1 - share, {"rank_share": share, **more})

    return Detector(
        follow,
        lambda r: f"hidden states have lost {100 * r.effect:.0f} % of the dimensions that they had in the base",
        reads=("hidden_rank", "hidden_rank_base"),
        advice=("training.lr lower", "model.lora.r_max higher", "federation.aggregation=blockwise"),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.3,
        min_std=0.02,
        default_threshold=-math.log(0.7),
        is_failure=lambda last: True,
        leads_to=("forgetting", "negative_transfer", "slow_convergence"),
    )


@register("detector")
def rank_collapse() -> Detector:
    """The adapter uses fewer directions than in healthy runs, or none: the effective rank of its weight change B A.

    The probe `ranks` measures the rank. The statistic is -log(rank), the effect 1 - rank / median rank of the controls in
    their last round. An adapter whose product is zero after a round of training that counts is dead, which needs no
    threshold.

    >>> from fedfault.testing.histories import history
    >>> detector = rank_collapse()
    >>> last = detector.read(history(probes={"effective_rank": [None, 0.0]}, clients=[{}, {0: {"steps": 5}}]), {})[-1]
    >>> print(f"{last.statistic} > {detector.default_threshold}: {detector.explain(last)}")
    inf > 0.0: the adapter is dead: its weight change is zero after training
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for r in records:
            rank, reading = r.probes.get("effective_rank"), None
            if rank == 0 and r.round > 0 and any(c.steps for c in r.clients) and not counts_nobody(r):
                reading = Reading(r.round, math.inf, 1.0, {"effective_rank": 0.0})
            elif rank:
                lost = 1 - rank / scale["rank"] if "rank" in scale else 0.0
                reading = Reading(r.round, -math.log(rank), lost, {"effective_rank": rank, **scale})
            yield reading

    def explain(r: Reading) -> str:
        if r.statistic == math.inf:
            return "the adapter is dead: its weight change is zero after training"
        return (
            f"the adapter uses {r.evidence['effective_rank']:.1f} directions, healthy runs {r.evidence['rank']:.1f}"
            if "rank" in r.evidence
            else f"the adapter uses {r.evidence['effective_rank']:.1f} directions"
        )

    return Detector(
        follow,
        explain,
        reads=("effective_rank",),
        advice=("model.lora.r_max higher", "federation.aggregation=blockwise", "training.lr lower"),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.3,
        min_std=0.05,
        default_threshold=0.0,
        learn_scale=_learn_rank,
        leads_to=("representation_collapse", "oscillation", "forgetting", "slow_convergence"),
    )


def _learn_rank(controls: Sequence[Records]) -> dict[str, float]:
    """The median effective rank of the controls in their last round: empty where it is not known or zero."""
    last = [r[-1].probes["effective_rank"] for r in controls if r and "effective_rank" in r[-1].probes]
    return {"rank": float(np.median(last))} if last and min(last) > 0 else {}
