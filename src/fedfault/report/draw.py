"""Parts that all figures share: sizes, axes, lines and labels."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, MaxNLocator

from fedfault.report.theme import FONT, LIGHT, Theme, make_readable
from fedfault.report.words import MANY
from fedfault.runs.recorded import RunData

NOT_FINITE = "× not finite"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

Plot = Callable[..., Figure | None]


def apply_theme(plot: Callable[[RunData, Theme, bool], Figure | None]) -> Plot:
    """Make a plot use the settings of its theme, whatever the user's own settings are."""

    @functools.wraps(plot)
    def draw(run: RunData, theme: Theme = LIGHT, narrow: bool = False) -> Figure | None:
        with matplotlib.rc_context(theme.rc):
            return plot(run, theme, narrow)

    return draw


def make_canvas(narrow: bool, height: float) -> Figure:
    """Make an empty figure, 8.6 in wide, or 4 in for a phone: text keeps its size on either screen."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(4.0 if narrow else 8.6, height), layout=layout)


def make_panels(narrow: bool, count: int, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many panels: below one another on a phone, else in rows of two or three."""
    columns = 1 if narrow else count if count <= 3 else 2
    rows = math.ceil(count / columns)
    fig = make_canvas(narrow, height * rows)
    return fig, [fig.add_subplot(rows, columns, i + 1) for i in range(count)]


def render_png(figure: Figure, dpi: float) -> bytes:
    """Render the figure as a PNG file."""
    _fix_layout(figure)
    figure.set_dpi(dpi)
    with io.BytesIO() as out:
        FigureCanvasAgg(figure).print_png(out)  # type: ignore[no-untyped-call]
        return out.getvalue()


def render_pdf(figure: Figure) -> bytes:
    """Render the figure as a PDF file with its fonts, as journals want them; the same figure gives the same bytes."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # half a second, which no page needs

    _fix_layout(figure)
    with matplotlib.rc_context({"pdf.fonttype": 42}), io.BytesIO() as out:
        FigureCanvasPdf(figure).print_pdf(out, metadata={"CreationDate": None})  # type: ignore[no-untyped-call]
        return out.getvalue()


def render_svg(figure: Figure, salt: str = "fedfault") -> str:
    """Render the figure without its background as an SVG file that needs no font; the same figure gives the same text.

    salt: figures with different ones have different ids, so that they can stand on one page.
    """
    _fix_layout(figure)
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}), io.StringIO() as out:
        # savefig would draw everything twice
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]
        text = out.getvalue()
    figure.patch.set_visible(True)
    return text


def _fix_layout(figure: Figure) -> None:
    """Compute the layout, and keep it for all files that are made of the figure."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")


def choose_topics(run: RunData) -> list[str]:
    """Choose the topics that get a colour of their own: all if they are few, else those whose loss jumped the most."""
    count = len(LIGHT.palette)
    if len(run.topics) <= count:
        return list(run.topics)
    jump = {t: max((rise for rise, _ in run.rises(f"topic/{t}")), default=0.0) for t in run.topics}
    chosen = set(sorted(run.topics, key=lambda t: -jump[t])[:count])
    return [t for t in run.topics if t in chosen]


def colour_topics(run: RunData, theme: Theme) -> dict[str, str]:
    """Give each chosen topic a colour, the same in every figure of a run; look up others with `.get(t, theme.muted)`."""
    return dict(zip(choose_topics(run), theme.palette, strict=False))


def locate_whole_numbers(most: int = 10) -> MaxNLocator:
    """Place ticks at whole numbers, such as rounds."""
    return MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def format_round(x: float) -> str:
    """Write the number of a round as the page tells it; axes that have this as `fmt_xdata` are over rounds."""
    return f"round {x:g}"


def set_round_axis(ax: Axes, run: RunData, title: bool = True, until: int = 0) -> None:
    """Set the x axis to rounds: whole ones as ticks, half a round of air on both sides.

    until: the last round, where something goes on after the run's own.
    """
    first, last = run.records[0].round, max(run.records[-1].round, until)
    ax.fmt_xdata = format_round
    air = 0.5 if last > first else 1.5  # a lone bar should not fill the axes
    ax.set_xlim(first - air, last + air)
    ax.xaxis.set_major_locator(locate_whole_numbers() if last > first else FixedLocator([first]))
    if title:
        ax.set_xlabel("round")


def style_dots(rounds: Sequence[int]) -> dict[str, Any]:
    """Return a style that marks every point of a line, where they are few enough to see them apart."""
    return {"marker": "o", "ms": 4} if len(rounds) <= MANY else {}


def style_lone_dot(rounds: Sequence[int]) -> dict[str, Any]:
    """Return a style with a marker for a line of one point, which would not be seen without."""
    return {"marker": "o", "ms": 5} if len(rounds) == 1 else {}


def name_line(name: str, label: str | None = None) -> dict[str, Any]:
    """Return a style that names a line for the page; label: the name that stands at its end, if that is another."""
    return {"gid": name, "label": name if label is None else label}


def draw_line(ax: Axes, rounds: Sequence[float], values: Sequence[float], theme: Theme, **style: Any) -> None:
    """Draw a line through the finite values; each other value becomes a cross at the top edge, and the crosses are named."""
    y = np.array(values, dtype=float)
    good = np.isfinite(y)
    ax.plot(rounds, np.where(good, y, np.nan), **style)
    mark_not_finite(ax, np.array(rounds)[~good], theme)


def mark_not_finite(ax: Axes, rounds: Iterable[float], theme: Theme) -> None:
    """Draw crosses at the top edge in these rounds, and name them."""
    rounds = list(rounds)
    if not rounds:
        return
    top = ax.get_xaxis_transform()
    ax.plot(rounds, [1.0] * len(rounds), "x", color=theme.alarm, ms=6, mew=1.6, transform=top, clip_on=False, zorder=9)
    if NOT_FINITE not in [t.get_text() for t in ax.texts]:
        ax.text(1.015, 1.0, NOT_FINITE, color=theme.alarm, transform=ax.transAxes, va="center")


def set_loss_scale(ax: Axes, values: Iterable[float]) -> None:
    """Leave room around the finite values; the scale is logarithmic when a diverging run spans more than a factor of 20."""
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


def find_last_finite(values: Sequence[float]) -> float:
    """Find the last value that is a finite number; NaN without one."""
    return next((v for v in reversed(values) if math.isfinite(v)), math.nan)


def draw_end_labels(ax: Axes, entries: Sequence[tuple[float, str, str]], theme: Theme, height: float) -> None:
    """Draw names to the right of the lines' ends, (y, text, colour), moved apart where they would touch.

    height: of the axes in inches. Call it when the limits are final.
    """
    ax.get_ylim()  # limits that follow from what is drawn are found when they are asked for
    to_axes = ax.transData + ax.transAxes.inverted()
    at = [(float(to_axes.transform((0.0, y))[1]), text, colour) for y, text, colour in entries if math.isfinite(y)]
    for mark in [t for t in ax.texts if t.get_text() == NOT_FINITE]:
        at.append((1.0, NOT_FINITE, theme.alarm))
        mark.remove()
    at.sort()
    for place, (_, text, colour) in zip(spread_places([a[0] for a in at], 1.3 * FONT / (72 * height)), at, strict=True):
        ax.text(1.015, place, text, color=make_readable(colour, theme), transform=ax.transAxes, va="center", ha="left")


def spread_places(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted places apart to at least `gap`: touching ones become a centred block. None ends up above 1.

    >>> spread_places([0.5, 0.5, 0.9], 0.1)
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


def draw_legend(ax: Axes, columns: int) -> Legend:
    """Draw the legend between the axes and their title, which needs a pad of 24 points."""
    return ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=columns,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0.2,
        borderaxespad=0.2,
    )
