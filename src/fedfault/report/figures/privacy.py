"""The figure of what privacy a run has cost by each round, beside what an audit says that it is at least."""

from __future__ import annotations

from matplotlib.figure import Figure

from fedfault.report.draw import apply_theme, draw_legend, make_panels, name_line, set_round_axis, style_lone_dot
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

SERIES = (
    ("epsilon", "epsilon that is claimed", "-"),
    ("epsilon_audited", "audited, at least", "--"),
    ("epsilon_small", "claimed at delta 1e-5", "-"),
    ("epsilon_small_audited", "audited there", "--"),
)


@apply_theme
def draw_privacy(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw epsilon after each round, and its lower bound from canaries."""
    found = [
        ([r.round for r in run.records if name in r.probes], [r.probes[name] for r in run.records if name in r.probes])
        for name, _, _ in SERIES
    ]
    if not found[0][0]:
        return None
    fig, (ax,) = make_panels(narrow, 1, 2.8)
    for (rounds, values), (_, label, style), colour in zip(found, SERIES, theme.palette, strict=False):
        if rounds:
            named = name_line(label, f"{label}: {values[-1]:.3g}")
            ax.plot(rounds, values, style, color=colour, lw=2, **named, **style_lone_dot(rounds))
    ax.set_ylim(0, None)
    ax.set_ylabel("epsilon")
    ax.grid(axis="y")
    draw_legend(ax, 1 if narrow else 2)
    set_round_axis(ax, run)
    return fig
