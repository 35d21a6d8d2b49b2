"""The figure of what each client's updates did to the loss of the mixture."""

from __future__ import annotations

from matplotlib.figure import Figure

from fedfault.report.contributions import MIXTURE, sum_contributions
from fedfault.report.draw import apply_theme, draw_legend, make_canvas
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

SHOWN = 40  # clients: of more, those whose sums are the largest
SURE = 1.96  # standard errors of an interval


@apply_theme
def draw_contributions(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw a bar a client, how much its updates lowered the loss, and beside it its Shapley value with an interval."""
    found = sum_contributions(run, MIXTURE)
    if not found:
        return None
    largest = sorted(found, key=lambda k: -abs(found[k].left_out))[:SHOWN]
    clients = [k for k in found if k in largest]
    rows = range(len(clients))
    valued = [(i, found[k]) for i, k in zip(rows, clients, strict=True) if found[k].shapley is not None]
    fig = make_canvas(narrow, 0.9 + 0.27 * len(clients))
    ax = fig.add_subplot()
    lowered = [found[k].left_out for k in clients]
    colours = [theme.palette[0] if value >= 0 else theme.alarm for value in lowered]
    ax.barh(rows, lowered, height=0.6, color=colours, alpha=0.55, label="left out")
    if valued:
        values, errors = [c.shapley or 0.0 for _, c in valued], [SURE * (c.error or 0.0) for _, c in valued]
        at = [i for i, _ in valued]
        ax.errorbar(values, at, xerr=errors, fmt="o", color=theme.ink, ms=4.5, lw=1.4, capsize=3, label="Shapley value")
        draw_legend(ax, 2)
    ax.axvline(0, color=theme.muted, lw=1)
    ax.set_yticks(list(rows), [str(k) for k in clients])
    ax.invert_yaxis()
    ax.set_ylabel("client")
    ax.set_xlabel(f"lowered the loss by ({run.unit})")
    ax.grid(axis="x")
    return fig
