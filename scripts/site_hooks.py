"""Hooks of mkdocs: pages at the root of the checkout are pages of the site, and links to code become its name."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
AT_THE_ROOT = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie at the root of the checkout."""
    for name in AT_THE_ROOT:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace links that leave the site: by the page itself where it is one of the site's, else by their text."""
    here = posixpath.dirname(page.file.src_uri)

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found[1], posixpath.normpath(posixpath.join(here, found[2])), found[3] or ""
        if target.startswith("../"):
            name = target.removeprefix("../")
            if name in AT_THE_ROOT:
                return f"[{text}]({posixpath.relpath(name, here or '.')}{anchor})"
            assert (ROOT / name).exists(), f"{page.file.src_uri} links to {name}, which is not there"
            return text
        return text if target.endswith(".ipynb") else found[0]

    return LINK.sub(replace, markdown)
