"""Both themes can be read, and one can be made of the other."""

import pytest

from fedfault.report.draw import colour_topics
from fedfault.report.theme import DARK, LIGHT, choose_ink, compute_contrast, make_label, make_readable
from handmade import make

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)


@THEMES
def test_text_reaches_the_contrast_of_wcag_aa(theme):
    for name in ("ink", "muted", "alarm", "warn", "good"):
        for ground in (theme.surface, theme.page):
            # The badge is the surface's colour on these
            assert compute_contrast(getattr(theme, name), ground) >= 4.5, name


@THEMES
def test_a_topic_has_one_colour_and_its_name_can_be_read(theme):
    run = make(topics=tuple(f"topic {i}" for i in range(50)))
    colours = colour_topics(run, theme)
    assert len(set(colours.values())) == len(colours) == len(theme.palette)
    assert all(compute_contrast(make_readable(c, theme), theme.surface) >= 4.5 for c in colours.values())
    assert all(compute_contrast(choose_ink(c), c) >= 4.5 for c in colours.values())


def test_a_colour_of_the_light_theme_stands_for_one_of_the_dark_theme():
    light, dark = LIGHT.variables, DARK.variables
    drawn = set(light) - {"good", "warn", "page"}  # those are of the page, not of figures
    assert len({(light[name], dark[name]) for name in drawn}) == len({light[name] for name in drawn})


def test_black_has_the_least_and_white_the_most_luminance():
    assert compute_contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert compute_contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # the grey that just passes AA


def test_labels_are_one_short_line_of_plain_text():
    assert make_label("a\n b" + "c" * 50, 8) == "a bcccc…"
    assert make_label("$x$") == r"\$x\$"
    assert make_label("\U0001f9ff\x07") == "??"
