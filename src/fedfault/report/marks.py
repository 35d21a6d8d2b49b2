"""Vertical lines at findings and forks in a figure over rounds; their names stand above the axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from fedfault.report.theme import FONT, Theme, make_label, make_readable
from fedfault.report.values import mark_round
from fedfault.runs.recorded import RunData

SIZE = FONT - 1  # points
LANE = 1.5 * SIZE  # points
BASE = 6.0  # points from the axes to the first lane: room for crosses at the edge
ALARM: dict[str, Any] = {"ls": "-", "lw": 1.4}
SUSPECT: dict[str, Any] = {"ls": (0, (1, 2)), "lw": 1.2}
CHANGE: dict[str, Any] = {"ls": (0, (5, 3)), "lw": 1.2}


class Mark(NamedTuple):
    """A round, what to write there, and how the line looks."""

    round: int
    text: str
    colour: str
    style: dict[str, Any]


class Place(NamedTuple):
    """Where a name stands: in which lane above the axes, counted from below, and whether to the left of its line."""

    lane: int
    left: bool


def collect_marks(run: RunData, theme: Theme, narrow: bool) -> list[Mark]:
    """Collect the forks, the first alarm of every detector, and the first suspicion of those without an alarm."""
    found = [Mark(f.round, make_label(f.change, 27 if narrow else 60), theme.ink, CHANGE) for f in run.forks]
    for f in run.leading_findings():
        colour, style = (theme.alarm, ALARM) if f.level == "alarm" else (theme.muted, SUSPECT)
        found.append(Mark(f.round, make_label(f.detector.replace("_", " "), 30), colour, style))
    return found


def place_names(found: Sequence[Mark], rounds: tuple[int, int], inches: float) -> list[Place]:
    """Place the name of each mark above axes that are so many inches wide and show the rounds from first to last."""
    first, last = rounds
    font = FontProperties(size=SIZE)
    widths = [text_to_path.get_text_width_height_descent(m.text, font, False)[0] + 9 for m in found]  # points
    return find_lanes([(m.round - first + 0.5) / (last - first + 1) for m in found], [w / 72 / inches for w in widths])


def find_lanes(places: Sequence[float], widths: Sequence[float]) -> list[Place]:
    """Find the lowest lane in which each name fits; places and widths are parts of the width of the axes.

    A name stands to the right of its place, or to the left where it would run over the edge. It keeps off other names and,
    if there is such a lane, off the lines that come down from the names above it.

    >>> find_lanes([0.1, 0.2, 0.9], [0.3, 0.3, 0.3])
    [Place(lane=1, left=False), Place(lane=0, left=False), Place(lane=0, left=True)]
    """
    left = [x + w > 1 for x, w in zip(places, widths, strict=True)]
    found: dict[int, Place] = {}
    taken: list[tuple[int, float, float, float]] = []  # lane, from, to, line
    # from the right to the left, so that lines from above come down beside the names; those on the left the other way round
    for i in sorted(range(len(places)), key=lambda i: (left[i], places[i] if left[i] else -places[i])):
        line = places[i]
        start, end = (line - widths[i], line) if left[i] else (line, line + widths[i])
        free = [n for n in range(len(places)) if not any(n == m and start < b and a < end for m, a, b, _ in taken)]
        cut = {n for n in free for m, a, b, x in taken if (n < m and start < x < end) or (n > m and a < line < b)}
        found[i] = Place(next((n for n in free if n not in cut), free[0]), left[i])
        taken.append((found[i].lane, start, end, line))
    return [found[i] for i in range(len(places))]


def measure_headroom(places: Sequence[Place]) -> float:
    """Measure how many points the names need above the axes."""
    return BASE - 3 + LANE * (1 + max(p.lane for p in places)) if places else 0.0


def draw_marks(ax: Axes, found: Sequence[Mark], places: Sequence[Place], theme: Theme) -> None:
    """Draw the lines through the axes and up to their names, and the names."""
    top = ax.get_xaxis_transform()
    for mark, (lane, left) in zip(found, places, strict=True):
        ax.axvline(mark.round, color=mark.colour, zorder=1.5, **mark.style)
        up: dict[str, Any] = {"xycoords": top, "textcoords": "offset points", "annotation_clip": False}
        stem = {"arrowstyle": "-", "color": mark.colour, "shrinkA": 0, "shrinkB": 0, **mark.style}
        up["gid"] = mark_round(mark.round)
        ax.annotate("", (mark.round, 1.0), (0, BASE + LANE * lane + SIZE), arrowprops=stem, **up)
        ax.annotate(
            mark.text,
            (mark.round, 1.0),
            (-3 if left else 3, BASE + LANE * lane),
            color=make_readable(mark.colour, theme),
            fontsize=SIZE,
            ha="right" if left else "left",
            va="bottom",
            zorder=4,
            bbox={"facecolor": theme.surface, "edgecolor": "none", "pad": 0.5},
            **up,
        )
