"""Detectors of a test in the place of the real ones."""

from __future__ import annotations

import pytest

from fedfault.diagnosis import detection
from fedfault.records import Detector


@pytest.fixture
def known(monkeypatch):
    """Put these detectors in the place of the real ones."""

    def put(**detectors: Detector) -> None:
        monkeypatch.setattr(detection, "build_detectors", lambda: dict(sorted(detectors.items())))

    return put
