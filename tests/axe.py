"""axe-core on a page in headless Chromium: `npm install axe-core` in the checkout, or AXE names axe.min.js."""

import os
from pathlib import Path

import pytest

AXE = Path(os.environ.get("AXE", Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"))
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install axe-core")


def check_page(browser, file, width: int, scheme: str) -> None:
    """Fail where axe finds something on a page with all its parts open, or where it is wider than the window."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found] == []
    assert fits
