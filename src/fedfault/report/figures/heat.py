"""Heat maps: who trained when, whose updates agree, who holds what."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from fedfault.report.draw import apply_theme, colour_topics, format_round, locate_whole_numbers, make_canvas
from fedfault.report.theme import FONT, Theme, choose_ink, make_label, make_readable
from fedfault.report.values import name_client
from fedfault.runs.recorded import RunData

FEW = 24  # clients that can each have a tick label
Tick = tuple[float, str, str]  # place, label, topic


@apply_theme
def draw_participation(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw who trained in which round, coloured by training loss."""
    trained = [r for r in run.records if r.clients]
    if not trained or run.centralised:
        return None
    row = {client: i for i, client in enumerate(_order_clients(run))}
    first, last = 1, trained[-1].round
    losses = np.full((len(row), last - first + 1), np.nan)
    for r in trained:
        for c in r.clients:
            losses[row[c.client], r.round - first] = c.loss
    fig = make_canvas(narrow, choose_height(len(row)))
    ax = fig.add_subplot()
    image = _draw_heat(ax, losses, theme, (first, last), "training loss")
    broken = [(r.round, row[c.client]) for r in trained for c in r.clients if not math.isfinite(c.loss)]
    if broken:
        ax.plot(*np.transpose(broken), "x", color=theme.alarm, ms=5, mew=1.5)
    ax.set_title("Who trained" + " (× loss not finite)" * bool(broken))
    _set_client_axis(ax, run, theme, narrow)
    ax.fmt_xdata = format_round
    ax.xaxis.set_major_locator(locate_whole_numbers())
    ax.set_xlabel("round")
    draw_colour_bar(fig, image, ax, f"training loss\n({run.unit})")
    return fig


@apply_theme
def draw_split(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw what each client holds: its documents by topic, and how many target tokens they are."""
    if not run.split.get("clients") or not run.split["topics"]:
        return None
    order = [c for c in _order_clients(run) if c < len(run.split["clients"])]
    documents = np.array([run.split["clients"][c] for c in order], dtype=float)
    share = 100 * documents / np.maximum(documents.sum(axis=1, keepdims=True), 1)
    fig = make_canvas(narrow, choose_height(len(order)) + 0.3)
    left, right = fig.subplots(1, 2, width_ratios=[2, 1] if narrow else [3, 1], sharey=True)
    _draw_heat(left, share, theme, (0, documents.shape[1] - 1), "% of its documents", percent=True)
    if len(order) <= FEW and documents.shape[1] <= (4 if narrow else 10):
        for (i, j), count in np.ndenumerate(documents):
            ink = choose_ink(theme.cmap(share[i, j] / 100))
            left.text(j, i, f"{count:.0f}", ha="center", va="center_baseline", color=ink, fontsize=FONT - 1.5)
    _set_client_axis(left, run, theme, narrow)
    _set_topic_axis(left, run, theme, narrow)
    left.set_title(f"Documents by {run.group}")
    sizes = np.array([run.split["tokens"][c] for c in order])
    thousands = sizes.max() >= 10_000
    right.barh(range(len(order)), sizes / 1000 if thousands else sizes, color=theme.palette[0], height=0.75)
    held = run.held.partition(" ")[0] if narrow else run.held  # "tokens of responses" is too wide there
    right.set_title(held.capitalize())
    right.set_xlabel("thousands" if thousands else "")
    right.xaxis.set_major_locator(MaxNLocator(2 if narrow else 3, integer=True))
    right.grid(axis="x")
    right.tick_params(axis="y", length=0, labelleft=False)
    right.spines[:].set_visible(False)
    return fig


@apply_theme
def draw_cosines(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the cosine between the updates of every two clients: of the last round if all trained, else the mean."""
    values, rounds = average_cosines(run)
    if not np.isfinite(values).any():
        return None
    most = max(float(np.nanmax(np.abs(values))), 0.1)  # less would magnify noise
    fig = make_canvas(narrow, min(choose_height(len(values)) + 0.7, 3.9 if narrow else 6.5))
    ax = fig.add_subplot()
    cmap = ListedColormap(theme.diverging(np.linspace(0, 1, 256))).with_extremes(bad=theme.surface)
    image = draw_cells(ax, values, theme, (0, len(values) - 1), cmap, (-most, most), "cosine")
    if len(values) <= (4 if narrow else 12):
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            ink = choose_ink(cmap((values[i, j] / most + 1) / 2))
            text = f"{values[i, j].round(2) + 0.0:.2f}".replace("-", "−")
            ax.text(j, i, text, ha="center", va="center_baseline", color=ink, fontsize=FONT - 1.5)
    ticks = thin_ticks(_set_client_axis(ax, run, theme, narrow), len(values) / (12 if narrow else 24))
    ax.set_xticks([t[0] for t in ticks], [t[1] for t in ticks], rotation=40, ha="right", rotation_mode="anchor")
    _colour_by_topic(ax.get_xticklabels(), ticks, run, theme)
    ax.fmt_xdata = ax.fmt_ydata
    ax.set_title(f"Updates of round {rounds[0]}" if len(rounds) == 1 else f"Updates, mean over {len(rounds)} rounds")
    draw_colour_bar(fig, image, ax, "cosine")
    return fig


def average_cosines(run: RunData) -> tuple[np.ndarray, list[int]]:
    """Average the cosine of every two clients, (N, N) in the order of the figure; also return the rounds that were used.

    When all clients trained in the last round that has cosines it is that round alone. NaN on the diagonal, and for clients
    that never trained together.
    """
    measured = [r for r in run.records if r.matrices.get("update_cosine")]
    if measured and len(measured[-1].clients) == run.num_clients:
        measured = measured[-1:]
    place = {client: i for i, client in enumerate(_order_clients(run))}
    total, count = np.zeros((2, len(place), len(place)))
    for r in measured:
        at = [place[c.client] for c in r.clients]
        found = np.array(r.matrices["update_cosine"], dtype=float)
        total[np.ix_(at, at)] += np.where(np.isfinite(found), found, 0.0)
        count[np.ix_(at, at)] += np.isfinite(found)
    np.fill_diagonal(count, 0)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean, [r.round for r in measured]


def _order_clients(run: RunData) -> list[int]:
    """Order the clients so that those of the same dominant topic are next to each other."""
    place = {t: i for i, t in enumerate(run.topics)}
    return sorted(range(run.num_clients), key=lambda c: (place.get(run.dominant_topic(c) or "", -1), c))


def _set_client_axis(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> list[Tick]:
    """Set a tick for every client; where they are too many, one in the middle of each topic's group."""
    order, limit = _order_clients(run), 9 if narrow else 18
    topics = [run.dominant_topic(c) or "" for c in order]
    if len(order) <= FEW:
        called = dict(enumerate(run.client_names)) or dict(zip(order, topics, strict=True))
        names = [f"{make_label(called.get(c, ''), limit)} {c}".strip() for c in order]
        ticks = [(float(i), name, t) for i, (name, t) in enumerate(zip(names, topics, strict=True))]
    else:
        groups = {t: [i for i, other in enumerate(topics) if other == t] for t in dict.fromkeys(topics)}
        ticks = [(float(np.mean(g)), f"{make_label(t, limit)} ({len(g)})", t) for t, g in groups.items()]
        ticks = thin_ticks(ticks, len(order) / 24)
    ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks])
    _colour_by_topic(ax.get_yticklabels(), ticks, run, theme)
    ax.set_ylabel("client" if len(order) <= FEW else f"{len(order)} clients by main {run.group}")
    ax.fmt_ydata = lambda row: name_client(run, order[round(row)])
    return ticks


def _set_topic_axis(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> None:
    """Set a tick for every topic, or for those with a colour of their own where there is no room for more."""
    topics, colours, limit = run.split["topics"], colour_topics(run, theme), 9 if narrow else 16
    ticks = [(float(i), make_label(t, limit), t) for i, t in enumerate(topics)]
    if len(topics) > (8 if narrow else 16):
        ticks = thin_ticks([t for t in ticks if t[2] in colours], len(topics) / (8 if narrow else 24))
        ax.set_xlabel(f"{len(topics)} {run.group}s, {len(ticks)} named")
    room = max(len(t[1]) for t in ticks) * len(topics) < (20 if narrow else 75)
    style: dict[str, Any] = {} if room else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks([t[0] for t in ticks], [t[1] for t in ticks], **style)
    _colour_by_topic(ax.get_xticklabels(), ticks, run, theme)
    ax.fmt_xdata = lambda column: str(topics[round(column)])


def _colour_by_topic(labels: list[Any], ticks: list[Tick], run: RunData, theme: Theme) -> None:
    colours = colour_topics(run, theme)
    for text, (_, _, topic) in zip(labels, ticks, strict=True):
        text.set_color(make_readable(colours.get(topic, theme.muted), theme))


def thin_ticks(ticks: list[Tick], gap: float) -> list[Tick]:
    """Leave out ticks that would stand closer to the one before than the gap."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= gap:
            kept.append(tick)
    return kept


def choose_height(rows: int) -> float:
    """Choose the height in inches of a figure with so many rows of cells."""
    return min(max(1.1 + 0.23 * rows, 2.0), 6.5)


def _draw_heat(
    ax: Axes, values: np.ndarray, theme: Theme, columns: tuple[int, int], name: str, percent: bool = False
) -> AxesImage:
    """Draw a heat map with rows from the top; NaN cells are empty. No percentage is missing: its zero is as pale as they."""
    ramp = theme.cmap(np.linspace(0.0 if percent else 0.25, 1, 256))
    cmap = ListedColormap(ramp).with_extremes(bad=theme.empty)
    finite = values[np.isfinite(values)]
    low, high = (0.0, 100.0) if percent else (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    return draw_cells(ax, values, theme, columns, cmap, (low, max(high, low + 1e-6)), name)


def draw_cells(
    ax: Axes,
    values: np.ndarray,
    theme: Theme,
    columns: tuple[int, int],
    cmap: Colormap,
    limits: tuple[float, float],
    name: str,
) -> AxesImage:
    """Draw values as cells, rows from the top, columns from the first to the last number; NaN cells are empty.

    name: of the values.
    """
    extent = (columns[0] - 0.5, columns[1] + 0.5, len(values) - 0.5, -0.5)
    style: dict[str, Any] = {"vmin": limits[0], "vmax": limits[1], "aspect": "auto", "interpolation": "none"}
    style["gid"] = name
    image = ax.imshow(np.ma.masked_invalid(values), cmap=cmap, extent=extent, **style)
    draw_gaps(ax, theme, columns, (0, len(values) - 1))
    remove_frame(ax)
    return image


def draw_gaps(ax: Axes, theme: Theme, columns: tuple[int, int], rows: tuple[int, int]) -> None:
    """Draw thin lines in the colour of the page between cells, unless the cells are too many to see them apart."""
    width, height = cast(Figure, ax.figure).get_size_inches()
    for (first, last), inches, draw in ((columns, width, ax.axvline), (rows, height, ax.axhline)):
        for n in range(first, last if last - first <= 7.5 * inches else first):
            draw(n + 0.5, color=theme.surface, lw=1.2)


def remove_frame(ax: Axes) -> None:
    """Remove the frame and the tick marks."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def draw_colour_bar(fig: Figure, image: AxesImage, ax: Axes, title: str, whole: bool = False) -> None:
    """Draw the scale of the colours to the right of the axes; with `whole`, ticks stand at whole numbers only."""
    bar = fig.colorbar(image, ax=ax, pad=0.015, aspect=6 * fig.get_figheight())
    bar.set_label(title, labelpad=6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_locator(locate_whole_numbers() if whole else MaxNLocator(5))
