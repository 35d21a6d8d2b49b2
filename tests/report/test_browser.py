"""Every kind of page in headless Chromium: axe-core finds nothing, and nothing is wider than the window.

Needs `pip install playwright`, Chromium (on the PATH, or CHROMIUM names it) and axe-core (`npm install axe-core` in the
checkout, or AXE names axe.min.js).
"""

import os
from pathlib import Path

import pytest

from fedfault.compare.listing import list_runs, write_index
from fedfault.compare.page import compare
from fedfault.report.render import render_live, render_report
from handmade import HISTORY, finding, lines, write

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install axe-core"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with findings, a live page, a comparison and a list of runs."""
    folder = tmp_path_factory.mktemp("results")
    one, other, live = folder / "one", folder / "other", folder / "live"
    for place in (one, other):
        lines(write(place) / "findings.jsonl", [finding(round=2, advice=["a lower rate"])])
        render_report(place, dpi=20)
    render_live(write(live, HISTORY[:2], status="running"), [], "running", 60)
    _, compared = compare([one, other])
    index = write_index(folder, list_runs(folder))
    return {"report": one / "report.html", "live": live / "report.html", "compare": compared, "runs": index}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
@pytest.mark.parametrize("kind", ["report", "live", "compare", "runs"])
def test_a_page_has_no_finding_of_axe_and_fits_the_window(browser, pages, kind, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(pages[kind].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
