"""What trials of kills share."""

from __future__ import annotations

import pytest

from crash import Lender
from fedfault.storage import write_atomically
from fedfault.studies import doors
from trials import draw


@pytest.fixture(scope="module")
def ready():
    return Lender()


@pytest.fixture(scope="module")
def quick_report():
    """A report of one file instead of seconds of drawing; that it is drawn once more is what matters here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", draw)
        patch.setattr(doors, "write_report", lambda folder: write_atomically(folder / "report.html", "a report"))
        yield
