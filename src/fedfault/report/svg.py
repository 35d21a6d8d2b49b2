"""The SVG text of matplotlib made short enough for a page with some fifty pictures, and fit for both themes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from fedfault.report.theme import DARK, LIGHT, Theme
from fedfault.report.values import PART

COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
GLYPH = re.compile(r'<path id="([^"]+)" ((?:d="[^"]*" )?transform="scale\(0\.015625\)")/>')
NOTHING = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*(<style.*?</style>)?\s*</defs>", re.DOTALL)
GROUP_ID = re.compile(rf'(?<=<g) id="({PART})?([^"]*)"')
LETTER = re.compile(r'href="#(?:DejaVuSans)?(-[^"]+)" transform="translate\(([-\d.]+) 0\)"')
NUMBER = re.compile(r"matrix\([^)]*\)|-?\d+\.\d{4,}")
GROUP = re.compile(r"<g[^>]*/>|<g[^>]*>|</g>")
IMAGE = re.compile(
    r'<image href="(?P<data>[^"]*)" id="[^"]*"(?P<place>(?: (?:transform|x|y)="[^"]*")*)'
    r'(?P<size> width="[^"]*" height="[^"]*")(?P<after>(?: transform="[^"]*")?)(?P<style>(?: style="[^"]*")?)/>'
)
CELLS = re.compile(r'<use href="(#i\w+)"')
ID = re.compile(r"#?\b[imp][0-9a-f]{10}\b")  # of images, markers and clips: made of what is drawn, colours included
PATH = re.compile(r'<path d="([^"]*)"')
ALIKE = re.compile(r'<path d="([^"]*)" ((?:clip-path="[^"]*" )?style="[^"]*")/>(?:<path d="[^"]*" \2/>)+')


@dataclass(frozen=True)
class Picture:
    """The inside of an SVG picture, and the letters and images in it, which a page with several pictures has once."""

    body: str
    shared: dict[str, str]  # id -> element


def shorten_picture(text: str) -> Picture:
    """Shorten an SVG file, and take its letters and images out.

    >>> shorten_picture('<svg ><g id="line2d_1"><g id="part line 0 1"><path d="M 1.23456 2"/></g><g/></g></svg>').body
    '<g data-part="line 0 1"><path d="M 1.23 2"/></g>'
    """
    text = text[text.index(">", text.index("<svg ")) + 1 : text.rindex("</svg>")]
    shared = {_name_letter(id): f'<path id="{_name_letter(id)}" {path}/>' for id, path in GLYPH.findall(text)}
    for pattern, new in ((GLYPH, ""), (NOTHING, ""), (r"\bxlink:href=", "href="), (r"\s+", " ")):
        text = re.sub(pattern, new, text)
    text = GROUP_ID.sub(lambda found: f' data-part="{found[2]}"' if found[1] else "", text)
    text = LETTER.sub(r'href="#\1" x="\2"', text).replace('href="#DejaVuSans-', 'href="#-')
    text = IMAGE.sub(lambda found: _share_image(found, shared), text)
    text = NUMBER.sub(lambda n: n[0] if n[0].startswith("matrix") else f"{float(n[0]):.2f}", text)
    text = ALIKE.sub(_join_paths, _drop_groups(text.replace("> <", "><").strip()))
    return Picture(text, shared)


def _name_letter(id: str) -> str:
    return id.removeprefix("DejaVuSans")


def _share_image(found: re.Match[str], shared: dict[str, str]) -> str:
    """Put an image where all pictures can use it, and use it."""
    name = f"i{hashlib.sha256((found['data'] + found['size']).encode()).hexdigest()[:10]}"
    shared[name] = f'<image id="{name}" href="{found["data"]}"{found["size"]}{found["style"]}/>'
    return f'<use href="#{name}"{found["place"]}{found["after"]}/>'


def _join_paths(found: re.Match[str]) -> str:
    """Make one path of several in a row that look the same."""
    return f'<path d="{"".join(PATH.findall(found[0]))}" {found[2]}/>'


def _drop_groups(text: str) -> str:
    """Drop the tags of groups without attributes, and groups without anything in them."""
    kept, open_ones, end = list[str](), list[bool](), 0
    for tag in GROUP.finditer(text):
        kept.append(text[end : tag.start()])
        end = tag.end()
        if tag[0] == "</g>":
            kept.append("</g>" if open_ones.pop() else "")
        elif not tag[0].endswith("/>"):
            open_ones.append(tag[0] != "<g>")
            kept.append(tag[0] if open_ones[-1] else "")
    return re.sub(r"<g[^>]*></g>", "", "".join([*kept, text[end:]]))


def has_images(body: str) -> bool:
    """Whether there are images in it, whose colours do not change with the theme."""
    return CELLS.search(body) is not None


def join_themes(light: str, dark: str | None = None) -> str | None:
    """Make one picture for both themes: colours become variables of the style sheet, images are there twice.

    dark: the same in the dark theme, needed where there are images. Returns None where that is not possible: other colours
    than the theme's are in it, or what is light in one theme is not in the other, such as numbers on cells.
    """
    body = _name_colours(light, LIGHT)
    if body is None or dark is None:
        return body
    other = _name_colours(dark, DARK)
    if other is None or _drop_ids(body) != _drop_ids(other):
        return None
    others = iter(CELLS.findall(dark))
    return re.sub(
        r'<use href="(#i\w+)"([^>]*)/>',
        lambda i: f'<use class="light" href="{i[1]}"{i[2]}/><use class="dark" href="{next(others)}"{i[2]}/>',
        body,
    )


def _drop_ids(body: str) -> str:
    """Drop ids, and what tells a colour from that of text where a theme has the same for both."""
    return ID.sub("", body).replace("-text)", ")")


def _name_colours(body: str, theme: Theme) -> str | None:
    """Replace the colours by variables of the style sheet; None where some are not the theme's."""
    names = {colour: name for name, colour in reversed(theme.variables.items())}
    if not set(COLOUR.findall(body)) <= set(names):
        return None
    return COLOUR.sub(lambda found: f"var(--{names[found[0]]})", body)
