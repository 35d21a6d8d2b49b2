"""Resolved configurations by dotted keys, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_CAUSE = ("experiment_name", "logging.")  # settings that change no number


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of nested sections by their dotted keys.

    >>> flatten_settings({"seed": 1, "training": {"lr": 0.1}})
    {'seed': 1, 'training.lr': 0.1}
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


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
