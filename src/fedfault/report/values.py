"""What makes a drawn figure answer on a page: the numbers behind its lines and cells, and where on the picture they are.

A line, or a picture of cells, is part of that if it has a name, which is its `gid`; bars have it as their label. What stands
at a tick is told by the axes' `fmt_xdata` and `fmt_ydata`, which matplotlib has for the same purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from fedfault.measures.punctuality import elapsed_seconds
from fedfault.report.draw import format_round
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

PART = "part "  # what the ids of groups begin with that the page has to find again
OWN = {"clients": "loss", "fairness": "gain"}  # figure -> what a single client's line in it shows


def collect_values(run: RunData) -> dict[str, Any]:
    """Collect what all figures of a run share: what rounds can be counted in, and the held-out losses of every client."""
    names = [name_client(run, k) for k in range(run.num_clients)]
    losses = [_shorten_numbers(run.losses(f"client/{k}")[1]) for k in range(run.num_clients)]
    at = run.losses("client/0")[0]
    own = {"at": at, "losses": losses} if at and all(len(row) == len(at) for row in losses) else None
    return {"rounds": [r.round for r in run.records], "scales": _list_scales(run), "clients": names, "own": own}


def name_client(run: RunData, client: int) -> str:
    """Name a client as the page does where somebody looks for it."""
    return f"client {run.label_client(client)}"


def _list_scales(run: RunData) -> list[dict[str, Any]]:
    """List what the rounds can be counted in instead: simulated seconds and bytes since the start, where there are any."""
    spent = elapsed_seconds(run.records)
    moved = list(accumulate(r.bytes_up + r.bytes_down for r in run.records))
    scales: list[tuple[str, str, Sequence[float]]]
    scales = [("simulated time", "s", [spent[r.round] for r in run.records] if spent else [])]
    scales += [("bytes", "B", [] if run.centralised else moved)]
    return [
        {"name": name, "unit": unit, "values": _shorten_numbers(values)}
        for name, unit, values in scales
        if values and values[-1] > values[0]
    ]


def read_values(figure: Figure, theme: Theme) -> list[dict[str, Any]]:
    """Read the numbers of the axes that `list_axes` names."""
    return [_read_axes(ax, theme) for ax in list_axes(figure)]


def list_axes(figure: Figure) -> list[Axes]:
    """List the axes that have named parts, and those that are over rounds, which may be counted in something else."""
    return [ax for ax in figure.axes if _is_over_rounds(ax) or _list_lines(ax) or _list_bars(ax) or _list_cells(ax)]


def _is_over_rounds(ax: Axes) -> bool:
    return ax.fmt_xdata is format_round


def locate_axes(figure: Figure) -> list[dict[str, Any]]:
    """Locate these axes on the figure: box (left, top, width, height in points), limits, whether y is logarithmic."""
    width, height = figure.get_size_inches() * 72
    found = []
    for ax in list_axes(figure):
        p = ax.get_position()
        box = [p.x0 * width, (1 - p.y1) * height, p.width * width, p.height * height]
        limits = {"x": _shorten_numbers(ax.get_xlim()), "y": _shorten_numbers(ax.get_ylim(), 8)}
        found.append({"box": [round(v, 2) for v in box], **limits, "log": ax.get_yscale() == "log"})
    return found


def mark_parts(figure: Figure) -> None:
    """Give the groups of the SVG file that the page has to find ids that say so. Names are lost: read values before."""
    for k, ax in enumerate(list_axes(figure)):
        lines = _list_lines(ax)
        ax.set_gid(f"{PART}axes {k}")
        ax.xaxis.set_gid(f"{PART}x {k}")
        ends = {str(line.get_label()): i for i, line in enumerate(lines)}
        for text in ax.texts:
            if text.get_text() in ends:
                text.set_gid(f"{PART}line {k} {ends[text.get_text()]}")
        for i, line in enumerate(lines):
            line.set_gid(f"{PART}line {k} {i}")


def mark_round(round: int) -> str:
    """Return the id of a part that moves with a round where rounds are counted in something else."""
    return f"{PART}at {round}"


def _list_lines(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if line.get_gid()]


def _list_bars(ax: Axes) -> list[BarContainer]:
    return [c for c in ax.containers if isinstance(c, BarContainer) and not str(c.get_label()).startswith("_")]


def _list_cells(ax: Axes) -> list[AxesImage]:
    return [image for image in ax.images if image.get_gid()]


def _read_axes(ax: Axes, theme: Theme) -> dict[str, Any]:
    """Read titles and numbers of an axes; colours are names in the style sheet."""
    colours = {colour: name for name, colour in reversed(theme.variables.items())}
    series = [
        {
            "name": line.get_gid(),
            "colour": colours.get(str(line.get_color()), "ink"),
            "x": _shorten_numbers(np.asarray(line.get_xdata(), dtype=float)),
            "y": _shorten_numbers(np.asarray(line.get_ydata(), dtype=float)),
        }
        for line in _list_lines(ax)
    ]
    for bars in _list_bars(ax):
        middles = [p.get_x() + p.get_width() / 2 for p in bars.patches]
        heights = [p.get_height() for p in bars.patches]
        series.append(
            {"name": bars.get_label(), "colour": "", "x": _shorten_numbers(middles), "y": _shorten_numbers(heights)}
        )
    about = {"title": ax.get_title(loc="left"), "x": ax.get_xlabel(), "rounds": _is_over_rounds(ax)}
    cells = [_read_cells(ax, image) for image in _list_cells(ax)]
    return {**about, "series": series, "cells": cells[0] if cells else None}


def _read_cells(ax: Axes, image: AxesImage) -> dict[str, Any]:
    """Read the values of a picture of cells, with the names of its rows and columns."""
    values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    left, right, _, _ = image.get_extent()
    columns = range(math.ceil(left), math.floor(right) + 1)
    name_row, name_column = (f or "{:g}".format for f in (ax.fmt_ydata, ax.fmt_xdata))
    return {
        "name": image.get_gid(),
        "first": columns[0],
        "columns": [name_column(c) for c in columns],
        "rows": [name_row(r) for r in range(len(values))],
        "values": [_shorten_numbers(row, 3) for row in values],
    }


def _shorten_numbers(values: Iterable[Any], digits: int = 5) -> list[float | int | None]:
    """Round to so many significant digits; None for what is not a finite number, whole ones without a point.

    >>> _shorten_numbers([1.2345678, 3.0, float("nan")])
    [1.2346, 3, None]
    """
    short = [float(f"{float(v):.{digits}g}") if math.isfinite(float(v)) else None for v in values]
    return [int(v) if v is not None and v == int(v) else v for v in short]
