"""What differs between two resolved configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_CAUSE = ("experiment_name", "logging.")  # settings that change no number


def find_changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Return the settings that differ: dotted key -> [before, after], None for absent.

    >>> find_changes({"training": {"lr": 0.1}, "seed": 1}, {"training": {"lr": 0.2}, "seed": 1})
    {'training.lr': [0.1, 0.2]}
    >>> find_changes({"data": {"name": "text"}}, {"data": "text"})
    {'data': [{'name': 'text'}, 'text']}
    """
    out: dict[str, list[Any]] = {}
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
            out |= find_changes(old or {}, new or {}, f"{prefix}{key}.")
        elif old != new:
            out[f"{prefix}{key}"] = [old, new]
    return out
