"""Pages of runs in headless Chromium: axe-core finds nothing, and nothing is wider than the window.

Needs `pip install playwright`, Chromium (on the PATH, or CHROMIUM names it) and axe-core, see tests/axe.py.
"""

import pytest

from axe import check_page, needs_axe
from fedfault.compare.listing import list_runs, write_index
from fedfault.compare.page import compare
from fedfault.report.render import render_live, render_report
from handmade import HISTORY, finding, lines, write

pytestmark = [pytest.mark.long, needs_axe]


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
    check_page(browser, pages[kind], width, scheme)
