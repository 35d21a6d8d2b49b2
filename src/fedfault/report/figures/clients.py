"""Figures of how the clients fare: their held-out losses, and what they gained."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedfault.report.draw import (
    apply_theme,
    draw_end_labels,
    find_last_finite,
    make_canvas,
    mark_not_finite,
    name_line,
    set_loss_scale,
    set_round_axis,
    style_lone_dot,
)
from fedfault.report.theme import Theme
from fedfault.report.words import name_metric
from fedfault.runs.recorded import RunData

PERCENTILES = (0, 10, 50, 90, 100)


@apply_theme
def draw_clients(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the held-out loss of the clients: median, the band that holds the middle 80 %, best and worst."""
    names = run.score_names("client/")
    rows = [(r.round, np.array([r.scores[n].loss for n in names if n in r.scores])) for r in run.records]
    rows = [(n, losses) for n, losses in rows if losses.size]
    if not rows:
        return None
    fig = make_canvas(narrow, 3.2)
    ax = fig.add_subplot()
    fan = _compute_percentiles(rows)
    set_loss_scale(ax, fan.ravel())
    set_round_axis(ax, run)
    ax.set_ylabel(f"held-out loss ({run.unit})")
    outer = {"worst": 4, "best": 0} if len(names) > 1 else {}
    ends = _draw_fan(ax, [n for n, _ in rows], fan, theme, theme.palette[0], outer)
    if run.num_clients > 1:
        band = "; the band holds the middle 80 %" if len(names) > 1 else ""
        ax.set_title(f"{_count_scored(run, len(names))}{band}")
    mark_not_finite(ax, [n for n, losses in rows if not np.isfinite(losses).all()], theme)
    draw_end_labels(ax, ends, theme, height=2.5)
    return fig


@apply_theme
def draw_labels(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw every metric of labels on the validation set, and the first of them on the clients' own sets.

    A dashed line is the target of the configuration.
    """
    metrics = run.metrics_measured
    if not metrics:
        return None
    first, rows = metrics[0], _collect_own_metric(run, metrics[0])
    fig = make_canvas(narrow, 3.2)
    ax = fig.add_subplot()
    ends = []
    if rows:
        fan, at = _compute_percentiles(rows), [n for n, _ in rows]
        ax.fill_between(at, fan[:, 1], fan[:, 3], color=theme.palette[0], alpha=0.22, lw=0)
        named = name_line("median of the clients", "clients")
        ax.plot(at, fan[:, 2], color=theme.palette[0], lw=1.2, **named, **style_lone_dot(at))
        ends.append((find_last_finite(fan[:, 2].tolist()), "clients", theme.palette[0]))
    for metric, colour in zip(metrics, (theme.ink, theme.palette[1]), strict=False):
        rounds, values = run.metric("validation", metric)
        ax.plot(
            rounds,
            values,
            color=colour,
            lw=2.6 if metric == first else 1.4,
            **name_line(name_metric(metric)),
            **style_lone_dot(rounds),
        )
        ends.append((find_last_finite(values), name_metric(metric), colour))
    target = run.setting("evaluation", "target_score")
    if target is not None:
        ax.axhline(target, color=theme.muted, lw=1.2, ls=(0, (4, 3)))
        ends.append((target, "target", theme.muted))
    set_round_axis(ax, run)
    ax.margins(y=0.1)
    ax.grid(axis="y")
    ax.set_ylabel(name_metric(first))
    ax.set_title(f"Validation {name_metric(first)}")
    draw_end_labels(ax, ends, theme, height=2.5)
    return fig


def _collect_own_metric(run: RunData, metric: str) -> list[tuple[int, np.ndarray]]:
    """Collect by round the metric on each client's own set, where it is defined; nothing for a single client."""
    names = run.score_names("client/")
    own = [(r.round, [r.scores[n].metrics.get(metric) for n in names if n in r.scores]) for r in run.records]
    rows = [(n, np.array([v for v in values if v is not None])) for n, values in own]
    return [(n, values) for n, values in rows if values.size] if len(names) > 1 else []


@apply_theme
def draw_fairness(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the gains of the clients since before training: median, the band of the middle 80 %, the worst; how many lost."""
    rows = [(n, np.array(list(gains.values()))) for n, gains in run.gains()]
    if not rows:
        return None
    rounds, count = [n for n, _ in rows], len(rows[-1][1])
    losers = [int((~(gains >= 0)).sum()) for _, gains in rows]  # with those whose gain is not a number
    fig = make_canvas(narrow, 4.0 if any(losers) else 3.2)
    axes = fig.subplots(2, 1, height_ratios=[4, 1], sharex=True) if any(losers) else [fig.add_subplot()]
    ax = axes[0]
    fan = _compute_percentiles(rows)
    set_loss_scale(ax, [*fan[:, :4].ravel(), 0.0])
    ax.set_yscale("linear")
    ax.axhline(0, color=theme.muted, lw=1)
    ends = _draw_fan(ax, rounds, fan, theme, theme.palette[2], {"worst": 0} if count > 1 else {})
    mark_not_finite(ax, [n for n, gains in rows if not np.isfinite(gains).all()], theme)
    ax.set_ylabel(f"gain\n({run.unit})" if narrow else f"gain ({run.unit})")
    many = {0: "none", count: "all"}.get(losers[-1], f"{losers[-1]}")
    who = _count_scored(run, count)
    title = f"{who}, {many} of them below zero in the end{', by however little' if losers[-1] else ''}"
    short = f"{who}, {many} below zero" if narrow else title
    ax.set_title(short if count > 1 else "One client" if run.num_clients == 1 else who)
    draw_end_labels(ax, ends, theme, height=2.5)
    if any(losers):
        ax.tick_params(labelbottom=False)
        axes[1].bar(rounds, losers, width=0.8, color=theme.alarm, label="below zero")
        axes[1].set_ylabel("below\nzero")
        axes[1].yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes[1].set_ylim(0, max(losers) + 0.3)
    set_round_axis(axes[-1], run)
    return fig


def _count_scored(run: RunData, scored: int) -> str:
    """Count the clients that were scored, and of how many, where some were not: `4 of 5 clients`."""
    return f"{scored} of {run.num_clients} clients" if scored < run.num_clients else f"{scored} clients"


def _compute_percentiles(rows: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Compute the percentiles of the finite values of every row, (rounds, 5); NaN where there are none."""
    finite = [values[np.isfinite(values)] for _, values in rows]
    return np.array([np.percentile(f, PERCENTILES) if f.size else [np.nan] * 5 for f in finite])


def _draw_fan(
    ax: Axes, rounds: list[int], fan: np.ndarray, theme: Theme, colour: str, outer: dict[str, int]
) -> list[tuple[float, str, str]]:
    """Draw the median, and around it, with several clients, the band and the columns that are named in `outer`."""
    dot, middle = style_lone_dot(rounds), "median" if outer else "the one client"
    ax.plot(rounds, fan[:, 2], color=theme.ink, lw=2.6, **name_line(middle), **dot)
    ends = [(find_last_finite(fan[:, 2].tolist()), middle, theme.ink)]
    if outer:
        ax.fill_between(rounds, fan[:, 1], fan[:, 3], color=colour, alpha=0.22, lw=0)
    for name, column in outer.items():
        ls = "--" if name == "best" else "-"
        ax.plot(rounds, fan[:, column], color=colour, lw=1.2, ls=ls, **name_line(name), **dot)
        ends.append((find_last_finite(fan[:, column].tolist()), name, colour))
    return ends
