"""What varies in a study: blocks of axes, each axis a setting with its values, and the cells that they span."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfault.config.explain import list_mappings
from fedfault.config.files import Entry, Key, Layer
from fedfault.config.shorthand import ALIASES
from fedfault.errors import UserError

ARM = "arm"  # the axis of named arms
# Keys by which a section names its component
NAMES = (
    "name",
    *dict.fromkeys(row.rpartition(".")[2] for row in ALIASES),
)
MOST_CELLS = 2000


@dataclass(frozen=True)
class Axis:
    """One thing that varies, with the settings that each of its labels stands for."""

    name: str
    values: Mapping[str, Layer]


@dataclass(frozen=True)
class Point:
    """A cell before it is checked: its labels, the settings of each axis, and the block of the grid it comes from."""

    choices: Mapping[str, str]
    layers: tuple[Layer, ...]
    block: int


def span_points(arms: Mapping[str, Any] | None, grid: Any, where: str) -> list[Point]:
    """All cells: of every block of the grid the product of its axes, times the arms.

    A grid is a mapping from settings to lists of values, or a list of such mappings. Raises `UserError` with a line for
    everything that is wrong with the shape.
    """
    blocks = grid if isinstance(grid, list) else [grid or {}]
    wrong: list[str] = []
    found: list[Point] = []
    for number, block in enumerate(blocks):
        try:
            axes = [*_make_arm_axis(arms, where), *_make_grid_axes(block, where)]
        except UserError as e:
            wrong.append(str(e))
            continue
        count = math.prod(len(axis.values) for axis in axes)
        if count > MOST_CELLS:
            wrong.append(f"{where}: grid: {count} cells, at most {MOST_CELLS}; leave out values or split the study")
            continue
        found += _multiply_axes(axes, number)
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def _multiply_axes(axes: Sequence[Axis], block: int) -> Iterator[Point]:
    for labels in itertools.product(*(axis.values for axis in axes)):
        chosen = list(zip(axes, labels, strict=True))
        layers = tuple(axis.values[label] for axis, label in chosen)
        yield Point({axis.name: label for axis, label in chosen}, layers, block)


def _make_arm_axis(arms: Mapping[str, Any] | None, where: str) -> list[Axis]:
    if arms is None:
        return []
    if not isinstance(arms, Mapping) or not arms:
        raise UserError(
            f"{where}: arms must be names with their settings, like `prox: {{federation.algorithm: fedprox}}`"
        )
    wrong = [name for name, settings in arms.items() if not isinstance(settings, Mapping)]
    if wrong:
        raise UserError(f"{where}: arms.{wrong[0]} must be a mapping of settings; it is {arms[wrong[0]]!r:.60}")
    return [Axis(ARM, {name: build_layer(settings, f"{where}: arm {name}") for name, settings in arms.items()})]


def _make_grid_axes(block: Any, where: str) -> list[Axis]:
    if not isinstance(block, Mapping):
        raise UserError(f"{where}: grid must be a mapping from settings to lists of values, or a list of such mappings")
    flat = _flatten_block(block)
    wrong = [
        f"{where}: grid: {key} must be a list of values, like [1, 2]; it is {values!r:.60}"
        for key, values in flat.items()
        if not isinstance(values, list) or not values
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    names = shorten_names(list(flat))
    return [_make_axis(names[key], key, values, where) for key, values in flat.items()]


def _flatten_block(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted key, whether the block is nested or not."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        found |= (
            _flatten_block(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
        )
    return found


def shorten_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of every dotted key, or all of it where two would be called the same.

    >>> shorten_names(["training.lr", "federation.algorithm"])
    {'training.lr': 'lr', 'federation.algorithm': 'algorithm'}
    """
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if [*last.values()].count(name) == 1 and name != ARM else key for key, name in last.items()}


def _make_axis(name: str, key: str, values: list[Any], where: str) -> Axis:
    labels = _label_values(values)
    if twice := next((one for i, one in enumerate(labels) if one in labels[:i]), None):
        raise UserError(f"{where}: grid: {key} has {twice} twice; give each value once")
    return Axis(name, {text: _make_setting(key, value, where) for text, value in zip(labels, values, strict=True)})


def _label_values(values: Sequence[Any]) -> list[str]:
    """A component's name alone where no other value has it, else with its options."""
    heads = [_shorten_value(value) for value in values]
    return [format_value(v) if heads.count(head) > 1 else head for v, head in zip(values, heads, strict=True)]


def _shorten_value(value: Any) -> str:
    named = [value[key] for key in NAMES if key in value] if isinstance(value, Mapping) else []
    return str(named[0]) if named else format_value(value)


def format_value(value: Any) -> str:
    """A value as labels have it.

    >>> format_value(1e-3), format_value([4, 8]), format_value(None)
    ('0.001', '4 8', 'null')
    >>> format_value({"name": "fedprox", "mu": 0.1}), format_value({"name": "lite", "r_bar": 8})
    ('fedprox mu 0.1', 'lite r_bar 8')
    """
    if isinstance(value, Mapping):
        return " ".join(format_value(v) if key in NAMES else f"{key} {format_value(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(format_value, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_slug(name: str) -> str:
    """A name as folders may have it.

    >>> make_slug("fedprox mu 0.1, iid")
    'fedprox-mu-0.1-iid'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")


def build_layer(settings: Mapping[str, Any], where: str) -> Layer:
    """Settings, nested or dotted, as a layer of the configuration."""
    found: Layer = {}
    for key, value in settings.items():
        found |= _make_setting(key, value, where)
    return found


def _make_setting(key: str, value: Any, where: str) -> Layer:
    """One setting, or all of a section."""
    parts: Key = tuple(key.split("."))
    if not isinstance(value, Mapping) or not value:
        return {parts: Entry(value, where)}
    if parts in list_mappings():  # its keys may have dots, as the names of modules do
        return {(*parts, name): Entry(part, where, whole=True) for name, part in value.items()}
    found: Layer = {}
    for name, part in value.items():
        found |= _make_setting(f"{key}.{name}", part, where)
    return found
