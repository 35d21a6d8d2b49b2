"""Figures become parts of the page: drawn once for both themes where that is possible, with letters that all share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedfault.report.draw import Plot, render_svg
from fedfault.report.theme import DARK, LIGHT
from fedfault.runs.recorded import RunData

NAMES = {colour: name for name, colour in reversed(LIGHT.variables.items())}  # of the style sheet's variables
COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
GLYPH = re.compile(r'<path id="([^"]+)" ((?:d="[^"]*" )?transform="scale\(0\.015625\)")/>')
NOTHING = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*(<style.*?</style>)?\s*</defs>", re.DOTALL)
GROUP_ID = re.compile(r'(?<=<g) id="[^"]*"')


@dataclass(frozen=True)
class Drawing:
    """An SVG picture without its outer tag, which the page writes, and without its letters, which the page defines once."""

    shown: str  # wide or narrow, and light or dark where it is for one theme only
    width: float  # points
    height: float
    body: str
    glyphs: Mapping[str, str]  # id -> attributes of the letter's path


def draw_inline(run: RunData, name: str, plot: Plot) -> tuple[Figure | None, list[Drawing]]:
    """Draw a figure for wide and narrow pages and both themes; return the wide light one, and all as parts of the page.

    Returns None and no drawings when there is nothing to show.
    """
    wide, drawings = plot(run), list[Drawing]()
    if wide is None:
        return None, []
    for shape, figure in (("wide", wide), ("narrow", plot(run, narrow=True))):
        assert figure is not None  # whether there is anything to show does not depend on the room, nor on the theme
        light = _extract_drawing(figure, name, shape)
        if (both := replace_colours(light.body)) is not None:
            drawings.append(Drawing(shape, light.width, light.height, both, light.glyphs))
            continue
        dark = plot(run, DARK, figure is not wide)
        assert dark is not None
        drawings.append(Drawing(f"{shape} light", light.width, light.height, light.body, light.glyphs))
        drawings.append(_extract_drawing(dark, name, f"{shape} dark"))
    return wide, drawings


def _extract_drawing(figure: Figure, name: str, shown: str) -> Drawing:
    text = render_svg(figure, f"{name} {shown}")
    text = text[text.index(">", text.index("<svg ")) + 1 : text.rindex("</svg>")]
    glyphs = dict(GLYPH.findall(text))
    for pattern, new in ((GLYPH, ""), (NOTHING, ""), (GROUP_ID, ""), (r"\bxlink:href=", "href="), (r"\s+", " ")):
        text = re.sub(pattern, new, text)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return Drawing(shown, width, height, text.replace("> <", "><").strip(), glyphs)


def replace_colours(body: str) -> str | None:
    """Replace the colours of the light theme by variables of the style sheet, so that the picture suits both themes.

    Returns None where that is not possible: it has a raster image, or colours that are not the theme's.
    """
    if "<image" in body or not set(COLOUR.findall(body)) <= set(NAMES):
        return None
    return COLOUR.sub(lambda found: f"var(--{NAMES[found[0]]})", body)
