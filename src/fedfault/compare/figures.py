"""The figures of a comparison. Each gives a Figure, or None when there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfault.compare.pairs import Comparison, compare_by_round
from fedfault.report.draw import (
    MARKERS,
    NOT_FINITE,
    Plot,
    apply_theme,
    draw_end_labels,
    draw_legend,
    draw_line,
    find_last_finite,
    make_canvas,
    name_line,
    set_loss_scale,
    set_round_axis,
)
from fedfault.report.marks import CHANGE, Mark, draw_marks, measure_headroom, place_names
from fedfault.report.theme import Theme, make_label, make_run_label
from fedfault.report.words import MANY
from fedfault.runs.recorded import RunData

FEW = 24  # clients that each have a line of their own
BANDS = 3  # pairs whose spread over the clients can be told apart


def draw_losses(c: Comparison, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the loss of the mixture over rounds, a line a run; rings where detectors raised their first alarm."""
    if not (shown := choose_drawn(c)[0]):
        return None
    until = max(run.rounds_done for _, run in shown)
    found = [
        Mark(f.round, f"{make_run_label(c.names[i])} forks", theme.palette[i], CHANGE)
        for i, run in shown
        for f in run.forks
        if f.name == "parent"
    ]
    places = place_names(found, (shown[0][1].records[0].round, until), 2.4 if narrow else 6.6)
    fig = make_canvas(narrow, 3.5 + measure_headroom(places) / 72)
    ax = fig.add_subplot()
    set_loss_scale(ax, [v for _, run in shown for v in run.losses("validation")[1]])
    set_round_axis(ax, shown[0][1], until=until)
    ends = []
    for i, run in shown:
        rounds, values = run.losses("validation")
        ends.append(_draw_course(ax, c, i, rounds, values, theme, narrow))
        _draw_alarms(ax, run, theme)
    draw_marks(ax, found, places, theme)
    draw_end_labels(ax, ends, theme, height=2.7)
    ax.set_ylabel(f"loss ({shown[0][1].unit})")
    ax.set_title("Loss of the mixture", pad=9 + measure_headroom(places))
    return fig


def _draw_course(
    ax: Axes, c: Comparison, i: int, rounds: Sequence[int], values: Sequence[float], theme: Theme, narrow: bool
) -> tuple[float, str, str]:
    """Draw the line of run i, the first one bold; returns where it ends, its label and its colour."""
    label, colour = make_run_label(c.names[i], 11 if narrow else 22), theme.palette[i]
    style: dict[str, Any] = name_line(c.names[i], label)
    style |= {"marker": MARKERS[i], "ms": 4.5} if len(rounds) <= MANY else {}
    draw_line(ax, rounds, values, theme, color=colour, lw=3 if i == 0 else 1.6, zorder=3 + i, **style)
    return find_last_finite(values), label, colour


def choose_drawn(c: Comparison) -> tuple[list[tuple[int, RunData]], list[tuple[int, RunData]]]:
    """Choose the runs whose loss of the mixture is drawn, by number: those in the first one's unit; then those left out."""
    scored = [(i, run) for i, run in enumerate(c.runs) if run.losses("validation")[0]]
    drawn = [(i, run) for i, run in scored if run.unit == scored[0][1].unit]
    return drawn, [one for one in scored if one not in drawn]


def find_first_alarms(run: RunData) -> dict[str, int]:
    """Find the round of each detector's first alarm, in order of rounds."""
    found: dict[str, int] = {}
    for f in sorted((f for f in run.findings if f.level == "alarm"), key=lambda f: f.round):
        found.setdefault(f.detector, f.round)
    return found


def _draw_alarms(ax: Axes, run: RunData, theme: Theme) -> None:
    """Draw rings around the run's line, or at the top edge where its loss is not finite."""
    rounds, values = (np.array(part, dtype=float) for part in run.losses("validation"))
    at, good = np.array(sorted(set(find_first_alarms(run).values()))), np.isfinite(values)
    lost = np.isin(at, rounds[~good])
    ring: dict[str, Any] = {"mec": theme.alarm, "mfc": "none", "mew": 2, "ms": 12, "zorder": 20, "clip_on": False}
    if lost.any():  # a line without points would take room at the figure's corner
        ax.plot(at[lost], [1.0] * lost.sum(), "o", transform=ax.get_xaxis_transform(), **ring)
    if good.any() and not lost.all():
        heights = np.interp(at[~lost], rounds[good], values[good])  # it may be a round without a score of the mixture
        ax.plot(at[~lost], heights, "o", **ring)


def draw_clients(c: Comparison, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the final held-out loss of the clients: a line a client, or where there are many, a point a client."""
    paired = [i for i, found in enumerate(c.pairs, 1) if found.clients.losses]
    if not paired:
        return None
    units = [
        k for k in c.pairs[paired[0] - 1].clients.losses if all(k in c.pairs[i - 1].clients.losses for i in paired)
    ]
    return _draw_lines(c, paired, units, theme, narrow) if len(units) <= FEW else _draw_points(c, paired, theme, narrow)


def _draw_lines(c: Comparison, paired: list[int], units: list[str], theme: Theme, narrow: bool) -> Figure:
    first = {k: a for i in paired for k, (a, _) in c.pairs[i - 1].clients.losses.items()}
    topic = {k: c.runs[0].dominant_topic(int(k)) or "" for k in units}
    units = sorted(units, key=lambda k: (topic[k], first[k]), reverse=True)
    room = _measure_room(1 + len(paired), narrow)
    fig = make_canvas(narrow, 1.2 + 0.24 * len(units) + room / 72)
    ax = fig.add_subplot()
    each = [[first[k] for k in units]]
    each += [[c.pairs[i - 1].clients.losses[k][1] for k in units] for i in paired]
    rows = range(len(units))
    for y in rows:
        finite = [values[y] for values in each if math.isfinite(values[y])]
        if finite:
            ax.plot([min(finite), max(finite)], [y, y], color=theme.grid, lw=2.5, zorder=1)
    for i, values in zip([0, *paired], each, strict=True):
        style: dict[str, Any] = {"marker": MARKERS[i], "ms": 6, "ls": "", "zorder": 3 + i}
        ax.plot(values, rows, color=theme.palette[i], label=make_run_label(c.names[i], 16 if narrow else 22), **style)
        _mark_lost(ax, [y for y, v in zip(rows, values, strict=True) if not math.isfinite(v)], theme)
    ax.set_yticks(rows, [make_label(f"{topic[k]} {k}", 14 if narrow else 22) for k in units])
    ax.set_ylim(-0.7, len(units) - 0.3)
    ax.set_xlabel(f"final held-out loss ({c.runs[0].unit})")
    ax.grid(axis="x")
    ax.set_title("Each client, with the topic it mostly holds", pad=24 + room)
    draw_legend(ax, 2 if narrow else 4)
    return fig


def _measure_room(names: int, narrow: bool) -> float:
    """Measure how many points a legend above the axes needs beyond its first line."""
    return 13.0 * (math.ceil(names / (2 if narrow else 4)) - 1)


def _mark_lost(ax: Axes, rows: list[int], theme: Theme) -> None:
    """Draw crosses at the right edge for losses that are not finite."""
    if rows:
        style: dict[str, Any] = {"color": theme.alarm, "ms": 6, "mew": 1.6, "clip_on": False}
        place: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
        ax.plot([1.0] * len(rows), rows, "x", transform=ax.get_yaxis_transform(), **style)
        ax.annotate(NOT_FINITE, (1.0, rows[-1]), (8, 0), color=theme.alarm, va="center", **place)


def _draw_points(c: Comparison, paired: list[int], theme: Theme, narrow: bool) -> Figure:
    room = _measure_room(len(paired), narrow)
    fig = make_canvas(narrow, 4.2 + room / 72)
    ax = fig.add_subplot()
    ends: list[float] = []
    for i in paired:
        both = np.array([*c.pairs[i - 1].clients.losses.values()])  # (clients, 2)
        good = both[np.isfinite(both).all(1)]
        name = make_run_label(c.names[i], 16 if narrow else 22)
        missing = f", {len(both) - len(good)} not finite" if len(good) < len(both) else ""
        style: dict[str, Any] = {"marker": MARKERS[i], "ms": 4.5, "ls": "", "alpha": 0.8}
        ax.plot(good[:, 0], good[:, 1], color=theme.palette[i], label=f"{name}{missing}", **style)
        ends += good.ravel().tolist()
    if ends:
        ax.plot([min(ends), max(ends)], [min(ends), max(ends)], color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
    ax.set_xlabel(f"final held-out loss in {make_run_label(c.names[0])} ({c.runs[0].unit})")
    ax.set_ylabel("in the other run")
    ax.grid()
    ax.set_title("Below the dashed line: better than in the first run", pad=24 + room)
    draw_legend(ax, 2 if narrow else 4)
    return fig


def draw_differences(c: Comparison, theme: Theme, narrow: bool) -> Figure | None:
    """Draw held-out losses of clients minus the first run's, round by round: their mean, and the middle 80 % of them."""
    shown = [(i, rows) for i, found in enumerate(c.pairs, 1) if (rows := compare_by_round(found))]
    if not shown:
        return None
    fig = make_canvas(narrow, 3.2)
    ax = fig.add_subplot()
    set_round_axis(ax, c.runs[0], until=max(rows[-1][0] for _, rows in shown))
    ax.axhline(0, color=theme.palette[0], lw=3, zorder=2)
    ends = [(0.0, make_run_label(c.names[0], 11 if narrow else 22), theme.palette[0])]
    for i, rows in shown:
        rounds, values = [t for t, _ in rows], np.array([each for _, each in rows])
        finite = np.isfinite(values).all(1)
        if len(shown) <= BANDS and finite.any():
            low, high = np.percentile(values[finite], (10, 90), axis=1)
            ax.fill_between(np.array(rounds)[finite], low, high, color=theme.palette[i], alpha=0.18, lw=0)
        means = np.where(finite, np.where(np.isfinite(values), values, 0.0).mean(1), math.nan).tolist()
        ends.append(_draw_course(ax, c, i, rounds, means, theme, narrow))
    ax.margins(y=0.1)
    ax.grid(axis="y")
    draw_end_labels(ax, ends, theme, height=2.5)
    ax.set_ylabel(f"difference ({c.runs[0].unit})")
    ax.set_title(f"Below zero: better for clients than {make_run_label(c.names[0])}")
    return fig


FIGURES: dict[str, Callable[[Comparison, Theme, bool], Figure | None]] = {
    "losses": draw_losses,
    "clients": draw_clients,
    "differences": draw_differences,
}


def make_plot(name: str, c: Comparison) -> Plot:
    """Make a function that draws a figure of a comparison as if it were one of a run: (run, theme, narrow) -> Figure."""
    return apply_theme(lambda _, theme, narrow: FIGURES[name](c, theme, narrow))
