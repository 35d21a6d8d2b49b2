"""What adapters say of the loop that made them: when it is an alarm and when it is none."""

from __future__ import annotations

import math

import pytest

from fedfault.detectors.exchange import (
    GROWTH,
    KEPT,
    OFF,
    SCALED,
    leaked_factor,
    moved_frozen,
    not_averaged,
    wrong_average,
    wrong_scale,
)
from fedfault.diagnosis.calibration import Threshold
from fedfault.diagnosis.detection import judge_readings
from fedfault.testing.histories import history


def judge(detector, **probes):
    """The state after three rounds in which these were measured."""
    records = history(probes={name: [None, *[value] * 3] for name, value in probes.items()})
    return judge_readings(detector, Threshold(detector.default_threshold, 0), detector.read(records, {}))


@pytest.mark.parametrize(
    ("kept", "growth", "state"),
    [
        (1.0, 2.0, "alarm"),
        (0.7, 2.0, "ok"),  # a part of it is gone: there was an average
        (1.0, 1.0, "ok"),  # clients do the same again, and do not drift apart
        (KEPT + 0.01, GROWTH, "alarm"),
        (KEPT, 2 * GROWTH, "ok"),
    ],
)
def test_clients_that_keep_what_sets_them_apart_and_drift_were_not_averaged(kept, growth, state):
    assert judge(not_averaged(), kept_apart=kept, spread_growth=growth) == state


@pytest.mark.parametrize(
    ("share", "p", "state"),
    [(0.9, 0.001, "alarm"), (0.9, 0.02, "ok"), (0.1, 0.001, "ok"), (-0.4, 0.001, "ok")],
)
def test_a_chain_of_clients_is_a_leak_where_its_order_is_no_chance(share, p, state):
    assert judge(leaked_factor(), chained=share, chained_p=p) == state


def test_one_adapter_in_which_the_frozen_moved_is_enough():
    found = moved_frozen().read(history(probes={"frozen_moved": [None, 0.0, 1.0]}), {})
    assert [r.statistic for r in found] == [0.0, math.inf]
    assert judge_readings(moved_frozen(), Threshold(0.0, 0), found) == "alarm"


@pytest.mark.parametrize(
    ("ratio", "state"), [(2.0, "alarm"), (0.5, "alarm"), (1.0, "ok"), (2**SCALED, "ok"), (2**-0.3, "alarm")]
)
def test_too_much_and_too_little_scaling_weigh_alike(ratio, state):
    assert judge(wrong_scale(), scale_ratio=ratio) == state


@pytest.mark.parametrize(
    ("total", "split", "step", "state"),
    [
        (1.0, 0.0, 1.0, "ok"),
        (1.0, 0.0, 4.0, "ok"),  # a learning rate of the server
        (4.0, 0.0, 4.0, "alarm"),
        (0.8, 0.0, 0.8, "alarm"),
        (1.0 + OFF / 2, 0.0, 1.0, "ok"),
        (1.0, 0.2, 1.0, "alarm"),
        (1.0, 0.0, -1.0, "alarm"),
    ],
)
def test_weights_that_do_not_add_up_differ_by_factor_or_go_backwards_are_no_average(total, split, step, state):
    assert judge(wrong_average(), average_total=total, average_split=split, average_step=step) == state
