"""Figures inside the page: one picture for both themes where that is possible, letters defined once."""

import re
import xml.etree.ElementTree as ET

import pytest

from fedfault.report.draw import render_svg
from fedfault.report.figures.heat import draw_participation
from fedfault.report.figures.losses import draw_general
from fedfault.report.inline import NAMES, draw_inline, replace_colours
from fedfault.report.theme import DARK, LIGHT
from handmade import make

RUN = make()


@pytest.mark.slow
def test_lines_are_drawn_once_and_heat_maps_once_a_theme():
    assert [d.shown for d in draw_inline(RUN, "general", draw_general)[1]] == ["wide", "narrow"]
    shown = [d.shown for d in draw_inline(RUN, "participation", draw_participation)[1]]
    assert shown == ["wide light", "wide dark", "narrow light", "narrow dark"]


def test_nothing_to_show_is_no_drawing():
    assert draw_inline(make(general=False), "general", draw_general) == (None, [])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)
def test_variables_give_the_picture_of_either_theme(theme):
    def without_ids(text):  # they are made of what is drawn, colours included
        return re.sub(r'(?<=[#"])[mp][0-9a-f]{10}(?=["\)])', "ID", text)

    variables = replace_colours(render_svg(draw_general(RUN)))
    coloured = re.sub(r"var\(--([\w-]+)\)", lambda found: theme.variables[found[1]], variables)
    assert without_ids(coloured) == without_ids(render_svg(draw_general(RUN, theme)))


@pytest.mark.parametrize("body", ['<path style="fill: #123456"/>', '<image href="data:"/>'])
def test_what_is_not_of_the_theme_stays_as_it_is(body):
    assert replace_colours(body) is None
    assert replace_colours('<path style="fill: #1c2430"/>') == '<path style="fill: var(--ink)"/>'


def test_a_drawing_is_well_formed_and_its_letters_are_all_there():
    for drawing in draw_inline(RUN, "general", draw_general)[1]:
        root = ET.fromstring(f"<svg>{drawing.body}</svg>")
        assert not root.findall(".//{*}style")
        own = {e.get("id") for e in root.iter() if e.get("id")}
        used = {e.get("href").removeprefix("#") for e in root.iter("use")}
        used |= set(re.findall(r"url\(#(\w+)\)", drawing.body))
        assert used <= own | set(drawing.glyphs)
        assert not own & set(drawing.glyphs)
        assert "<!--" not in drawing.body


@pytest.mark.slow
def test_drawings_on_one_page_have_ids_of_their_own():
    drawings = [*draw_inline(RUN, "one", draw_general)[1], *draw_inline(RUN, "two", draw_general)[1]]
    ids = [i for d in drawings for i in re.findall(r' id="([^"]+)"', d.body)]
    assert ids
    assert len(ids) == len(set(ids))


def test_every_colour_has_a_name():
    assert set(NAMES.values()) <= set(LIGHT.variables) == set(DARK.variables)
