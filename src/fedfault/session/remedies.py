"""What a run does to itself when it goes back to its best round: the remedies that its detectors name, as settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfault.config.loading import load_resolved
from fedfault.config.schema import Experiment
from fedfault.diagnosis.detection import build_detectors
from fedfault.errors import UserError
from fedfault.records import Remedy, Replace
from fedfault.setup.combinations import check_parts


def find_remedy(exp: Experiment, causes: Sequence[str]) -> list[str]:
    """Settings as `key=value` that answer the first of these alarms for which there is an answer.

    causes: detectors by name. A remedy that the rest of the experiment does not stand, as another algorithm under an
    asynchronous server, is passed over. Empty where none of them names one that would change this experiment, as for
    negative transfer, a client left behind and a federation that does not happen: no setting of one shared model mends
    these.

    >>> find_remedy(Experiment(), ["fairness_gap", "divergence"])
    ['training.lr=0.00025']
    """
    for cause in causes:
        for remedy in build_detectors()[cause].remedies:
            if (setting := apply_remedy(exp, remedy)) and _can_be_combined(exp, setting):
                return [setting]
    return []


def _can_be_combined(exp: Experiment, setting: str) -> bool:
    """Tell whether an experiment could have been started with this setting."""
    try:
        check_parts(load_resolved(exp.model_dump(), Path("config.yaml"), [setting]).experiment)
    except UserError:
        return False
    return True


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
