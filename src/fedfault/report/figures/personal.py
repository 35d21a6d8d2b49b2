"""The figure of every client's models beside one another, on what that client held back."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from fedfault.measures.personal import ALONE, GLOBAL, MODELS, OWN, TUNED, collect_losses
from fedfault.report.draw import apply_theme, make_canvas
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData

SHOWN = 40  # clients: of more, those whose models differ most
LABELS = {GLOBAL: "the server's", OWN: "its own", TUNED: "trained on", ALONE: "trained alone"}
MARKS = {GLOBAL: "|", OWN: "o", TUNED: "D", ALONE: "x"}


@apply_theme
def draw_personal(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw a row a client, with a mark at the loss of each of its models; those it is worse off with lie to the right."""
    losses = collect_losses(run.personal)
    clients = sorted({k for own in losses.values() for k in own})
    if len(losses) < 2 or not clients:
        return None
    spread = {k: [own[k] for own in losses.values() if k in own] for k in clients}
    widest = sorted(clients, key=lambda k: min(spread[k]) - max(spread[k]))[:SHOWN]
    shown = [k for k in clients if k in widest]
    fig = make_canvas(narrow, 1.2 + 0.27 * len(shown))
    ax = fig.add_subplot()
    for y, k in enumerate(shown):
        ax.plot([min(spread[k]), max(spread[k])], [y, y], color=theme.grid, lw=2, zorder=1)
    colours = dict(zip(MODELS, (theme.ink, *theme.palette), strict=False))
    for name, own in losses.items():
        at = [(own[k], y) for y, k in enumerate(shown) if k in own]
        wide: dict[str, Any] = (
            {"mew": 2.2, "ms": 11} if name == GLOBAL else {"mew": 1.8 if name == ALONE else 0.0, "ms": 6}
        )
        ax.plot(*zip(*at, strict=True), MARKS[name], color=colours[name], label=LABELS[name], **wide)
    ax.set_yticks(range(len(shown)), [run.label_client(k) for k in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_ylabel("client")
    ax.set_xlabel(f"held-out loss ({run.unit})")
    ax.grid(axis="x")
    fig.legend(loc="outside upper left", ncols=2 if narrow else 4, frameon=False, handlelength=1.2)
    return fig
