"""The model forgets what the base knew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from fedfault.records import Detector, Multiply, Reading, RoundRecord
from fedfault.registry import register
from fedfault.stats import bound_below


@register("detector")
def forgetting() -> Detector:
    """The loss on general English rises beyond what healthy runs cost: a lower bound of its change since round 0.

    Statistic and effect are the change minus 1.645 of its standard errors, paired by document, in nats per token; without
    controls minus as many as Student's t has for so few blocks. On the base model's own samples the change estimates
    KL(base || model).

    >>> from fedfault.testing.histories import history, paired_history
    >>> detector = forgetting()
    >>> last = detector.read(history(scores={"general": paired_history([0.3, 0.7], 0.02)}), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold}: {detector.explain(last)}")
    0.67 > 0.5: the loss on general English has risen by 0.70 nats per token since the start
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        first: RoundRecord | None = None
        for r in records:
            score, reading = r.scores.get("general"), None
            if score is not None and math.isfinite(score.loss):
                first = first or r
                if first is not r and first.round == 0:
                    change = score.loss - first.scores["general"].loss
                    low = bound_below(change, score.se or 0.0, score.blocks if "student" in scale else None)
                    reading = Reading(r.round, low, low, {"change": change, "lower_bound": low})
            yield reading

    return Detector(
        follow,
        lambda r: f"the loss on general English has risen by {r.evidence['change']:.2f} nats per token since the start",
        reads=("score/general",),
        advice=("training.lr lower", "training.local_steps fewer", "model.lora.r_max lower"),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.02,  # nats: 2 % of perplexity
        min_std=0.005,
        default_threshold=0.5,  # a healthy run on another register of English costs 0.2 to 0.3
        default_scale={"student": 1.0},
        leads_to=("negative_transfer",),
    )
