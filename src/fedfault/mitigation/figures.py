"""The figure of a comparison: how much better or worse off every client is with clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfault.mitigation.comparison import CLUSTERS, TITLES, Arms, compared, differences
from fedfault.report.draw import MARKERS, Plot, canvas, themed
from fedfault.report.theme import Theme

BELOW, SPREAD = 0.24, 0.1  # of a row: how far under the mean its points lie, and over what height seeds are spread


def plot(arms: Arms, unit: str) -> Plot:
    """As the report draws those of a run: (run, theme, narrow) -> Figure."""
    return themed(lambda _, theme, narrow: _figure(arms, unit, theme, narrow))


def _figure(arms: Arms, unit: str, theme: Theme, narrow: bool) -> Figure:
    """A row for each other arm: a point a client and seed, the mean, and its interval where there is one."""
    others = [name for name in TITLES if name in arms and name != CLUSTERS]
    fig = canvas(narrow, 1.3 + 0.62 * len(others))
    ax = fig.add_subplot()
    ax.axvline(0, color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
    for row, name in enumerate(others):
        _row(ax, len(others) - 1 - row, row, arms, name, theme)
    ax.set_yticks(range(len(others)), [TITLES[name] for name in reversed(others)])
    ax.set_ylim(-0.6, len(others) - 0.4)
    ax.margins(x=0.06)
    ax.grid(axis="x")
    ax.set_xlabel(
        f"loss with clusters minus loss with\n… ({unit})"
        if narrow
        else f"loss with clusters minus loss with … ({unit})"
    )
    ax.set_title("Left: better off in clusters" if narrow else "Left of the line: better off with clusters")
    return fig


def _row(ax: Axes, y: int, colour: int, arms: Arms, name: str, theme: Theme) -> None:
    found = compared(arms, name)
    seeds = [[d for d in own.values() if math.isfinite(d)] for own in differences(arms, name).values()]
    own: dict[str, Any] = {"color": theme.palette[colour]}
    for place, values in zip(_places(len(seeds)), seeds, strict=True):
        ax.plot(values, [y - BELOW + place] * len(values), "o", ms=3.5, alpha=0.6, mew=0, zorder=2, **own)
    if found["interval"] is not None:
        ax.plot(found["interval"], [y, y], lw=2.2, color=theme.ink, zorder=4)
    if math.isfinite(found["mean"]):
        ax.plot(found["mean"], y, MARKERS[colour], ms=8, mec=theme.ink, mew=1.4, zorder=5, **own)


def _places(count: int) -> Sequence[float]:
    """
    >>> _places(3)
    [-0.1, 0.0, 0.1]
    """
    return [SPREAD * (2 * i / (count - 1) - 1) if count > 1 else 0.0 for i in range(count)]
