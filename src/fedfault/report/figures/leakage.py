"""The figure of what the models of a run without noise give away: whose texts were trained on, and planted secrets."""

from __future__ import annotations

import math
import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfault.measures.exposure import GUESSED
from fedfault.report.draw import apply_theme, draw_legend, make_panels, name_line, set_round_axis, style_dots
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

MEASURED = (  # probe, its null, what is known without the model, the axis
    ("membership_reference", "membership_null", 0.5, "membership: area under ROC"),
    ("exposure", "exposure_null", GUESSED, "exposure of secrets (bits)"),
)


@apply_theme
def draw_leakage(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw after each round what the server's model gives away, and the clients' uploads, each beside its null."""
    shown = [row for row in MEASURED if any(row[0] in r.probes for r in run.records)]
    if not shown:
        return None
    fig, axes = make_panels(narrow, len(shown))
    for ax, (name, null, known, title) in zip(axes, shown, strict=True):
        _draw_server(ax, run, theme, name, null)
        _draw_uploads(ax, run, theme, name)
        ax.axhline(known, color=theme.muted, lw=1, ls=":")
        ax.set_ylabel(title)
        ax.grid(axis="y")
        set_round_axis(ax, run)
    draw_legend(axes[0], 1 if narrow else 3 if len(shown) == 1 else 2)
    return fig


def _draw_server(ax: Axes, run: RunData, theme: Theme, name: str, null: str) -> None:
    for probe, label, colour, style in ((name, "server", theme.ink, "-"), (null, "null", theme.muted, "--")):
        found = [(r.round, r.probes[probe]) for r in run.records if probe in r.probes]
        if found:
            rounds, values = zip(*found, strict=True)
            ax.plot(
                rounds,
                values,
                style,
                color=colour,
                lw=2,
                **style_dots(rounds),
                **name_line(f"{_say(name)}: {label}", label),
            )


def _draw_uploads(ax: Axes, run: RunData, theme: Theme, name: str) -> None:
    """Draw a dot for each client's upload, and a line through their medians."""
    found = [
        (r.round, values)
        for r in run.records
        if (values := [v for c in r.clients if math.isfinite(v := c.probes.get(name, math.nan))])
    ]
    if not found:
        return
    dots = [(t, v) for t, values in found for v in values]
    ax.plot(*zip(*dots, strict=True), "o", color=theme.palette[0], ms=4, alpha=0.35, mew=0)
    rounds, medians = zip(*[(t, statistics.median(values)) for t, values in found], strict=True)
    ax.plot(
        rounds, medians, color=theme.palette[0], lw=2, **name_line(f"{_say(name)}: uploads, median", "uploads, median")
    )


def _say(probe: str) -> str:
    """The word for what a probe measures, by which the page tells the lines of two panels apart."""
    return probe.partition("_")[0]
