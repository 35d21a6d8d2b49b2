"""Resolved configurations by dotted keys: what differs between two of them, what may, and a hash of what matters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

# beginnings of dotted keys
NO_CAUSE = ("experiment_name", "logging.")  # settings that change no number
CAN_CHANGE = ("federation.num_rounds", "personalise", "device", "logging.")  # what `fedfault resume` can be asked for
# settings of which a run that goes on may have others; plug-ins have a hash of their own, and may lie elsewhere
MAY_CHANGE = (*NO_CAUSE, *CAN_CHANGE, "plugins")


def flatten_settings(settings: Mapping[str, Any], prefix: str = "", values: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings of nested sections by their dotted keys; what stands at the keys in `values` stays a mapping.

    >>> flatten_settings({"seed": 1, "training": {"lr": 0.1}})
    {'seed': 1, 'training.lr': 0.1}
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        dotted = f"{prefix}{key}"
        section = isinstance(value, Mapping) and dotted not in values
        out |= flatten_settings(value, f"{dotted}.", values) if section else {dotted: value}
    return out


def spell_value(value: Any) -> str:
    """Write the value of a setting as it is typed in a configuration; keys within it that have none are left out.

    >>> spell_value(True), spell_value(1e-3), spell_value([]), spell_value({"name": "lite", "caps": [4, 8]})
    ('true', '0.001', '[]', '{name: lite, caps: [4, 8]}')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spell_value(own)}" for key, own in value.items() if own is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(spell_value, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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


def hash_settings(settings: Mapping[str, Any], left_out: tuple[str, ...] = NO_CAUSE) -> str:
    """Return a hash of a resolved configuration without the settings whose dotted keys begin in one of these ways.

    >>> first, second = ({"seed": 1, "experiment_name": name} for name in "ab")
    >>> hash_settings(first) == hash_settings(second)
    True
    """
    return hashlib.sha256(json.dumps(_leave_out(settings, left_out, ""), sort_keys=True).encode()).hexdigest()


def take_settings(
    settings: Mapping[str, Any], others: Mapping[str, Any], taken: tuple[str, ...], prefix: str = ""
) -> dict[str, Any]:
    """Return settings with those of `others` whose dotted keys begin in one of the ways `taken`.

    >>> take_settings({"seed": 1, "logging": {"every": 1}}, {"seed": 2, "logging": {"every": 2}, "new": 3}, ("logging.",))
    {'seed': 1, 'logging': {'every': 2}}
    """
    out = dict(settings)
    for key, value in others.items():
        if f"{prefix}{key}.".startswith(taken):
            out[key] = value
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = take_settings(out[key], value, taken, f"{prefix}{key}.")
    return out


def _leave_out(settings: Mapping[str, Any], left_out: tuple[str, ...], prefix: str) -> dict[str, Any]:
    return {
        key: _leave_out(value, left_out, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if not f"{prefix}{key}.".startswith(left_out)
    }
