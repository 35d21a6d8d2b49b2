"""The figure of what a run cost."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfault.report.draw import apply_theme, draw_legend, make_panels, name_line, set_round_axis, style_lone_dot
from fedfault.report.theme import Theme, make_label
from fedfault.runs.recorded import RunData, seconds_by_part


@apply_theme
def draw_traffic(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the bytes over the network since the start, and the seconds of each round by part."""
    moved = not run.centralised and any(r.bytes_up or r.bytes_down for r in run.records)
    timed = any(s for r in run.records for s in r.seconds.values())
    panels = [draw for draw, there in ((_draw_bytes, moved), (_draw_seconds, timed)) if there]
    if not panels:
        return None
    fig, axes = make_panels(narrow, len(panels), 2.8)
    for ax, draw in zip(axes, panels, strict=True):
        draw(ax, run, theme)
        ax.set_ylim(0, None)
        ax.grid(axis="y")
        set_round_axis(ax, run)
    return fig


def _draw_bytes(ax: Axes, run: RunData, theme: Theme) -> None:
    rounds = [r.round for r in run.records]
    up = list(accumulate(r.bytes_up for r in run.records))
    down = list(accumulate(r.bytes_down for r in run.records))
    scale, unit = (1e9, "GB") if max(up[-1], down[-1]) >= 1e10 else (1e6, "MB")
    for values, name, style, colour in ((up, "up", "-", theme.palette[0]), (down, "down", "--", theme.palette[1])):
        total = f"{name}: {values[-1] / scale:.3g} {unit}"
        ax.plot(
            rounds,
            [v / scale for v in values],
            style,
            color=colour,
            lw=2,
            **name_line(f"{name} ({unit})", total),
            **style_lone_dot(rounds),
        )
    ax.set_title("Traffic, all clients, since the start", pad=24)
    ax.set_ylabel(unit)
    draw_legend(ax, 2)


def _draw_seconds(ax: Axes, run: RunData, theme: Theme) -> None:
    rounds, bottom = [r.round for r in run.records], np.zeros(len(run.records))
    each = [seconds_by_part(r) for r in run.records]
    parts = list(dict.fromkeys(["train", "aggregate", "evaluate", *(p for seconds in each for p in seconds)]))
    parts = [p for p in parts if any(seconds.get(p) for seconds in each)]
    for part, colour in zip(parts, (*theme.palette, *[theme.muted] * len(parts)), strict=False):
        values = np.array([seconds.get(part, 0.0) for seconds in each])
        ax.bar(rounds, values, bottom=bottom, width=0.8, color=colour, label=make_label(part, 12))
        bottom += values
    ax.set_title("Time of each round", pad=24)
    ax.set_ylabel("seconds")
    draw_legend(ax, 4)
