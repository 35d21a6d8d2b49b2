"""Figures of the loss over rounds: of every topic, and of general English."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from fedfault.report.captions import have_numbers
from fedfault.report.draw import (
    MARKERS,
    apply_theme,
    colour_topics,
    draw_end_labels,
    draw_line,
    find_last_finite,
    make_canvas,
    name_line,
    set_loss_scale,
    set_round_axis,
    style_dots,
    style_lone_dot,
)
from fedfault.report.figures.heat import draw_gaps, remove_frame
from fedfault.report.marks import collect_marks, draw_marks, measure_headroom, place_names
from fedfault.report.theme import FONT, Theme, choose_ink, make_label
from fedfault.report.values import mark_round
from fedfault.report.words import MANY, format_change, format_number, format_perplexity, name_metric
from fedfault.runs.recorded import RunData

Ends = list[tuple[float, str, str]]


@apply_theme
def draw_loss_by_topic(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the loss of every topic after every round, the mixture as the thick line, and below who trained.

    A marker on a topic's line says that a client that mostly holds this topic trained in that round. A dashed line, where
    the corpus is a known generator, is the entropy of the mixture, which no model can beat. Vertical lines stand where
    detectors found something and where the run was forked; the course that it did not take is dashed.
    """
    names = [n for n in ("validation", *run.score_names("topic/")) if run.losses(n)[0]]
    if not names:
        return None
    until = max((f.records[-1].round for f in run.forks if f.records), default=0)
    last = max(until, run.rounds_done)
    found = [m for m in collect_marks(run, theme, narrow) if m.round <= last]
    places = place_names(found, (run.records[0].round, last), 2.4 if narrow else 6.6)
    cohort = 0 if run.centralised else max((len(r.clients) for r in run.records), default=0)
    strip = min(0.35 + 0.17 * cohort, 1.2) if cohort else 0.0
    fig = make_canvas(narrow, 3.3 + strip + measure_headroom(places) / 72)
    grid = fig.add_gridspec(2 if cohort else 1, 1, height_ratios=[3.0, strip] if cohort else [1])
    ax = fig.add_subplot(grid[0])
    floor = [v for n, v in run.split.get("floor", {}).items() if n == "validation"]
    elsewhere = [v for f in run.forks for v in _find_course(run, f.records, f.round)[1]]
    set_loss_scale(ax, [*floor, *elsewhere, *(v for n in names for v in run.losses(n)[1])])
    set_round_axis(ax, run, title=not cohort, until=until)
    ends = [*_draw_topics(ax, run, theme, narrow), *_draw_other_courses(ax, run, theme), *_draw_mixture(ax, run, theme)]
    for entropy in floor:
        ax.axhline(entropy, color=theme.muted, lw=1.2, ls=(0, (4, 3)))
        ends.append((entropy, "entropy", theme.muted))
    draw_marks(ax, found, places, theme)
    draw_end_labels(ax, ends, theme, height=2.5)
    ax.set_ylabel(f"loss ({run.unit})")
    ax.set_title(_describe_course(run), pad=9 + measure_headroom(places))
    if cohort:
        ax.tick_params(labelbottom=False)
        _draw_strip(fig.add_subplot(grid[1], sharex=ax), run, theme, narrow, until)
    return fig


def _draw_topics(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> Ends:
    if len(run.topics) < 2 and run.losses("validation")[0]:
        return []  # the mixture is that topic
    colours = colour_topics(run, theme)
    others = [t for t in run.topics if t not in colours and run.losses(f"topic/{t}")[0]]
    for topic in others:
        draw_line(ax, *run.losses(f"topic/{topic}"), theme, color=theme.muted, lw=0.6, alpha=0.45, **name_line(topic))
    ends: Ends = []
    for (topic, colour), marker in zip(colours.items(), MARKERS, strict=False):
        rounds, losses = run.losses(f"topic/{topic}")
        if not rounds:
            continue
        there = {r.round for r in run.records if topic in run.topics_trained(r)} if len(run.records) <= MANY else set()
        at = [i for i, n in enumerate(rounds) if n in there]
        style: dict[str, Any] = {"marker": marker, "ms": 4.5, "markevery": at} if at else style_lone_dot(rounds)
        label = make_label(topic, 11 if narrow else 22)
        draw_line(ax, rounds, losses, theme, color=colour, lw=1.4, **name_line(topic, label), **style)
        ends.append((find_last_finite(losses), label, colour))
    if others:
        middle = float(np.median([find_last_finite(run.losses(f"topic/{t}")[1]) for t in others]))
        ends.append((middle, f"{len(others)} others", theme.muted))
    return ends


def _draw_mixture(ax: Axes, run: RunData, theme: Theme) -> Ends:
    rounds, losses = run.losses("validation")
    if not rounds:
        return []
    name = "mixture" if len(run.topics) > 1 else "validation"
    draw_line(ax, rounds, losses, theme, color=theme.ink, lw=3.2, zorder=5, **name_line(name), **style_lone_dot(rounds))
    return [(find_last_finite(losses), name, theme.ink)]


def _draw_other_courses(ax: Axes, run: RunData, theme: Theme) -> Ends:
    """Draw the loss of the mixture in rounds that are not this run's: of its parent after the fork, or given up."""
    ends = []
    for fork in run.forks:
        rounds, losses = _find_course(run, fork.records, fork.round)
        if len(rounds) > 1:
            draw_line(
                ax, rounds, losses, theme, color=theme.ink, lw=1.8, ls=(0, (4, 2)), zorder=4, **name_line(fork.name)
            )
            ends.append((find_last_finite(losses), fork.name, theme.ink))
    return ends


def _find_course(run: RunData, records: Any, since: int) -> tuple[list[int], list[float]]:
    """Find the loss of the mixture in these records from the fork on; the fork's own round is this run's."""
    loss = {r.round: r.scores["validation"].loss for r in records if "validation" in r.scores and r.round > since}
    rounds, losses = run.losses("validation")
    loss |= {n: v for n, v in zip(rounds, losses, strict=True) if n == since}
    return sorted(loss), [loss[n] for n in sorted(loss)]


def _describe_course(run: RunData) -> str:
    if run.labelled:
        shown = [
            f"{name_metric(metric)} {_format_ends(run.metric('validation', metric)[1])}"
            for metric in run.metrics_measured[:1]
        ]
        return f"Validation: {', '.join(shown)}" if shown else "Loss"
    scores = [r.scores["validation"] for r in run.records if "validation" in r.scores]
    if not scores:
        return "Loss of each topic"
    values = [format_perplexity(s.loss) for s in scores]
    mixed = "Mixture" if len(run.topics) > 1 else "Validation"
    return f"{mixed}: perplexity {' → '.join(dict.fromkeys((values[0], values[-1])))}"


def _format_ends(values: list[float]) -> str:
    return " → ".join(dict.fromkeys(format_number(v) for v in (values[0], values[-1])))


def _draw_strip(ax: Axes, run: RunData, theme: Theme, narrow: bool, until: int) -> None:
    """Draw a cell for every client that trained in a round, in the colour of the topic that it mostly holds."""
    colours, first, last = colour_topics(run, theme), run.records[0].round, run.records[-1].round
    order = {t: i for i, t in enumerate(colours)}
    cohort = max(len(r.clients) for r in run.records)
    cells = np.zeros((cohort, last - first + 1, 4))
    ids = []
    for r in run.records:
        by_topic = sorted(
            r.clients, key=lambda c: (order.get(run.dominant_topic(c.client) or "", len(order)), c.client)
        )
        for row, client in enumerate(c.client for c in by_topic):
            colour = colours.get(run.dominant_topic(client) or "", theme.grid)
            cells[row, r.round - first] = to_rgba(colour)
            ids.append((r.round, row, str(client), choose_ink(colour)))
    extent = (first - 0.5, last + 0.5, -0.5, cohort - 0.5)
    ax.imshow(cells, aspect="auto", interpolation="none", origin="lower", extent=extent)
    draw_gaps(ax, theme, (first, last), (0, cohort - 1) if cohort <= 12 else (0, 0))
    if have_numbers(run) and last - first <= (13 if narrow else 24):
        for x, y, text, colour in ids:
            ax.text(x, y, text, color=colour, ha="center", va="center_baseline", fontsize=FONT - 2, gid=mark_round(x))
    remove_frame(ax)
    ax.set_yticks([])
    ax.set_ylabel("trained", rotation=0, ha="right", va="center")
    set_round_axis(ax, run, until=until)


@apply_theme
def draw_general(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw forgetting: by how much the loss on general English differs from that of the model before training.

    The band, where the standard error of the change is known, is 1.96 of it to either side.
    """
    rounds, losses = run.losses("general")
    if not rounds or rounds[0] != 0 or not math.isfinite(losses[0]):
        return None
    change = np.array([v - losses[0] for v in losses])
    known = {r.round: r.scores["general"].se for r in run.records if "general" in r.scores}
    error = 1.96 * np.array([known[n] or 0.0 for n in rounds])
    fig = make_canvas(narrow, 2.8)
    ax = fig.add_subplot()
    set_loss_scale(ax, [*(change + error), *(change - error), 0.05, -0.02])  # less than that would only magnify noise
    set_round_axis(ax, run)
    ax.set_yscale("linear")
    ax.axhline(0, color=theme.muted, lw=1)
    colour, finite = theme.palette[1], np.isfinite(change)
    if error.any():
        ax.fill_between(rounds, change - error, change + error, where=finite.tolist(), color=colour, alpha=0.25, lw=0)
    else:
        ax.fill_between(rounds, np.where(finite, change, 0.0), color=colour, alpha=0.15, lw=0)
    draw_line(ax, rounds, change.tolist(), theme, color=colour, lw=2.2, **name_line("change"), **style_dots(rounds))
    last = find_last_finite(change.tolist())
    draw_end_labels(ax, [(last, format_change(last), colour)], theme, height=2.1)
    ax.set_ylabel("change of loss\n(nats per token)" if narrow else "change of loss (nats per token)")
    ax.set_title("General English, against round 0")
    return fig
