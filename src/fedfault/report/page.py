"""How pages are filled in: one environment for the templates of reports, comparisons, lists and studies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfault.errors import UserError

if TYPE_CHECKING:
    import jinja2
    import markupsafe

HERE = Path(__file__).parent  # of the parts that all pages share
MARKS = ('content="fedfault">', " · fedfault</title>")  # in the head of every page: the second is in older ones too


def check_own_page(page: Path) -> None:
    """Raise `UserError` where a page would replace a file that is none of these."""
    if not page.exists():
        return
    head = page.read_text(encoding="utf-8", errors="replace")[:1000] if page.is_file() else ""
    if not any(mark in head for mark in MARKS):
        raise UserError(f"{page} is not a page of fedfault's; move it away")


def make_environment(folder: Path = HERE, *, html: bool = True) -> jinja2.Environment:
    """Make the environment for the templates of a folder; `html`: what is filled in is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = show_code
    return environment


def show_code(text: str) -> markupsafe.Markup:
    """Show what stands in backticks as code.

    >>> str(show_code("start from `fedfault run` if a < b"))
    'start from <code>fedfault run</code> if a &lt; b'
    """
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def collect_shared(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """Collect the letters and images that the pictures of a page use, each once."""
    drawings = [drawing for figure in figures for drawing in figure["drawings"]]
    return list({id: element for drawing in drawings for id, element in drawing.shared.items()}.values())


def embed_values(shared: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> str:
    """Embed the numbers behind the figures as JSON that may stand in a script element; "" where none has any.

    shared: what all figures of the page share, see `values.collect_values`.
    """
    from fedfault.report.values import OWN

    alive = {
        one["name"]: {
            "panels": one["panels"],
            "places": [drawing.axes for drawing in one["drawings"]],
            "own": OWN.get(one["name"]),
        }
        for one in figures
        if one["panels"]
    }
    text = json.dumps({**shared, "figures": alive}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c") if alive else ""
