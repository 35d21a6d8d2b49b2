"""What registered detectors promise together, beyond the rules of `fedfault.testing`: thresholds are learned jointly."""

from __future__ import annotations

from functools import lru_cache

import pytest

from fedfault.diagnosis.calibration import Calibration
from fedfault.diagnosis.detection import build_detectors, detect_failures
from fedfault.records import Finding
from fedfault.registry import load_builders
from fedfault.testing.detectors import QUIET, RUNS, calibrate

pytestmark = pytest.mark.parametrize("name", load_builders("detector"))


@lru_cache
def calibration() -> Calibration:
    return calibrate(build_detectors())


@lru_cache
def found(run: str, with_controls: bool) -> list[Finding]:
    """What all detectors say of one of these runs."""
    return detect_failures(RUNS[run], calibration() if with_controls else None)


@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize("run", QUIET)
def test_no_history_a_short_one_and_a_healthy_one_say_nothing(name, run, with_controls):
    assert [f.level for f in found(run, with_controls) if f.detector == name] == []


def test_a_run_that_breaks_in_every_way_raises_every_alarm(name):
    assert "alarm" in [f.level for f in found("broken, not a number", True) if f.detector == name]
