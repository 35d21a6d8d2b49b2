"""Figures become parts of the page: drawn once for both themes where that is possible, with the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.figure import Figure

from fedfault.report.draw import Plot, render_svg
from fedfault.report.svg import has_images, join_themes, shorten_picture
from fedfault.report.theme import DARK, LIGHT
from fedfault.report.values import locate_axes, mark_parts, read_values
from fedfault.runs.recorded import RunData


@dataclass(frozen=True)
class Drawing:
    """An SVG picture without its outer tag, which the page writes, and without what the page defines once."""

    shown: str  # wide or narrow, and light or dark where it is for one theme only
    width: float  # points
    height: float
    body: str
    shared: Mapping[str, str]  # id -> element that it uses, a letter or an image
    axes: Sequence[Mapping[str, Any]] = ()  # where on it the axes are whose numbers the page knows


@dataclass(frozen=True)
class Inline:
    """A figure as the page has it: pictures for wide and narrow pages and both themes, and the numbers in them."""

    drawings: Sequence[Drawing] = ()
    values: Sequence[Mapping[str, Any]] = field(default=(), repr=False)  # of every axes that has named parts


def draw_inline(run: RunData, name: str, plot: Plot) -> tuple[Figure | None, Inline]:
    """Draw a figure for wide and narrow pages and both themes; return the wide light one, and all as parts of the page.

    Returns None and no drawings when there is nothing to show.
    """
    wide, drawings = plot(run), list[Drawing]()
    if wide is None:
        return None, Inline()
    values = read_values(wide, LIGHT)
    for shape, figure in (("wide", wide), ("narrow", plot(run, narrow=True))):
        assert figure is not None  # whether there is anything to show does not depend on the room, nor on the theme
        light = _extract_drawing(figure, name, shape)
        if not has_images(light.body) and (both := join_themes(light.body)) is not None:
            drawings.append(replace(light, body=both))
            continue
        other = plot(run, DARK, figure is not wide)
        assert other is not None
        dark = _extract_drawing(other, name, f"{shape} dark")
        if (both := join_themes(light.body, dark.body)) is not None:
            drawings.append(replace(light, body=both, shared={**dark.shared, **light.shared}))
        else:
            drawings += [replace(light, shown=f"{shape} light"), dark]
    return wide, Inline(drawings, values)


def _extract_drawing(figure: Figure, name: str, shown: str) -> Drawing:
    mark_parts(figure)
    picture = shorten_picture(render_svg(figure, f"{name} {shown}"))
    width, height = (72 * inches for inches in figure.get_size_inches())
    return Drawing(shown, width, height, picture.body, picture.shared, locate_axes(figure))
