"""Figures of what probes measured in every round, as small panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfault.report.draw import (
    apply_theme,
    draw_end_labels,
    draw_line,
    find_last_finite,
    make_panels,
    name_line,
    set_loss_scale,
    set_round_axis,
    style_dots,
)
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

HEIGHT = 2.7  # inches of a panel


class Curve(NamedTuple):
    """A line in a panel: rounds and values; its name stands at its end."""

    points: tuple[list[int], list[float]]
    colour: int = 0  # of the palette
    name: str = ""
    band: Sequence[float] = ()  # half the height of the band around each value
    least: float = -math.inf  # where the band ends: no value can be below


class Panel(NamedTuple):
    """Curves over rounds, and a level to compare them with."""

    title: str
    unit: str
    curves: Sequence[Curve]
    level: float | None = None


def draw_panels(run: RunData, theme: Theme, narrow: bool, wanted: Sequence[Panel]) -> Figure | None:
    """Draw those panels that have anything to show."""
    shown = [p for p in wanted if any(c.points[0] for c in p.curves)]
    if not shown:
        return None
    fig, axes = make_panels(narrow, len(shown), HEIGHT)
    for ax, panel in zip(axes, shown, strict=True):
        draw_panel(ax, run, theme, panel)
    return fig


def draw_panel(ax: Axes, run: RunData, theme: Theme, panel: Panel) -> None:
    """Draw the curves of a panel, with their names at their ends."""
    curves = [c for c in panel.curves if c.points[0]]
    level = [] if panel.level is None else [panel.level]
    edges = [
        max(v + s * b, c.least) for c in curves for v, b in zip(c.points[1], c.band, strict=False) for s in (-1, 1)
    ]
    set_loss_scale(ax, [*level, *edges, *(v for c in curves for v in c.points[1])])
    set_round_axis(ax, run)
    for value in level:
        ax.axhline(value, color=theme.muted, lw=1)
    for curve in curves:
        rounds, values = curve.points
        colour = theme.palette[curve.colour]
        if curve.band:
            low, high = (np.array(values) + sign * np.array(curve.band) for sign in (-1, 1))
            low = np.maximum(low, curve.least)
            ax.fill_between(rounds, low, high, color=colour, alpha=0.2, lw=0)
        named = name_line(curve.name or panel.title, curve.name)
        draw_line(ax, rounds, values, theme, color=colour, lw=1.8, **named, **style_dots(rounds))
    ends = [(find_last_finite(c.points[1]), c.name, theme.palette[c.colour]) for c in curves if c.name]
    draw_end_labels(ax, ends, theme, height=HEIGHT - 0.9)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.unit)


@apply_theme
def draw_divergence(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw how much the updates of a round's clients disagree: distance from their mean, and angle to it."""
    apart, cosine = run.probe("update_divergence"), run.probe("update_cosine")
    wanted = (
        Panel("Distance from the mean update", r"mean of $\|D_i - \bar{D}\|\,/\,\|\bar{D}\|$", [Curve(apart)], 0.0),
        Panel("Agreement with its direction", r"mean cosine to $\bar{D}$", [Curve(cosine, 2)], 1.0),
    )
    return draw_panels(run, theme, narrow, wanted)


@apply_theme
def draw_gradients(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the gradient norms at the model that the round started from: mean and spread over the round's clients."""
    rounds, mean = run.probe("gradient_norm_mean")
    variance = dict(zip(*run.probe("gradient_norm_variance"), strict=True))
    band = [math.sqrt(max(variance.get(n, 0.0), 0.0)) for n in rounds]
    wanted = (
        Panel(
            "Gradient norm of the clients",
            "mean ± standard deviation",
            [Curve((rounds, mean), 0, band=band, least=0.0)],
            0.0,
        ),
        Panel(
            "Its variation between clients", "standard deviation / mean", [Curve(run.probe("gradient_norm_cv"), 1)], 0.0
        ),
    )
    return draw_panels(run, theme, narrow, wanted)


@apply_theme
def draw_drift(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw client drift: how gradients differ between clients, and the angle of the update to them and to the last one."""
    probes = ("drift_between", "drift_within")
    ratio = [Curve(run.ratio(*probes), 5, "of the round"), Curve(run.pooled_ratio(*probes), 1, "so far")]
    against, before = run.probe("gradient_alignment"), run.probe("round_cosine")
    cosine = [Curve(against, 2, "to −gradient"), Curve(before, 3, "to last round")]
    wanted = (
        Panel("Differences between clients, beyond noise", r"$\rho$ = between / within", ratio, 0.0),
        Panel("Direction of the update", "cosine", cosine, 0.0),
    )
    return draw_panels(run, theme, narrow, wanted)


@apply_theme
def draw_control(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw how far steps with control variates are from the shared gradient, beside steps without, and their length."""
    probes = ("control_error", "control_spread", "drift_within")
    error = [Curve(run.ratio(*probes), 5, "of the round"), Curve(run.pooled_ratio(*probes), 1, "so far")]
    wanted = (
        Panel("Steps with control variates", "squared error / that without", error, 1.0),
        Panel("Their length", r"$\|c_i\|\,/\,\|\nabla f_i\|$", [Curve(run.probe("control_ratio"), 4)], 1.0),
    )
    return draw_panels(run, theme, narrow, wanted)


@apply_theme
def draw_ranks(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw in how many directions the adapter changes the model, and how many the representations still fill."""
    adapter = [Curve(run.probe("effective_rank"), 0, "effective"), Curve(run.probe("stable_rank"), 1, "stable")]
    filled = [
        Curve(run.ratio("hidden_rank", "hidden_rank_base"), 2, "hidden states"),
        Curve(run.ratio("embedding_rank", "embedding_rank_base"), 3, "sentences"),
    ]
    wanted = (
        Panel("Rank of the adapter's change", "directions", adapter, 0.0),
        Panel("Energy above the smallest rank", "share", [Curve(run.probe("energy_above"), 4)], 0.0),
        Panel("Rank of the representations", "effective rank / base's", filled, 1.0),
    )
    return draw_panels(run, theme, narrow, wanted)


@apply_theme
def draw_generation(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw how like the originals greedy continuations of held-out texts are, and how varied."""
    wanted = (
        Panel("BLEU", "0 to 100", [Curve(run.probe("bleu"), 0)]),
        Panel("ROUGE-L", "F1, 0 to 1", [Curve(run.probe("rouge_l"), 2)]),
        Panel("Variety", "distinct-2", [Curve(run.probe("distinct_2"), 3)]),
    )
    return draw_panels(run, theme, narrow, wanted)
