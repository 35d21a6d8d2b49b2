"""Figures inside the page: one picture for both themes where that is possible, letters defined once."""

import re
import xml.etree.ElementTree as ET

import pytest

from fedfault.report.draw import render_svg
from fedfault.report.figures.heat import draw_participation
from fedfault.report.figures.losses import draw_general
from fedfault.report.inline import Inline, draw_inline
from fedfault.report.svg import join_themes
from fedfault.report.theme import DARK, LIGHT
from handmade import make

RUN = make()


@pytest.mark.slow
def test_a_picture_is_there_once_for_both_themes_and_only_its_cells_twice():
    assert [d.shown for d in draw_inline(RUN, "general", draw_general)[1].drawings] == ["wide", "narrow"]
    cells = draw_inline(RUN, "participation", draw_participation)[1].drawings
    assert [d.shown for d in cells] == ["wide", "narrow"]
    for drawing in cells:
        assert drawing.body.count('class="light"') == drawing.body.count('class="dark"') > 0


def test_nothing_to_show_is_no_drawing():
    assert draw_inline(make(general=False), "general", draw_general) == (None, Inline())


@pytest.mark.slow
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)
def test_variables_give_the_picture_of_either_theme(theme):
    def without_ids(text):  # they are made of what is drawn, colours included
        return re.sub(r'(?<=[#"])[mp][0-9a-f]{10}(?=["\)])', "ID", text)

    variables = join_themes(render_svg(draw_general(RUN)))
    coloured = re.sub(r"var\(--([\w-]+)\)", lambda found: theme.variables[found[1]], variables)
    assert without_ids(coloured) == without_ids(render_svg(draw_general(RUN, theme)))


def test_colours_that_are_not_of_the_theme_stay_as_they_are():
    assert join_themes('<path style="fill: #123456"/>') is None
    assert join_themes('<path style="fill: #1c2430"/>') == '<path style="fill: var(--ink)"/>'


def test_what_is_not_the_same_in_both_themes_is_there_once_for_each():
    cells = '<use href="#i0123456789"/>'
    assert join_themes(f'{cells}<g style="fill: #1c2430"/>', f'{cells}<g style="fill: #e7ebf0"/>') is not None  # ink
    assert join_themes(f'{cells}<g style="fill: #ffffff"/>', f"{cells}<g/>") is None  # white on a dark cell, here black


@pytest.mark.slow
def test_a_drawing_is_well_formed_and_its_letters_are_all_there():
    for drawing in draw_inline(RUN, "general", draw_general)[1].drawings:
        root = ET.fromstring(f"<svg>{drawing.body}</svg>")
        assert not root.findall(".//{*}style")
        own = {e.get("id") for e in root.iter() if e.get("id")}
        used = {e.get("href").removeprefix("#") for e in root.iter("use")}
        used |= set(re.findall(r"url\(#(\w+)\)", drawing.body))
        assert used <= own | set(drawing.shared)
        assert not own & set(drawing.shared)
        assert "<!--" not in drawing.body


@pytest.mark.slow
def test_drawings_on_one_page_have_ids_of_their_own():
    drawings = [*draw_inline(RUN, "one", draw_general)[1].drawings, *draw_inline(RUN, "two", draw_general)[1].drawings]
    ids = [i for d in drawings for i in re.findall(r' id="([^"]+)"', d.body)]
    assert ids
    assert len(ids) == len(set(ids))


def test_every_colour_has_the_same_name_in_both_themes():
    assert set(LIGHT.variables) == set(DARK.variables)
