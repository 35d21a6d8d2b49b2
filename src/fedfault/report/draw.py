"""What all figures share: two themes, sizes, axes and labels."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator

from fedfault.report.data import RunData

FONT = 9.0  # points
NOT_FINITE = "× not finite"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "WenQuanYi Micro Hei")


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; the report's style sheet uses the same ones."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    empty: str  # a cell in which nothing happened
    alarm: str
    palette: tuple[str, ...]  # after Okabe and Ito 2008, told apart by colour-blind readers; markers differ as well
    ramp: tuple[str, ...]  # from little to much

    @property
    def cmap(self) -> Colormap:
        """The sequential colour map of the heat maps."""
        return LinearSegmentedColormap.from_list(f"fedfault-{self.name}", list(self.ramp))

    @property
    def rc(self) -> Any:
        """Settings of matplotlib in force while a figure is made."""
        return {
            "text.usetex": False,
            "font.family": [f for f in ("DejaVu Sans", *OTHER_SCRIPTS) if f in _installed()],
            "font.size": FONT,
            "text.color": self.ink,
            "axes.labelcolor": self.muted,
            "axes.labelsize": FONT,
            "axes.titlesize": FONT + 1,
            "axes.titlelocation": "left",
            "axes.titlepad": 9,
            "axes.facecolor": "none",
            "axes.edgecolor": self.grid,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "xtick.color": self.grid,
            "ytick.color": self.grid,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "xtick.labelsize": FONT - 0.5,
            "ytick.labelsize": FONT - 0.5,
            "figure.facecolor": self.surface,
            "lines.solid_capstyle": "round",
        }


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#1c2430",
    muted="#566171",
    grid="#d9dee5",
    empty="#f1f3f6",
    alarm="#c02323",
    palette=("#0072b2", "#d55e00", "#009e73", "#b85c92", "#c98a00", "#49a5dd", "#5b3f99", "#7d6b58"),
    ramp=("#e6f0f7", "#8fbcd9", "#2f7fb5", "#0c3f66"),
)
DARK = Theme(
    name="dark",
    surface="#171c23",
    ink="#e7ebf0",
    muted="#a3aebb",
    grid="#333c47",
    empty="#1f262f",
    alarm="#ff7b72",
    palette=("#4ea8e6", "#f58646", "#2fc49a", "#e394c4", "#f2bd4b", "#9fd6fa", "#a994ee", "#bda78f"),
    ramp=("#22384a", "#2f6f9c", "#63b0de", "#d3eefc"),
)

Plot = Callable[..., Figure | None]


def themed(plot: Callable[[RunData, Theme, bool], Figure | None]) -> Plot:
    """Make a figure under the settings of its theme, whatever the user's own settings are."""

    @functools.wraps(plot)
    def draw(run: RunData, theme: Theme = LIGHT, narrow: bool = False) -> Figure | None:
        with matplotlib.rc_context(theme.rc):
            return plot(run, theme, narrow)

    return draw


def canvas(narrow: bool, height: float) -> Figure:
    """An empty figure, 8.6 in wide, or 4 in for a phone: text keeps its size on either screen."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(4.0 if narrow else 8.6, height), layout=layout)


def png(figure: Figure, dpi: float) -> bytes:
    """The figure as a PNG file."""
    with io.BytesIO() as out:
        figure.savefig(out, format="png", dpi=dpi)
        return out.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file that needs no font; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "fedfault"}), io.BytesIO() as out:
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        return out.getvalue()


@functools.cache
def _installed() -> frozenset[str]:
    return frozenset(font_manager.fontManager.get_font_names())


@functools.cache
def _drawable() -> frozenset[int]:
    """Code points for which an installed font has a glyph."""
    names = [f for f in ("DejaVu Sans", *OTHER_SCRIPTS) if f in _installed()]
    return frozenset(c for f in names for c in font_manager.get_font(font_manager.findfont(f)).get_charmap())


def label(text: str, limit: int = 22) -> str:
    """A name as it may stand in a figure: one short line, no mathematics, no glyph that the fonts lack."""
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if ord(c) in _drawable() else "?" for c in text).replace("$", r"\$")


def highlighted(run: RunData) -> list[str]:
    """Topics with a colour of their own: all if there are few, else those whose loss rose the most at once."""
    count = len(LIGHT.palette)
    if len(run.topics) <= count:
        return list(run.topics)
    jump = {t: max((rise for rise, _ in run.rises(f"topic/{t}")), default=0.0) for t in run.topics}
    chosen = set(sorted(run.topics, key=lambda t: -jump[t])[:count])
    return [t for t in run.topics if t in chosen]


def topic_colours(run: RunData, theme: Theme) -> dict[str, str]:
    """One colour a highlighted topic, the same in every figure of a run; look up others with `.get(t, theme.muted)`."""
    return dict(zip(highlighted(run), theme.palette, strict=False))


def luminance(colour: Any) -> float:
    """Relative luminance, 0 for black to 1 for white (WCAG 2.1)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: Any, other: Any) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def text_on(colour: Any) -> str:
    """Black or white, whichever is easier to read on the colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, colour))


def as_text(colour: str, theme: Theme) -> str:
    """The colour, mixed with as much ink as text needs to be read on the page (contrast 4.5, WCAG 2.1 AA)."""
    line, ink = np.array(to_rgb(colour)), np.array(to_rgb(theme.ink))
    mixed = (to_hex((1 - share) * line + share * ink) for share in np.linspace(0, 1, 11))
    return next(c for c in mixed if contrast(c, theme.surface) >= 4.5)


def whole_numbers() -> MaxNLocator:
    """Ticks for rounds."""
    return MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def round_axis(ax: Axes, run: RunData, title: bool = True) -> None:
    """Whole rounds as ticks, half a round of air on both sides."""
    first, last = run.records[0].round, run.records[-1].round
    air = 0.5 if last > first else 1.5  # a lone bar should not fill the axes
    ax.set_xlim(first - air, last + air)
    ax.xaxis.set_major_locator(whole_numbers() if last > first else FixedLocator([first]))
    if title:
        ax.set_xlabel("round")


def line(ax: Axes, rounds: Sequence[int], values: Sequence[float], theme: Theme, **style: Any) -> None:
    """A line through the finite values; a value that is not finite becomes a cross at the top edge, and is named."""
    y = np.array(values, dtype=float)
    good = np.isfinite(y)
    ax.plot(rounds, np.where(good, y, np.nan), **style)
    not_finite(ax, np.array(rounds)[~good], theme)


def not_finite(ax: Axes, rounds: Iterable[int], theme: Theme) -> None:
    """Crosses at the top edge in these rounds."""
    rounds = list(rounds)
    if not rounds:
        return
    top = ax.get_xaxis_transform()
    ax.plot(rounds, [1.0] * len(rounds), "x", color=theme.alarm, ms=6, mew=1.6, transform=top, clip_on=False, zorder=9)
    if NOT_FINITE not in [t.get_text() for t in ax.texts]:
        ax.text(1.015, 1.0, NOT_FINITE, color=theme.alarm, transform=ax.transAxes, va="center")


def loss_scale(ax: Axes, values: Iterable[float]) -> None:
    """Room around the finite values; logarithmic when a diverging run spans more than a factor of 20."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        ax.set_ylim(0, 1)
        ax.set_yticks([])
    elif min(finite) > 0 and max(finite) / min(finite) > 20:
        ax.set_yscale("log")
        ax.set_ylim(min(finite) / 1.2, max(finite) * 1.2)
    else:
        air = max(0.06 * (max(finite) - min(finite)), 0.05)  # less air would magnify noise
        ax.set_ylim(min(finite) - air, max(finite) + air)
    ax.grid(axis="y")


def end_labels(ax: Axes, entries: Sequence[tuple[float, str, str]], theme: Theme, height: float) -> None:
    """Names to the right of the lines' ends, (y, text, colour), moved apart where they would touch.

    height: of the axes in inches. Call it when the limits are final.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    at = [(float(to_axes.transform((0.0, y))[1]), text, colour) for y, text, colour in entries if math.isfinite(y)]
    for mark in [t for t in ax.texts if t.get_text() == NOT_FINITE]:
        at.append((1.0, NOT_FINITE, theme.alarm))
        mark.remove()
    at.sort()
    for place, (_, text, colour) in zip(spread([a[0] for a in at], 1.3 * FONT / (72 * height)), at, strict=True):
        ax.text(1.015, place, text, color=as_text(colour, theme), transform=ax.transAxes, va="center", ha="left")


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted places apart to at least `gap`: touching ones become a centred block. None ends up above 1.

    >>> spread([0.5, 0.5, 0.9], 0.1)
    [0.45, 0.55, 0.9]
    """
    blocks: list[list[float]] = []  # [centre, size]
    for place in places:
        blocks.append([place, 1.0])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2 - 1e-12:
            (a, m), (b, n) = blocks[-2], blocks.pop()
            blocks[-1] = [(a * m + b * n) / (m + n), m + n]
    apart = [centre + gap * (i - (size - 1) / 2) for centre, size in blocks for i in range(int(size))]
    return [min(place, 1.0 - gap * (len(apart) - 1 - i)) for i, place in enumerate(apart)]
