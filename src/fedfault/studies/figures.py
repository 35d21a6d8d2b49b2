"""The figures of a study: answers, cells, maps of two axes. Each gives a Figure, or None when there is nothing to show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from fedfault.records import STATES
from fedfault.report.draw import Plot, apply_theme, make_canvas
from fedfault.report.figures.heat import draw_gaps, remove_frame
from fedfault.report.theme import FONT, Theme, choose_ink, make_label
from fedfault.report.words import format_number
from fedfault.runs.recorded import RunData
from fedfault.studies.answers import Answer, SeedDifferences
from fedfault.studies.clients import compare_clients
from fedfault.studies.outcomes import METRIC
from fedfault.studies.results import Results, name_contrast
from fedfault.studies.statements import select_map_cells
from fedfault.studies.study import PhaseMap
from fedfault.studies.timeline import draw_timeline

MOST = 60  # rows that a figure can have
WIDE = 44  # letters that fit below a map that is half as wide as the page
ABREAST = 8  # columns of such a map whose cells have room for a number


def make_figures(r: Results) -> dict[str, Plot]:
    """Name -> plot, in the order of the report."""
    drawn = {"answers": _drop_run(lambda theme, narrow: draw_answers(r, theme, narrow))}
    for m in r.study.maps:
        drawn[f"map-{m.name}"] = _drop_run(lambda theme, narrow, m=m: draw_map(r, m, theme, narrow))  # type: ignore[misc]
    drawn["timeline"] = _drop_run(lambda theme, narrow: draw_timeline(r, theme, narrow))
    drawn["clients"] = _drop_run(lambda theme, narrow: draw_clients(r, theme, narrow))
    return {**drawn, "cells": _drop_run(lambda theme, narrow: draw_cells(r, theme, narrow))}


def _drop_run(plot: Callable[[Theme, bool], Figure | None]) -> Plot:
    """A study has many runs, so the one that a plot is usually given is not used."""

    @apply_theme
    def draw(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
        return plot(theme, narrow)

    return draw


def draw_answers(r: Results, theme: Theme, narrow: bool) -> Figure | None:
    """The contrast that decides each hypothesis, in units of the smallest difference that matters."""
    rows = [(a, a.decisive) for a in r.answers if a.decisive.values and a.hypothesis.by > 0]
    if not rows or len(rows) > MOST:
        return None
    fig = make_canvas(narrow, 1.3 + 0.3 * len(rows))
    ax = fig.add_subplot()
    colours = {"supported": theme.good, "refuted": theme.alarm, "inconclusive": theme.muted}
    marks = {"supported": "o", "refuted": "X", "inconclusive": "D"}
    for y, (a, f) in enumerate(rows):
        colour, scaled = colours[a.verdict], _scale(a, f)
        ax.plot(scaled, [y] * len(scaled), "|", color=theme.muted, ms=6, mew=1, alpha=0.7, clip_on=False)
        if f.interval is not None and np.isfinite(f.interval).all():
            ax.plot(_orient(a, f.interval), [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        if f.mean is not None and math.isfinite(f.mean):
            ax.plot(_orient(a, (f.mean,)), [y], marks[a.verdict], color=colour, ms=7, mec=theme.surface)
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.7)
    ax.xaxis.set_major_formatter(lambda value, _: format_number(value, "g"))
    for place, colour in ((-1, theme.grid), (0, theme.grid), (1, theme.muted)):
        ax.axvline(place, color=colour, lw=1, zorder=0)
    most = max([abs(v) for a, f in rows for v in _scale(a, f)], default=1.0)
    ax.set_xlim(-1.5 * max(most, 1.2), 1.5 * max(most, 1.2))
    names = [_wrap_label(a.hypothesis.name, 2, 18) if narrow else make_label(a.hypothesis.name, 46) for a, _ in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    remove_frame(ax)
    ax.set_xlabel("difference / smallest that matters")
    ax.set_title("Claimed: above 1, or in ±1" if narrow else "What was claimed lies right of 1, or within ±1 for equal")
    handles = [
        ax.plot([], [], marks[v], color=colours[v], ms=7, mec=theme.surface, label=v)[0]
        for v in dict.fromkeys(a.verdict for a, _ in rows)
    ]
    fig.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, handlelength=1.2)
    return fig


def _orient(a: Answer, values: Any) -> list[float]:
    sign = -1.0 if a.hypothesis.expect == "lower" else 1.0
    return [sign * v / a.hypothesis.by for v in values]


def _scale(a: Answer, f: SeedDifferences) -> list[float]:
    return [v for v in _orient(a, f.values) if math.isfinite(v)]


def draw_cells(r: Results, theme: Theme, narrow: bool) -> Figure | None:
    """The final loss of every cell: a mark a seed, the mean as a dot."""
    scored = [i for i, cell in enumerate(r.study.cells) if r.values(cell, METRIC)]
    rows = [r.values(r.study.cells[i], METRIC) for i in scored]
    names, unit = _place_units([r.study.cells[i].name for i in scored], [r.units([i]) for i in scored])
    if not rows or len(rows) > MOST:
        return None
    fig = make_canvas(narrow, 1.1 + (0.34 if narrow else 0.24) * len(rows))
    ax = fig.add_subplot()
    for y, values in enumerate(rows):
        finite = [v for v in values if math.isfinite(v)]
        ax.plot(finite, [y] * len(finite), "|", color=theme.muted, ms=8, mew=1.2)
        if finite:
            ax.plot([np.mean(finite)], [y], "o", color=theme.palette[0], ms=6, mec=theme.surface)
        if lost := len(values) - len(finite):
            ax.text(1.0, y, f"× {lost} not finite", color=theme.alarm, transform=ax.get_yaxis_transform(), va="center")
    ax.set_yticks(range(len(rows)), [_wrap_label(name, 2, 28) if narrow else make_label(name, 60) for name in names])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="both")
    remove_frame(ax)
    ax.set_xlabel(f"final validation loss{unit and f' ({unit})'}")
    ax.set_title("Every run, by cell")
    return fig


def draw_clients(r: Results, theme: Theme, narrow: bool) -> Figure | None:
    """How much better or worse off every client is in one arm than in another: a point a client and seed, and the mean."""
    rows = compare_clients(r)
    if not rows or len(rows) > MOST:
        return None
    fig = make_canvas(narrow, 1.3 + 0.62 * len(rows))
    ax = fig.add_subplot()
    ax.axvline(0, color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
    for y, found in enumerate(rows):
        seeds = [[d for d in own.values() if math.isfinite(d)] for own in found.by_seed.values()]
        for place, values in zip(np.linspace(-0.1, 0.1, len(seeds)) if len(seeds) > 1 else [0.0], seeds, strict=True):
            heights = [y + 0.24 + place] * len(values)
            ax.plot(values, heights, "o", color=theme.palette[0], ms=3.5, alpha=0.6, mew=0, zorder=2)
        if found.interval is not None and np.isfinite(found.interval).all():
            ax.plot(found.interval, [y, y], lw=2.2, color=theme.ink, zorder=4)
        if math.isfinite(found.mean):
            ax.plot([found.mean], [y], "o", color=theme.palette[0], ms=8, mec=theme.ink, mew=1.4, zorder=5)
    names, unit = _place_units(
        [name_contrast(r.study, found.contrast) for found in rows], [r.units(found.contrast.cells) for found in rows]
    )
    ax.set_yticks(range(len(rows)), [_wrap_label(name, 2, 18) if narrow else make_label(name, 46) for name in names])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.06)
    ax.grid(axis="x")
    remove_frame(ax)
    ax.set_xlabel(f"difference of final held-out loss{chr(10) if narrow else ' '}{unit and f'({unit})'}".rstrip())
    ax.set_title(
        "Left: better off in the first arm" if narrow else "Left of the line: better off in the first of two arms"
    )
    return fig


def _place_units(names: Sequence[str], units: Sequence[Sequence[str]]) -> tuple[Sequence[str], str]:
    """Names of rows, and the unit of all of them for the axis; where the rows have several it stands in each name instead.

    >>> _place_units(["a", "b"], [["nats per token"], ["nats per token"]])
    (['a', 'b'], 'nats per token')
    >>> _place_units(["a", "b"], [["nats per token"], ["nats per pair"]])
    (['nats per token: a', 'nats per pair: b'], '')
    """
    own = [", ".join(each) for each in units]
    if len(set(own)) == 1:
        return names, own[0]
    return [f"{unit}: {name}" for unit, name in zip(own, names, strict=True)], ""


def _wrap_label(name: str, most: int, width: int) -> str:
    """A long name on several lines."""
    return "\n".join(make_label(line, width) for line in textwrap.wrap(name, width)[:most])


def draw_map(r: Results, m: PhaseMap, theme: Theme, narrow: bool) -> Figure | None:
    """Two heat maps over the same axes: the metric's mean over shared seeds, and how many runs ended in which state.

    Where columns are too many for their numbers the maps stand below one another, and on a phone x goes down.
    """
    shown = select_map_cells(m, r.study.cells)
    x, y = m.x, m.y
    xs, ys = (sort_labels([c.choices[axis] for c in shown]) for axis in (x, y))
    if narrow and len(xs) > max(len(ys), ABREAST):
        x, y, xs, ys = y, x, ys, xs
    stacked = narrow or len(xs) > ABREAST
    room = 2 * WIDE if stacked and not narrow else WIDE
    values, states = np.full((len(ys), len(xs)), np.nan), np.zeros((len(ys), len(xs), len(STATES)))
    lost = np.zeros((len(ys), len(xs)), dtype=int)
    for c, found in zip(shown, r.shared_values(shown, m.metric), strict=True):
        at = ys.index(c.choices[y]), xs.index(c.choices[x])
        finite = [v for v in found if math.isfinite(v)]
        values[at], lost[at], states[at] = np.mean(finite) if finite else np.nan, len(found) - len(finite), r.states(c)
    if not np.isfinite(values).any() and not lost.any():
        return None
    height = 1.6 + 0.42 * len(ys)
    fig = make_canvas(narrow, 2 * height if stacked else height)
    left, right = fig.subplots(*((2, 1) if stacked else (1, 2)))
    _draw_values(left, values, lost, theme)
    left.set_title(f"{make_label(m.metric, 24)}{',' + chr(10) if narrow else ', '}mean over seeds")
    _draw_states(right, states, theme)
    right.set_title("Verdicts")
    for ax in (left, right):
        below = cut_labels(xs, 12)
        slanted = (
            {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, below)) * len(xs) > room else {}
        )
        ax.set_xticks(range(len(xs)), below, **slanted)
        ax.set_yticks(range(len(ys)), cut_labels(ys, 16 if narrow else 22))
        ax.set_xlabel(make_label(x))
        ax.set_ylabel(make_label(y))
        draw_gaps(ax, theme, (0, len(xs) - 1), (0, len(ys) - 1))
        remove_frame(ax)
    _draw_legend(fig, states, theme)
    return fig


def cut_labels(labels: Sequence[str], limit: int) -> list[str]:
    """Make labels fit for ticks: what is too long is cut before its last word, which tells settings of an option apart.

    >>> cut_labels(["topic_skew alpha 0.03", "topic_skew alpha 0.1", "iid"], 16)
    ['topic_skew… 0.03', 'topic_skew… 0.1', 'iid']
    """
    found = []
    for label in labels:
        name, setting = label.split(" ")[0], label.split(" ")[-1]
        cut = len(label) > limit and name != label and len(setting) < limit // 2
        found.append(f"{name[: limit - len(setting) - 2]}… {setting}" if cut else label)
    return [make_label(label, limit) for label in found]


def sort_labels(labels: Sequence[str]) -> list[str]:
    """Each label once: numbers by their size, names as they come.

    >>> sort_labels(["4", "40", "8", "4"]), sort_labels(["iid", "0.1"])
    (['4', '8', '40'], ['iid', '0.1'])
    """
    found = list(dict.fromkeys(labels))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def _draw_values(ax: Axes, values: np.ndarray, lost: np.ndarray, theme: Theme) -> None:
    cmap = ListedColormap(theme.cmap(np.linspace(0.1, 1, 256))).with_extremes(bad=theme.empty)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = max(high, low + 1e-6)
    style: dict[str, Any] = {"vmin": low, "vmax": high, "aspect": "auto", "interpolation": "none"}
    ax.imshow(np.ma.masked_invalid(values), cmap=cmap, **style)
    digits = 2 if high - low >= 0.1 else 3
    for (i, j), v in np.ndenumerate(values):
        known = math.isfinite(v)
        text = f"{v:.{digits}f}".replace("-", "−") if known else ""
        text += f"{' ' * known}×{lost[i, j]}" if lost[i, j] else ""
        ink = choose_ink(cmap((v - low) / (high - low))) if known else theme.alarm
        ax.text(j, i, text, ha="center", va="center_baseline", color=ink, fontsize=FONT - 1)


def pick_state_colours(theme: Theme) -> tuple[str, ...]:
    """A colour for each of the states of a verdict, in their order."""
    return theme.good, theme.palette[5], theme.muted, theme.palette[6], theme.warn, theme.alarm


def _draw_states(ax: Axes, states: np.ndarray, theme: Theme) -> None:
    """Every cell is divided into as many parts as there are states, wide as their share of the runs."""
    colours = pick_state_colours(theme)
    for i, j in np.ndindex(states.shape[:2]):
        total, start = states[i, j].sum(), j - 0.5
        for count, colour in zip(states[i, j], colours, strict=True):
            if not count:
                continue
            ax.barh(i, count / total, left=start, height=1.0, color=colour, lw=0)
            middle = start + count / total / 2
            ax.text(
                middle,
                i,
                f"{count:.0f}",
                ha="center",
                va="center_baseline",
                color=choose_ink(colour),
                fontsize=FONT - 1,
            )
            start += count / total
    ax.set_xlim(-0.5, states.shape[1] - 0.5)
    ax.set_ylim(states.shape[0] - 0.5, -0.5)


def _draw_legend(fig: Figure, states: np.ndarray, theme: Theme) -> None:
    from matplotlib.patches import Patch

    there = [n for n in range(len(STATES)) if states[..., n].any()]
    colours = pick_state_colours(theme)
    handles = [Patch(color=colours[n], label=f"runs {STATES[n]}") for n in there]
    if handles:
        fig.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, handlelength=1.0)
