"""The figure of who had which rank in which round, tier by tier, and who was not done in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure

from fedfault.records import Fate
from fedfault.report.draw import apply_theme, draw_legend, format_round, locate_whole_numbers, make_canvas
from fedfault.report.figures.heat import FEW, choose_height, draw_cells, draw_colour_bar, thin_ticks
from fedfault.report.theme import Theme, choose_ink, make_label
from fedfault.report.values import name_client
from fedfault.report.words import FATES
from fedfault.runs.recorded import RunData

TIGHT = 6.0  # points; smaller cells are painted instead of marked
MARKS: dict[Fate, dict[str, Any]] = {
    "late": {"marker": ">", "mfc": "none"},
    "partial": {"marker": "o", "fillstyle": "left", "markerfacecoloralt": "none"},
    "dropped": {"marker": "x"},
    "excluded": {"marker": "_"},
}


class Cell(NamedTuple):
    """A client in a round for which it was drawn; rank 0: it was left out."""

    client: int
    round: int
    rank: int
    fate: Fate


def list_cells(run: RunData) -> list[Cell]:
    """List the ranks and fates of the clients that were drawn, or without simulated hardware of those that trained."""
    found = []
    for r in run.records:
        if r.turns:
            found += [Cell(t.client, r.round, t.rank, t.fate) for t in r.turns]
        else:
            found += [Cell(c.client, r.round, c.rank, "done") for c in r.clients if c.rank is not None]
    return found


@apply_theme
def draw_client_ranks(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the rank of every client in every round; None where ranks are equal and every client was done in time."""
    found = list_cells(run)
    ranks = sorted({c.rank for c in found if c.rank})
    if len(ranks) < 2 and all(c.fate == "done" for c in found):
        return None
    order, last = order_by_tier(run, range(run.num_clients)), run.rounds_done
    row = {client: i for i, client in enumerate(order)}
    values = np.full((len(order), last), np.nan)
    for c in found:
        values[row[c.client], c.round - 1] = c.rank or np.nan
    low, high = (ranks[0], ranks[-1]) if ranks else (1, 1)
    cmap = ListedColormap(theme.cmap(np.linspace(0.25, 1, high - low + 1)))  # a colour for every whole rank
    height = choose_height(len(order)) + 0.2
    fig = make_canvas(narrow, height)
    ax = fig.add_subplot()
    image = draw_cells(
        ax, values, theme, (1, last), cmap.with_extremes(bad=theme.empty), (low - 0.5, high + 0.5), "rank"
    )
    size = 72 * min((2.4 if narrow else 6.3) / last, (height - 1.1) / len(order))
    missed = [c for c in found if c.fate != "done"]
    if size < TIGHT:
        _paint_cells(ax, missed, row, theme, values.shape)
    else:
        _mark_cells(ax, missed, row, theme, {r: cmap(r - low) for r in ranks}, min(0.6 * size, 7.0))
    columns, names = 3 if narrow else 4, {c.fate for c in missed}
    ax.set_title(_make_title(run, ranks), pad=24 + 13 * ((len(names) - 1) // columns) if names else None)
    if names:
        draw_legend(ax, columns).set_in_layout(False)  # it may stand above the colour bar
    set_tier_axis(ax, run, theme, order, 9 if narrow else 18)
    ax.fmt_xdata = format_round
    ax.xaxis.set_major_locator(locate_whole_numbers(5 if narrow else 10))
    ax.set_xlabel("round")
    if len(ranks) > 1:
        draw_colour_bar(fig, image, ax, "rank", whole=True)
    return fig


def _make_title(run: RunData, ranks: Sequence[int]) -> str:
    if run.setting("model", "trainable") not in (None, "lora") or not ranks:
        return "Who was drawn, and was in time"
    return f"LoRA ranks from {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"LoRA rank {ranks[0]}"


def _mark_cells(
    ax: Axes, missed: Sequence[Cell], row: dict[int, int], theme: Theme, colours: dict[int, Any], size: float
) -> None:
    """Draw a sign on each of these cells, in black or white, whichever is easier to read there."""
    for fate, style in MARKS.items():
        there = [c for c in missed if c.fate == fate]
        inks = {c: theme.muted if fate == "excluded" else choose_ink(colours.get(c.rank, theme.empty)) for c in there}
        look: dict[str, Any] = {"ls": "", "ms": size, "mew": 1.3, **style}
        for ink in dict.fromkeys(inks.values()):
            at = [(c.round, row[c.client]) for c in there if inks[c] == ink]
            ax.plot(*np.transpose(at), color=ink, **look)
        if there:
            ax.plot([], [], color=theme.ink, label=FATES[fate], **{**look, "ms": 6.0})


def _paint_cells(ax: Axes, missed: Sequence[Cell], row: dict[int, int], theme: Theme, shape: tuple[int, ...]) -> None:
    """Paint the cells in the colour of their fate, where signs would be too small to be seen."""
    over = np.zeros((*shape, 4))
    colours = choose_fate_colours(theme)
    for c in missed:
        over[row[c.client], c.round - 1] = to_rgba(colours[c.fate])
    for fate in MARKS:
        if any(c.fate == fate for c in missed):
            ax.plot([], [], "s", color=colours[fate], ms=6, label=FATES[fate])
    ax.imshow(over, aspect="auto", interpolation="none", extent=ax.images[0].get_extent())


def choose_fate_colours(theme: Theme) -> dict[Fate, str]:
    """Choose a colour for every fate other than done."""
    return {
        "late": theme.palette[3],
        "partial": theme.palette[4],
        "dropped": theme.alarm,
        "excluded": theme.muted,
    }


def order_by_tier(run: RunData, clients: Iterable[int]) -> list[int]:
    """Order the clients so that those of the same tier are next to each other."""
    place = {tier: i for i, tier in enumerate(dict.fromkeys(run.tiers))}
    return sorted(clients, key=lambda c: (place[run.tiers[c]] if run.tiers else 0, c))


def set_tier_axis(ax: Axes, run: RunData, theme: Theme, order: Sequence[int], limit: int) -> None:
    """Set a tick for every client, the first of a tier with its name; of many clients, one a tier; lines between them."""
    tiers = [run.tiers[c] if run.tiers else "" for c in order]
    named = len(set(run.tiers) - {""}) > 1
    groups = {t: [i for i, other in enumerate(tiers) if other == t] for t in dict.fromkeys(tiers)}
    if len(order) <= FEW:
        heads = {rows[0]: f"{make_label(t, limit)} " if named else "" for t, rows in groups.items()}
        called = [f"{make_label(run.client_names[c], limit)} " if c < len(run.client_names) else "" for c in order]
        ax.set_yticks(range(len(order)), [f"{heads.get(i, '')}{called[i]}{c}" for i, c in enumerate(order)])
        ax.set_ylabel("client")
    else:
        names = [
            (float(np.mean(g)), f"{make_label(t, limit)} ({len(g)})" if named else "", t) for t, g in groups.items()
        ]
        ticks = thin_ticks(names, len(order) / 24)
        ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks])
        ax.set_ylabel(f"{len(order)} clients" + " by tier" * named)
    ax.fmt_ydata = lambda row: name_client(run, order[round(row)])
    for rows in list(groups.values())[1:]:
        ax.axhline(rows[0] - 0.5, color=theme.muted, lw=0.7, zorder=1)
