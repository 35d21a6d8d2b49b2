"""The figures of a run. Each gives a Figure, in a light or a dark theme, or None when there is nothing to show.

>>> plots.loss_by_topic(report.render.read("results/run"), plots.DARK, narrow=True)  # doctest: +SKIP
<Figure size 400x381 with 2 Axes>
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from fedfault.report.data import RunData
from fedfault.report.draw import (
    DARK,
    FONT,
    LIGHT,
    MARKERS,
    Plot,
    Theme,
    as_text,
    canvas,
    end_labels,
    label,
    line,
    loss_scale,
    not_finite,
    png,
    round_axis,
    text_on,
    themed,
    topic_colours,
    whole_numbers,
)

__all__ = ["DARK", "FIGURES", "LIGHT", "Theme", "save_all"]

FEW = 24  # clients that can each have a tick label


@themed
def loss_by_topic(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Loss of every topic after every round, the mixture as the thick line, and below who trained.

    A marker on a topic's line: a client that mostly holds this topic trained in that round. A dashed line, where the
    corpus is a known generator: the entropy of the mixture, which no model can beat.
    """
    names = [n for n in ("validation", *run.names("topic/")) if run.losses(n)[0]]
    if not names:
        return None
    cohort = max((len(r.clients) for r in run.records), default=0)
    strip = min(0.35 + 0.17 * cohort, 1.2) if cohort else 0.0
    fig = canvas(narrow, 3.3 + strip)
    grid = fig.add_gridspec(2 if cohort else 1, 1, height_ratios=[3.0, strip] if cohort else [1])
    ax = fig.add_subplot(grid[0])
    floor = [v for n, v in run.split.get("floor", {}).items() if n == "validation"]
    loss_scale(ax, [*floor, *(v for n in names for v in run.losses(n)[1])])
    round_axis(ax, run, title=not cohort)
    ends = [*_topic_lines(ax, run, theme, narrow), *_mixture_line(ax, run, theme)]
    for entropy in floor:
        ax.axhline(entropy, color=theme.muted, lw=1.2, ls=(0, (4, 3)))
        ends.append((entropy, "entropy", theme.muted))
    end_labels(ax, ends, theme, height=2.5)
    ax.set_ylabel("loss (nats per token)")
    ax.set_title(_perplexities(run), color=theme.ink)
    if cohort:
        ax.tick_params(labelbottom=False)
        _strip(fig.add_subplot(grid[1], sharex=ax), run, theme, narrow)
    return fig


def _topic_lines(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> list[tuple[float, str, str]]:
    colours = topic_colours(run, theme)
    others = [t for t in run.topics if t not in colours and run.losses(f"topic/{t}")[0]]
    for topic in others:
        line(ax, *run.losses(f"topic/{topic}"), theme, color=theme.muted, lw=0.6, alpha=0.45)
    ends = []
    for (topic, colour), marker in zip(colours.items(), MARKERS, strict=False):
        rounds, losses = run.losses(f"topic/{topic}")
        if not rounds:
            continue
        there = {r.round for r in run.records if topic in run.trained(r)} if len(run.records) <= 40 else set()
        at = [i for i, n in enumerate(rounds) if n in there]
        style = {"marker": marker, "ms": 4.5, "markevery": at} if at else _dot(rounds)
        line(ax, rounds, losses, theme, color=colour, lw=1.4, **style)
        ends.append((_last(losses), label(topic, 11 if narrow else 22), colour))
    if others:
        middle = float(np.median([_last(run.losses(f"topic/{t}")[1]) for t in others]))
        ends.append((middle, f"{len(others)} others", theme.muted))
    return ends


def _mixture_line(ax: Axes, run: RunData, theme: Theme) -> list[tuple[float, str, str]]:
    rounds, losses = run.losses("validation")
    if not rounds:
        return []
    line(ax, rounds, losses, theme, color=theme.ink, lw=3.2, zorder=5, **_dot(rounds))
    return [(_last(losses), "mixture", theme.ink)]


def _dot(rounds: Sequence[int]) -> dict[str, Any]:
    """A line of one point needs a marker to be seen."""
    return {"marker": "o", "ms": 5} if len(rounds) == 1 else {}


def _last(losses: Sequence[float]) -> float:
    return next((v for v in reversed(losses) if math.isfinite(v)), math.nan)


def _perplexities(run: RunData) -> str:
    scores = [r.scores["validation"] for r in run.records if "validation" in r.scores]
    if not scores:
        return "Loss of each topic"
    values = [f"{s.perplexity:.4g}" if math.isfinite(s.perplexity) else "not finite" for s in scores]
    return f"Mixture: perplexity {' → '.join(dict.fromkeys((values[0], values[-1])))}"


def _strip(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> None:
    """One cell a client and round, in the colour of the topic that the client mostly holds."""
    colours, first, last = topic_colours(run, theme), run.records[0].round, run.records[-1].round
    order = {t: i for i, t in enumerate(colours)}
    cohort = max(len(r.clients) for r in run.records)
    cells = np.zeros((cohort, last - first + 1, 4))
    ids = []
    for r in run.records:
        by_topic = sorted(r.clients, key=lambda c: (order.get(run.dominant(c.client) or "", len(order)), c.client))
        for row, client in enumerate(c.client for c in by_topic):
            colour = colours.get(run.dominant(client) or "", theme.grid)
            cells[row, r.round - first] = to_rgba(colour)
            ids.append((r.round, row, str(client), text_on(colour)))
    extent = (first - 0.5, last + 0.5, -0.5, cohort - 0.5)
    ax.imshow(cells, aspect="auto", interpolation="none", origin="lower", extent=extent)
    _gaps(ax, theme, (first, last), (0, cohort - 1) if cohort <= 12 else (0, 0))
    if cohort <= 6 and last - first <= (13 if narrow else 24):
        for x, y, text, colour in ids:
            ax.text(x, y, text, color=colour, ha="center", va="center_baseline", fontsize=FONT - 2)
    _bare(ax)
    ax.set_yticks([])
    ax.set_ylabel("trained", rotation=0, ha="right", va="center")
    round_axis(ax, run)


def _gaps(ax: Axes, theme: Theme, columns: tuple[int, int], rows: tuple[int, int]) -> None:
    """Thin lines in the colour of the page between cells, unless the cells are too many to see them apart."""
    width, height = cast(Figure, ax.figure).get_size_inches()
    for (first, last), inches, draw in ((columns, width, ax.axvline), (rows, height, ax.axhline)):
        for n in range(first, last if last - first <= 7.5 * inches else first):
            draw(n + 0.5, color=theme.surface, lw=1.2)


def _bare(ax: Axes) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


@themed
def clients(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Held-out loss of the clients: median, the band that holds the middle 80 %, best and worst."""
    names = run.names("client/")
    if not names:
        return None
    rows = [(r.round, np.array([r.scores[n].loss for n in names if n in r.scores])) for r in run.records]
    rows = [(n, losses) for n, losses in rows if losses.size]
    finite = [losses[np.isfinite(losses)] for _, losses in rows]
    fan = np.array([np.percentile(f, (0, 10, 50, 90, 100)) if f.size else [np.nan] * 5 for f in finite])
    rounds = [n for n, _ in rows]
    fig = canvas(narrow, 3.2)
    ax = fig.add_subplot()
    loss_scale(ax, fan.ravel())
    round_axis(ax, run)
    ax.set_ylabel("held-out loss (nats per token)")
    blue, dot = theme.palette[0], _dot(rounds)
    ax.plot(rounds, fan[:, 2], color=theme.ink, lw=2.6, **dot)
    ends = [(_last(fan[:, 2].tolist()), "median" if len(names) > 1 else "the one client", theme.ink)]
    if len(names) > 1:
        ax.fill_between(rounds, fan[:, 1], fan[:, 3], color=blue, alpha=0.22, lw=0)
        for column, style, name in ((4, "-", "worst"), (0, "--", "best")):
            ax.plot(rounds, fan[:, column], color=blue, lw=1.2, ls=style, **dot)
            ends.append((_last(fan[:, column].tolist()), name, blue))
        ax.set_title(f"{len(names)} clients; the band holds the middle 80 %", color=theme.ink)
    not_finite(ax, [n for n, losses in rows if not np.isfinite(losses).all()], theme)
    end_labels(ax, ends, theme, height=2.5)
    return fig


@themed
def general(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Forgetting: how much the loss on general English differs from that of the model before training."""
    rounds, losses = run.losses("general")
    if not rounds or rounds[0] != 0 or not math.isfinite(losses[0]):
        return None
    change = [v - losses[0] for v in losses]
    fig = canvas(narrow, 2.8)
    ax = fig.add_subplot()
    loss_scale(ax, [*change, 0.05, -0.02])  # less than that would only magnify noise
    round_axis(ax, run)
    ax.set_yscale("linear")
    ax.axhline(0, color=theme.muted, lw=1)
    colour = theme.palette[1]
    ax.fill_between(rounds, np.where(np.isfinite(change), change, 0.0), color=colour, alpha=0.15, lw=0)
    line(ax, rounds, change, theme, color=colour, lw=2.2, marker="o" if len(rounds) <= 40 else None, ms=4)
    end_labels(ax, [(_last(change), f"{_last(change):+.3f}", colour)], theme, height=2.1)
    ax.set_ylabel("change of loss\n(nats per token)" if narrow else "change of loss (nats per token)")
    ax.set_title("General English, against round 0", color=theme.ink)
    return fig


@themed
def divergence(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """How much the updates of a round's clients disagree: distance from their mean, and angle to it."""
    panels = (
        ("update_divergence", "Distance from the mean update", r"mean of $\|D_i - \bar{D}\|\,/\,\|\bar{D}\|$"),
        ("update_cosine", "Agreement with its direction", r"mean cosine to $\bar{D}$"),
    )
    shown = [p for p in panels if run.probe(p[0])[0]]
    if not shown:
        return None
    fig = canvas(narrow, 2.5 * len(shown) if narrow else 2.9)
    shape = (len(shown), 1) if narrow else (1, len(shown))
    for i, (name, title, unit) in enumerate(shown):
        ax = fig.add_subplot(*shape, i + 1)
        rounds, values = run.probe(name)
        loss_scale(ax, [*values, 0.0, *([1.0] if name == "update_cosine" else [])])
        round_axis(ax, run)
        marker = "o" if len(rounds) <= 40 else None
        line(ax, rounds, values, theme, color=theme.palette[i * 2], lw=1.8, marker=marker, ms=4)
        ax.set_title(title, color=theme.ink)
        ax.set_ylabel(unit)
    return fig


def _order(run: RunData) -> list[int]:
    """Clients of the same dominant topic next to each other."""
    place = {t: i for i, t in enumerate(run.topics)}
    return sorted(range(run.num_clients), key=lambda c: (place.get(run.dominant(c) or "", -1), c))


def _client_axis(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> None:
    """A tick a client; where they are too many, one in the middle of each topic's group."""
    order, colours, limit = _order(run), topic_colours(run, theme), 9 if narrow else 18
    topics = [run.dominant(c) or "" for c in order]
    if len(order) <= FEW:
        ticks = [
            (float(i), f"{label(t, limit)} {c}".strip(), t) for i, (c, t) in enumerate(zip(order, topics, strict=True))
        ]
    else:
        groups = {t: [i for i, other in enumerate(topics) if other == t] for t in dict.fromkeys(topics)}
        ticks = [(float(np.mean(g)), f"{label(t, limit)} ({len(g)})", t) for t, g in groups.items()]
        ticks = _apart(ticks, len(order) / 24)
    ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks])
    for tick, (_, _, topic) in zip(ax.get_yticklabels(), ticks, strict=True):
        tick.set_color(as_text(colours.get(topic, theme.muted), theme))
    ax.set_ylabel("client" if len(order) <= FEW else f"{len(order)} clients by main topic")


def _apart(ticks: list[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Leave out ticks that would stand closer to the one before than the gap."""
    kept: list[tuple[float, str, str]] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= gap:
            kept.append(tick)
    return kept


def _height(rows: int) -> float:
    return min(max(1.1 + 0.23 * rows, 2.0), 6.5)


def _heat(ax: Axes, values: np.ndarray, theme: Theme, columns: tuple[int, int], percent: bool = False) -> AxesImage:
    """A heat map with rows from the top. NaN cells are empty: no percentage is, so that a zero may be as pale as they."""
    low_colour = 0.0 if percent else 0.25
    ramp = theme.cmap(np.linspace(low_colour, 1, 256))
    cmap = ListedColormap(ramp).with_extremes(bad=theme.empty)
    finite = values[np.isfinite(values)]
    low, high = (0.0, 100.0) if percent else (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    extent = (columns[0] - 0.5, columns[1] + 0.5, len(values) - 0.5, -0.5)
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(
        shown, cmap=cmap, vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="none", extent=extent
    )
    _gaps(ax, theme, columns, (0, len(values) - 1))
    _bare(ax)
    return image


@themed
def participation(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Who trained in which round, coloured by training loss."""
    trained = [r for r in run.records if r.clients]
    if not trained:
        return None
    row = {client: i for i, client in enumerate(_order(run))}
    first, last = 1, trained[-1].round
    losses = np.full((len(row), last - first + 1), np.nan)
    for r in trained:
        for c in r.clients:
            losses[row[c.client], r.round - first] = c.loss
    fig = canvas(narrow, _height(len(row)))
    ax = fig.add_subplot()
    image = _heat(ax, losses, theme, (first, last))
    broken = [(r.round, row[c.client]) for r in trained for c in r.clients if not math.isfinite(c.loss)]
    if broken:
        ax.plot(*np.transpose(broken), "x", color=theme.alarm, ms=5, mew=1.5)
    ax.set_title("Who trained" + " (× loss not finite)" * bool(broken), color=theme.ink)
    _client_axis(ax, run, theme, narrow)
    ax.xaxis.set_major_locator(whole_numbers())
    ax.set_xlabel("round")
    _colour_bar(fig, image, ax, "training loss\n(nats per token)")
    return fig


def _colour_bar(fig: Figure, image: AxesImage, ax: Axes, title: str) -> None:
    bar = fig.colorbar(image, ax=ax, pad=0.015, aspect=6 * fig.get_figheight(), label=title)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))


@themed
def split(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """What each client holds: its documents by topic, and how many target tokens they are."""
    if not run.split.get("clients") or not run.split["topics"]:
        return None
    order = [c for c in _order(run) if c < len(run.split["clients"])]
    documents = np.array([run.split["clients"][c] for c in order], dtype=float)
    share = 100 * documents / np.maximum(documents.sum(axis=1, keepdims=True), 1)
    fig = canvas(narrow, _height(len(order)) + 0.3)
    left, right = fig.subplots(1, 2, width_ratios=[2, 1] if narrow else [3, 1], sharey=True)
    _heat(left, share, theme, (0, documents.shape[1] - 1), percent=True)
    if len(order) <= FEW and documents.shape[1] <= (4 if narrow else 10):
        for (i, j), count in np.ndenumerate(documents):
            ink = text_on(theme.cmap(share[i, j] / 100))
            left.text(j, i, f"{count:.0f}", ha="center", va="center_baseline", color=ink, fontsize=FONT - 1.5)
    _client_axis(left, run, theme, narrow)
    _topic_axis(left, run, theme, narrow)
    left.set_title("Documents by topic", color=theme.ink)
    right.barh(range(len(order)), [run.split["tokens"][c] / 1000 for c in order], color=theme.palette[0], height=0.75)
    right.set_title("Tokens", color=theme.ink)
    right.set_xlabel("thousands")
    right.xaxis.set_major_locator(MaxNLocator(3))
    right.grid(axis="x")
    right.tick_params(axis="y", length=0, labelleft=False)
    right.spines[:].set_visible(False)
    return fig


def _topic_axis(ax: Axes, run: RunData, theme: Theme, narrow: bool) -> None:
    """All topics, or the highlighted ones where there is no room for more."""
    topics, colours, limit = run.split["topics"], topic_colours(run, theme), 9 if narrow else 16
    ticks = [(float(i), label(t, limit), t) for i, t in enumerate(topics)]
    if len(topics) > (8 if narrow else 16):
        ticks = _apart([t for t in ticks if t[2] in colours], len(topics) / (8 if narrow else 24))
        ax.set_xlabel(f"{len(topics)} topics, {len(ticks)} named")
    room = max(len(t[1]) for t in ticks) * len(topics) < (20 if narrow else 75)
    style: dict[str, Any] = {} if room else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks([t[0] for t in ticks], [t[1] for t in ticks], **style)
    for tick, (_, _, topic) in zip(ax.get_xticklabels(), ticks, strict=True):
        tick.set_color(as_text(colours.get(topic, theme.muted), theme))


@themed
def traffic(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """What the run cost: bytes over the network since the start, and seconds of each round by part."""
    parts = list(dict.fromkeys(["train", "aggregate", "evaluate", *(p for r in run.records for p in r.seconds)]))
    parts = [p for p in parts if any(r.seconds.get(p) for r in run.records)]
    moved = any(r.bytes_up or r.bytes_down for r in run.records)
    panels = [draw for draw, there in ((_bytes, moved), (_seconds, parts)) if there]
    if not panels:
        return None
    fig = canvas(narrow, 2.6 * len(panels) if narrow else 2.9)
    shape = (len(panels), 1) if narrow else (1, len(panels))
    for i, draw in enumerate(panels):
        ax = fig.add_subplot(*shape, i + 1)
        draw(ax, run, theme, parts)
        ax.set_ylim(0, None)
        ax.grid(axis="y")
        round_axis(ax, run)
    return fig


def _bytes(ax: Axes, run: RunData, theme: Theme, parts: list[str]) -> None:
    rounds = [r.round for r in run.records]
    up = list(accumulate(r.bytes_up for r in run.records))
    down = list(accumulate(r.bytes_down for r in run.records))
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (0, "MB")) if max(up[-1], down[-1]) >= 10 * s)
    scale = scale or 1e6
    for values, name, style, colour in ((up, "up", "-", theme.palette[0]), (down, "down", "--", theme.palette[1])):
        total = f"{name}: {values[-1] / scale:.3g} {unit}"
        ax.plot(rounds, [v / scale for v in values], style, color=colour, lw=2, label=total, **_dot(rounds))
    ax.set_title("Traffic, all clients, since the start", color=theme.ink, pad=24)
    ax.set_ylabel(unit)
    _legend_above(ax, 2)


def _seconds(ax: Axes, run: RunData, theme: Theme, parts: list[str]) -> None:
    rounds, bottom = [r.round for r in run.records], np.zeros(len(run.records))
    for part, colour in zip(parts, (*theme.palette, *[theme.muted] * len(parts)), strict=False):
        values = np.array([r.seconds.get(part, 0.0) for r in run.records])
        ax.bar(rounds, values, bottom=bottom, width=0.8, color=colour, label=label(part, 12))
        bottom += values
    ax.set_title("Time of each round", color=theme.ink, pad=24)
    ax.set_ylabel("seconds")
    _legend_above(ax, 3)


def _legend_above(ax: Axes, columns: int) -> None:
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=columns,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0.2,
        borderaxespad=0.2,
    )


FIGURES: dict[str, Plot] = {
    "loss_by_topic": loss_by_topic,
    "clients": clients,
    "general": general,
    "divergence": divergence,
    "participation": participation,
    "split": split,
    "traffic": traffic,
}


def save_all(run: RunData, folder: Path, dpi: float = 150) -> list[Path]:
    """Write every figure that has something to show as `NAME.png` into the folder, in the light theme."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in FIGURES.items():
        figure = plot(run, LIGHT)
        if figure is not None:
            write(figure, folder / f"{name}.png", dpi)
            written.append(folder / f"{name}.png")
    return written


def write(figure: Figure, file: Path, dpi: float = 150) -> None:
    """The figure as a PNG file, there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(png(figure, dpi))
    os.replace(part, file)
