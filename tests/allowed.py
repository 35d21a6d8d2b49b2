"""What a configuration lets be combined."""

from __future__ import annotations

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.setup.combinations import check_pair


def allowed(algorithm: str, aggregation: str, ranks: list[int] | None = None) -> bool:
    """Whether the configuration lets the two be combined."""
    parts = {
        "algorithm": algorithm,
        "aggregation": {"name": aggregation},
        "scheduler": {"name": "fixed", "ranks": ranks},
    }
    exp = Experiment.model_validate({"federation": parts})
    try:
        check_pair(exp, build("algorithm", algorithm), build("aggregation", aggregation))
    except UserError:
        return False
    return True
