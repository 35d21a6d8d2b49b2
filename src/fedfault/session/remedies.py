"""What a run does to itself when it goes back to its best round: the remedies that its detectors name, as settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedfault.config.schema import Experiment
from fedfault.diagnosis.detection import build_detectors
from fedfault.records import Remedy, Replace


def find_remedy(exp: Experiment, causes: Sequence[str]) -> list[str]:
    """Settings as `key=value` that answer the first of these alarms for which there is an answer.

    causes: detectors by name. Empty where none of them names a remedy that would change this experiment, as for negative
    transfer, a client left behind and a federation that does not happen: no setting of one shared model mends these.

    >>> find_remedy(Experiment(), ["fairness_gap", "divergence"])
    ['training.lr=0.00025']
    """
    for cause in causes:
        for remedy in build_detectors()[cause].remedies:
            if setting := apply_remedy(exp, remedy):
                return [setting]
    return []


def apply_remedy(exp: Experiment, remedy: Remedy) -> str | None:
    """The setting as `key=value` that this remedy gives the experiment; None where it changes nothing."""
    now = _look_up(exp.model_dump(), remedy.setting)
    if isinstance(remedy, Replace):
        fits = now not in (None, remedy.new) if remedy.old is None else now == remedy.old
        return f"{remedy.setting}={remedy.new}" if fits else None
    now = remedy.unset if now is None else now
    if now is None:
        return None
    after = max(1, round(now * remedy.factor)) if isinstance(now, int) else now * remedy.factor
    return f"{remedy.setting}={after!r}" if after != now else None


def _look_up(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, of a component its name; None where there is none."""
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found.get("name") if isinstance(found, dict) else found
