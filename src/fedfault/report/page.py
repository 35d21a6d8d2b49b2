"""How pages are filled in: one environment for the templates of reports, comparisons, lists and studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent  # of the parts that all pages share


def make_environment(folder: Path = HERE, *, html: bool = True) -> jinja2.Environment:
    """Make the environment for the templates of a folder; `html`: what is filled in is escaped."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
