"""Hypotheses, maps and comparisons with the best of a study file, tied to the cells that they speak of.

    hypotheses:
      low_participation:
        claim: With 3 of 10 clients a round the loss swings more than with all of them
        metric: swing
        arm: {participation_rate: 0.3, partition: topic_isolation}     # one choice on every axis, or the name of an arm
        than: {participation_rate: 1.0}     # what is different in the other arm; or a number; or the name of an arm
        beyond: {partition: iid}            # optional: the difference is larger than the same one here
        expect: higher                      # higher, lower or equal
        by: 0.02                            # smallest difference that matters, in the unit of the metric

Where `arm` leaves an axis open, the claim is about every value of it, and holds only if it holds for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fedfault.errors import UserError, suggest
from fedfault.studies.axes import ARM, format_value
from fedfault.studies.outcomes import METRIC, check_metric
from fedfault.studies.study import Best, Cell, Contrast, Direction, Hypothesis, PhaseMap, Preference

KEYS = ("claim", "metric", "arm", "than", "beyond", "expect", "by")
MAP_KEYS = ("x", "y", "metric", "where")
Asked = Hypothesis | PhaseMap | Best
BEST_KEYS = ("axis", "metric", "prefer", "by", "where")


def parse_hypotheses(given: Any, cells: Sequence[Cell], where: str, wrong: list[str]) -> tuple[Hypothesis, ...]:
    """The hypotheses; what is wrong with any of them is appended to `wrong`."""
    return _parse_each(given, "hypotheses", where, wrong, lambda name, about: _parse_hypothesis(name, about, cells))


def parse_maps(given: Any, cells: Sequence[Cell], where: str, wrong: list[str]) -> tuple[PhaseMap, ...]:
    """The maps; what is wrong with any of them is appended to `wrong`."""
    return _parse_each(given, "maps", where, wrong, lambda name, about: _parse_map(name, about, cells))


def parse_best(given: Any, cells: Sequence[Cell], where: str, wrong: list[str]) -> tuple[Best, ...]:
    """The questions what is best; what is wrong with any of them is appended to `wrong`."""
    return _parse_each(given, "best", where, wrong, lambda name, about: _parse_best(name, about, cells))


def _parse_each(given: Any, what: str, where: str, wrong: list[str], make: Any) -> tuple[Any, ...]:
    if not isinstance(given, Mapping):
        wrong.append(f"{where}: {what} must be names with what is said of them; it is {given!r:.60}")
        return ()
    found = []
    for name, about in given.items():
        try:
            if not isinstance(about, Mapping):
                raise UserError(f"must be a mapping; it is {about!r:.60}")
            found.append(make(name, about))
        except UserError as e:
            wrong.append(f"{where}: {what}.{name}: {e}")
    return tuple(found)


def _parse_hypothesis(name: str, about: Mapping[str, Any], cells: Sequence[Cell]) -> Hypothesis:
    _check_keys(about, KEYS, ("claim", "metric", "arm", "than", "expect", "by"))
    expect, by = about["expect"], about["by"]
    if expect not in get_args(Direction):
        raise UserError(f"expect must be {', '.join(get_args(Direction))}; it is {expect!r}")
    if not _is_size(by) or (by == 0 and expect == "equal"):
        least = "above 0" if expect == "equal" else "of at least 0"
        raise UserError(f"by is the smallest difference that matters, a number {least}; it is {by!r}")
    check_metric(about["metric"])
    return Hypothesis(name, str(about["claim"]), about["metric"], expect, float(by), _parse_contrasts(about, cells))


def _is_size(by: Any) -> bool:
    return isinstance(by, int | float) and not isinstance(by, bool) and math.isfinite(by) and by >= 0


def _check_keys(about: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    for key in about:
        if key not in known:
            raise UserError(f"no key {key!r}{suggest(key, known)} (known: {', '.join(known)})")
    if missing := [key for key in needed if key not in about]:
        raise UserError(f"{' and '.join(missing)} missing")


def _parse_contrasts(about: Mapping[str, Any], cells: Sequence[Cell]) -> tuple[Contrast, ...]:
    chosen = _find_cells(about["arm"], cells, "arm")
    than, beyond = about["than"], about.get("beyond")
    if isinstance(than, int | float) and not isinstance(than, bool):
        if not math.isfinite(than):
            raise UserError(f"than must be an arm or a finite number; it is {than!r}")
        if beyond is not None:
            raise UserError("beyond compares two differences, so than must be an arm, not a number")
        return tuple(Contrast(i, constant=float(than)) for i in chosen)
    return tuple(_parse_contrast(i, than, beyond, cells) for i in chosen)


def _parse_contrast(i: int, than: Any, beyond: Any, cells: Sequence[Cell]) -> Contrast:
    b = _find_moved_cell(i, than, cells, "than")
    if beyond is None:
        return Contrast(i, b)
    return Contrast(
        i, b, c=_find_moved_cell(i, beyond, cells, "beyond"), d=_find_moved_cell(b, beyond, cells, "beyond")
    )


def _find_moved_cell(i: int, change: Any, cells: Sequence[Cell], what: str) -> int:
    """The cell that differs from cell i as `change` says."""
    wanted = {**cells[i].choices, **_parse_selector(change, cells, what)}
    found = [n for n, cell in enumerate(cells) if cell.choices == wanted]
    if not found:
        raise UserError(f"{what}: there is no cell {', '.join(wanted.values())}")
    if found[0] == i:
        raise UserError(f"{what} leads to the very cell that it starts from ({cells[i].name}); say what is different")
    return found[0]


def _find_cells(selector: Any, cells: Sequence[Cell], what: str) -> list[int]:
    wanted = _parse_selector(selector, cells, what)
    found = [i for i, cell in enumerate(cells) if wanted.items() <= cell.choices.items()]
    if not found:
        raise UserError(f"{what}: no cell has {', '.join(f'{axis} {label}' for axis, label in wanted.items())}")
    return found


def _parse_selector(given: Any, cells: Sequence[Cell], what: str) -> dict[str, str]:
    """Axis -> label; the name of an arm stands for `{arm: NAME}`, a dotted setting for its axis."""
    if isinstance(given, str):
        given = {ARM: given}
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{what} must be the name of an arm, or choices like {{lr: 0.001}}; it is {given!r:.60}")
    labels: dict[str, list[str]] = {}
    for cell in cells:
        for axis, one in cell.choices.items():
            labels.setdefault(axis, []).append(one)
    found = {}
    for key, value in given.items():
        axis = key if key in labels else key.rpartition(".")[2]
        if axis not in labels:
            raise UserError(f"{what}: {key!r} does not vary in this study{suggest(key, labels)} ({_list_axes(labels)})")
        if format_value(value) not in labels[axis]:
            known = dict.fromkeys(labels[axis])
            raise UserError(
                f"{what}: no {axis} {format_value(value)!r}{suggest(format_value(value), known)} (known: {', '.join(known)})"
            )
        found[axis] = format_value(value)
    return found


def _list_axes(axes: Mapping[str, Any]) -> str:
    return f"what varies: {', '.join(axes)}" if axes else "nothing does"


def _parse_map(name: str, about: Mapping[str, Any], cells: Sequence[Cell]) -> PhaseMap:
    _check_keys(about, MAP_KEYS, ("x", "y"))
    metric = about.get("metric", METRIC)
    check_metric(metric)
    axes = {axis for cell in cells for axis in cell.choices}
    x, y = (_find_axis(about[key], axes, key) for key in ("x", "y"))
    where = _parse_selector(about["where"], cells, "where") if about.get("where") else {}
    chosen = select_map_cells(PhaseMap(name, x, y, metric, where), cells)
    if x == y or len(chosen) < 2:
        raise UserError(f"x {x} and y {y} must be two axes that vary together, and where must leave two cells at least")
    others = {axis: {c.choices.get(axis) for c in chosen} for c in chosen for axis in c.choices if axis not in (x, y)}
    if loose := [axis for axis, labels in others.items() if len(labels) > 1]:
        raise UserError(f"{', '.join(loose)} varies too; hold it with where, like {{{loose[0]}: ...}}")
    return PhaseMap(name, x, y, metric, where)


def _parse_best(name: str, about: Mapping[str, Any], cells: Sequence[Cell]) -> Best:
    _check_keys(about, BEST_KEYS, ("axis", "by"))
    metric, prefer, by = about.get("metric", METRIC), about.get("prefer", "lower"), about["by"]
    check_metric(metric)
    if prefer not in get_args(Preference):
        raise UserError(f"prefer must be {' or '.join(get_args(Preference))}; it is {prefer!r}")
    if not _is_size(by):
        raise UserError(f"by is the smallest difference that matters, a number of at least 0; it is {by!r}")
    axis = _find_axis(about["axis"], {axis for cell in cells for axis in cell.choices}, "axis")
    where = _parse_selector(about["where"], cells, "where") if about.get("where") else {}
    compared = {c.choices[axis] for c in cells if axis in c.choices and where.items() <= c.choices.items()}
    if len(compared) < 2:
        raise UserError(f"where must leave two values of {axis} at least; it leaves {', '.join(compared) or 'none'}")
    return Best(name, axis, metric, prefer, float(by), where)


def _find_axis(given: Any, axes: set[str], key: str) -> str:
    if not isinstance(given, str):
        raise UserError(f"{key} must name an axis; it is {given!r}")
    axis = given if given in axes else str(given).rpartition(".")[2]
    if axis not in axes:
        raise UserError(f"{key}: {given!r} does not vary in this study ({_list_axes(dict.fromkeys(sorted(axes)))})")
    return axis


def select_map_cells(drawn: PhaseMap, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that a map shows."""
    return [c for c in cells if {drawn.x, drawn.y} <= set(c.choices) and drawn.where.items() <= c.choices.items()]


def select_cells(asked: Asked, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose metric a hypothesis, a map or a table of the best needs."""
    if isinstance(asked, Hypothesis):
        return [cells[i] for i in sorted({i for contrast in asked.contrasts for i in contrast.cells})]
    if isinstance(asked, PhaseMap):
        return select_map_cells(asked, cells)
    return [c for c in cells if asked.axis in c.choices and asked.where.items() <= c.choices.items()]
