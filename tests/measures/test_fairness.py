"""Fairness and backward transfer against numbers worked out by hand."""

import math
import subprocess
import sys

import pytest

from fedfault.measures.fairness import backward_transfer, measure_fairness


def test_losses_by_hand():
    # eleven clients with losses 0, 0.1, ..., 1.0, shuffled: percentiles fall on clients
    found = measure_fairness([0.3, 0.0, 1.0, 0.1, 0.9, 0.2, 0.8, 0.4, 0.7, 0.5, 0.6], gains=False)
    assert found == pytest.approx(
        {
            "worst": 1.0,
            "p10": 0.1,
            "p50": 0.5,
            "p90": 0.9,
            "gap": 1.0,
            "sd": math.sqrt(0.1),  # (11^2 - 1) / 12 hundredths
            "cvar_20": (1.0 + 0.9 + 0.2 * 0.8) / 2.2,  # 20 % of 11 clients are 2.2
        }
    )


def test_the_worst_gain_is_the_smallest():
    found = measure_fairness([0.4, -0.1, 0.2], gains=True)
    assert found["worst"] == found["cvar_20"] == pytest.approx(-0.1)  # 20 % of three clients: at least one
    assert found["gap"] == pytest.approx(0.5)
    assert "jain" not in found


def test_jain_is_one_for_equals_and_one_nth_for_a_winner():
    assert measure_fairness([0.2] * 5, gains=True)["jain"] == pytest.approx(1.0)
    assert measure_fairness([0.0, 0.0, 0.7, 0.0], gains=True)["jain"] == pytest.approx(0.25)
    assert measure_fairness([0.1, 0.3], gains=True)["jain"] == pytest.approx(0.8)  # 0.16 / (2 * 0.1)
    assert "jain" not in measure_fairness([0.0, 0.0], gains=True)
    assert "jain" not in measure_fairness([0.1, 0.3], gains=False)


def test_percentiles_lie_between_neighbours():
    found = measure_fairness([1.0, 2.0], gains=False)
    assert (found["p10"], found["p50"], found["p90"]) == pytest.approx((1.1, 1.5, 1.9))


def test_a_lone_client_is_its_own_everything():
    assert measure_fairness([-0.3], gains=True) == pytest.approx(
        {"worst": -0.3, "p10": -0.3, "p50": -0.3, "p90": -0.3, "gap": 0.0, "sd": 0.0, "cvar_20": -0.3}
    )


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 2.0]])
def test_without_finite_values_nothing_is_said(values):
    assert measure_fairness(values, gains=False) == {}


def test_adding_a_constant_moves_places_but_not_spreads():
    here, there = (measure_fairness([x + c for x in (0.5, 0.1, 0.9, 0.2)], gains=False) for c in (0.0, 3.0))
    for name in ("worst", "p10", "p50", "p90", "cvar_20"):
        assert there[name] == pytest.approx(here[name] + 3.0)
    for name in ("gap", "sd"):
        assert there[name] == pytest.approx(here[name])


def test_backward_transfer_is_the_way_back_from_the_best():
    assert backward_transfer([4.0, 3.0, 3.5, 2.0, 2.25]) == [0.0, 0.0, 0.5, 0.0, 0.25]
    assert backward_transfer([1.0, 2.0, 3.0]) == [0.0, 1.0, 2.0]
    assert backward_transfer([]) == []


def test_a_loss_that_is_not_finite_is_no_best():
    assert backward_transfer([3.0, -math.inf, 3.5]) == pytest.approx([0.0, math.nan, 0.5], nan_ok=True)
    assert backward_transfer([math.nan, 2.0, 2.5]) == pytest.approx([math.nan, 0.0, 0.5], nan_ok=True)


@pytest.mark.slow
def test_it_needs_no_torch():
    code = "import sys, fedfault.measures.fairness; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
