"""The model was better before."""

import math

from fedfault.records import Detector, Reading
from fedfault.registry import register


@register("detector")
def lost_ground() -> Detector:
    """The loss is above the best loss so far, in nats."""

    def follow(records, scale):
        best = math.inf
        for r in records:
            loss = r.scores["validation"].loss if "validation" in r.scores else math.nan
            if not math.isfinite(loss):
                yield None
                continue
            best = min(best, loss)
            yield Reading(r.round, loss - best, loss - best, {"loss": loss, "best": best})

    return Detector(
        follow,
        lambda r: f"the loss is {r.statistic:.2f} nats above the best one",
        advice=("a smaller training.lr",),
        min_effect=0.05,
        min_std=0.01,
        default_threshold=0.5,
    )
