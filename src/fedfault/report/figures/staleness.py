"""The figure of how old updates were when an asynchronous server took them in."""

from __future__ import annotations

from collections import Counter

from matplotlib.figure import Figure

from fedfault.report.draw import apply_theme, draw_legend, locate_whole_numbers, make_canvas
from fedfault.report.theme import Theme, make_label
from fedfault.report.words import format_count
from fedfault.runs.recorded import RunData


@apply_theme
def draw_staleness(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw how many updates were so many rounds stale, the clients of each tier on top of those of the last."""
    stale = [
        (c.client, round(c.probes["staleness"])) for r in run.records for c in r.clients if "staleness" in c.probes
    ]
    if not stale:
        return None
    tiers = run.tiers or ("",) * run.num_clients
    shown = list(dict.fromkeys(tiers[k] for k in range(run.num_clients)))
    counts = {tier: Counter(s for k, s in stale if tiers[k] == tier) for tier in shown}
    most = max(s for _, s in stale)
    fig = make_canvas(narrow, 2.8)
    ax = fig.add_subplot()
    bottom = [0] * (most + 1)
    for tier, colour in zip(shown, (*theme.palette, *[theme.muted] * len(shown)), strict=False):
        heights = [counts[tier][s] for s in range(most + 1)]
        name = make_label(tier, 20) if len(shown) > 1 else "updates"
        ax.bar(range(most + 1), heights, bottom=bottom, width=0.8, color=colour, lw=0, label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    mean = sum(s for _, s in stale) / len(stale)
    ax.axvline(mean, color=theme.ink, lw=1.2, ls=(0, (4, 3)))
    ax.set_title(
        f"{format_count(len(stale), 'update')}, {mean:.1f} rounds stale on average", pad=24 if len(shown) > 1 else None
    )
    ax.set_xlabel("rounds since the client was sent the model")
    ax.set_ylabel("updates")
    ax.xaxis.set_major_locator(locate_whole_numbers())
    ax.yaxis.set_major_locator(locate_whole_numbers(5))
    ax.grid(axis="y")
    if len(shown) > 1:
        draw_legend(ax, 3)
    return fig
