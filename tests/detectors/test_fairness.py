"""Clients that lose, and clients that are left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from fedfault.detectors.fairness import SEEN, fairness_gap, negative_transfer
from fedfault.diagnosis.calibration import Calibration, Threshold
from fedfault.diagnosis.detection import choose_threshold, judge_readings
from fedfault.records import Score
from fedfault.stats import ALPHA
from fedfault.testing.histories import history, paired_history

LOSES, GAP = negative_transfer(), fairness_gap()


def transfer(scale=None, **changes):
    """changes: client -> changes of its loss by round and their standard error; scale: of controls, if there are any."""
    scores = {f"client/{k.removeprefix('c')}": paired_history(*v) for k, v in changes.items()}
    return LOSES.read(history(scores=scores), scale or {})


def gap(*rounds):
    return GAP.read(history(clients=[{}, *({k: {"gradient_norm": v} for k, v in r.items()} for r in rounds)]), {})


def test_transfer_by_hand():
    """Client 1 loses 0.3, three standard errors; client 2 loses 0.1, one; clients 3 and 4 gain."""
    (found,) = transfer(c1=([0.3], 0.1), c2=([0.1], 0.1), c3=([-0.2], 0.1), c4=([-0.5], 0.1))
    assert found.statistic == pytest.approx(3)
    assert found.effect == pytest.approx(0.3 - 0.1645, abs=1e-4)  # what it loses at least
    assert found.evidence == pytest.approx(
        {"worst_client": 1, "clients_that_lose": 1, "clients": 4, "median_gain": 0.05, "lost": 0.3}
    )


def test_the_worst_client_is_the_surest_not_the_one_that_loses_most():
    (found,) = transfer(c0=([0.5], 0.5), c7=([0.2], 0.05))
    assert (found.evidence["worst_client"], found.statistic, found.evidence["lost"]) == pytest.approx((7, 4, 0.2))


def test_a_loss_that_is_not_sure_does_not_alarm_whatever_the_controls_say():
    (found,) = transfer(c0=([0.03], 0.05))
    assert found.effect < LOSES.min_effect


@pytest.mark.parametrize(
    ("shares", "lose"),
    [
        ((0.4, 0.4, 0.4), 0),  # the first is above 1/3: nobody
        ((0.3, 0.6, 0.9), 1),
        ((0.3, 0.45, 1.1), 2),  # the second is compared with 1/2, not with 1/3
        ((0.3, 0.45, 0.9), 3),
        ((0.9,), 1),
    ],
)
def test_clients_that_lose_are_counted_as_holm_does(shares, lose):
    """shares: p over the level. The smallest is compared with 1/3, the next with 1/2, the last with 1."""
    for scale in ({}, LOSES.default_scale):
        (found,) = transfer(scale, **{f"c{k}": ([t.ppf(1 - ALPHA * s, 15)], 1.0) for k, s in enumerate(shares)})
        assert found.evidence["clients_that_lose"] == lose


def test_without_controls_a_change_over_its_error_is_student_s_and_with_controls_it_stays_what_it_is():
    """Of three blocks 5 standard errors are as likely as 1.76 normal ones, of 65 blocks 4.9 as 4.5."""
    few, many = [Score(4.0, 100), Score(5.0, 100, 0.2, 3)], [Score(4.0, 100), Score(4.49, 100, 0.1, 65)]
    records = history(scores={"client/0": few, "client/1": many})
    (plain,) = LOSES.read(records, {})
    assert (plain.evidence["worst_client"], plain.statistic, plain.effect) == pytest.approx((0, 5, 1 - 1.645 * 0.2))
    natural = choose_threshold("negative_transfer", LOSES, None)
    (found,) = LOSES.read(records, natural.scale)
    assert found.evidence["worst_client"] == 1
    assert found.statistic == pytest.approx(-norm.ppf(t.sf(4.9, 64)))
    assert found.effect == pytest.approx(0.49 - 0.1 * t.ppf(0.95, 64))
    calibrated = Calibration("tests", {"negative_transfer": Threshold(3.0, 19)}, 19, 0.05, True, {})
    assert choose_threshold("negative_transfer", LOSES, calibrated).scale == {}


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [3, 5, 16])
def test_healthy_clients_of_few_blocks_are_above_the_default_threshold_at_the_rate_that_it_says(blocks):
    """Ten clients without a change on average: any of them is above it in 5 % of 1,000 rounds, or fewer."""
    g, above = np.random.default_rng(0), 0
    natural = choose_threshold("negative_transfer", LOSES, None)
    for _ in range(1000):
        each = g.normal(0, 0.3, (10, blocks))
        errors = each.std(1, ddof=1) / blocks**0.5
        scores = {
            f"client/{k}": [Score(4.0, 100), Score(4.0 + float(d), 100, float(se), blocks)]
            for k, (d, se) in enumerate(zip(each.mean(1), errors, strict=True))
        }
        above += judge_readings(LOSES, natural, LOSES.read(history(scores=scores), natural.scale)) != "ok"
    assert above / 1000 < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


def test_a_client_that_surely_loses_is_an_alarm():
    found = transfer(c0=([0.1, 0.2], 0.02), c1=([-0.5, -0.6], 0.02))
    assert judge_readings(LOSES, Threshold(LOSES.default_threshold, 0), found) == "alarm"
    assert "client 0 is 0.20 nats worse off" in LOSES.explain(found[-1])
    assert "clients lose beyond chance)" in LOSES.explain(found[-1])  # the report's figure counts those below zero


def test_an_alarm_does_not_say_that_nobody_loses():
    """Controls that lose less make an alarm of a loss that is none by Holm's test: 2.1 standard errors, of five clients."""
    others = {f"c{k}": ([-0.5, -0.5], 0.02) for k in range(1, 5)}
    found = transfer({"seen": 1.0}, c0=([0.21, 0.21], 0.1), **others)
    assert judge_readings(LOSES, Threshold(1.13, 19, {"seen": 1.0}), found) == "alarm"
    said = "client 0 is 0.21 nats worse off than with the base ("
    assert LOSES.explain(found[-1]) == f"{said}in one round the worst of 5 clients can lose as much by chance)"
    alone = found[-1]._replace(evidence={**found[-1].evidence, "clients": 1.0})
    assert LOSES.explain(alone) == f"{said}in one round a client can lose as much by chance)"


def test_a_loss_below_the_floor_or_below_its_noise_is_none():
    little, unsure = 0.9 * LOSES.min_effect, 0.1
    for changes, se in (([little] * 2, 0.001), ([unsure] * 2, 0.1), ([-0.5] * 2, 0.01)):
        found = transfer(c0=(changes, se))
        assert judge_readings(LOSES, Threshold(LOSES.default_threshold, 0), found) == "ok"


def test_a_client_without_a_standard_error_or_a_start_is_not_judged():
    few = [Score(4.0, 100), Score(5.0, 100, 0.01, 2)]
    assert LOSES.read(history(scores={"client/0": [4.0, 5.0], "client/1": few}), {}) == []
    assert LOSES.read(history(scores={"client/0": [None, *paired_history([1.0], 0.1)]}), {}) == []


def test_the_gap_by_hand():
    """Root mean squares 5 = sqrt((9 + 49 + 17) / 3), 1, 2, 3: the median of four is 2.5."""
    found = gap({0: 3.0, 1: 1.0, 2: 2.0}, {0: 7.0, 3: 3.0}, {0: math.sqrt(17.0)})
    assert [r.round for r in found] == [2, 3]
    assert found[1].effect == pytest.approx(2)
    assert found[1].statistic == pytest.approx(math.log(2))
    assert found[1].evidence == pytest.approx({"worst_client": 0, "ratio": 2, "gradient_norm": 5, "median": 2.5})


def test_equal_clients_have_no_gap_and_few_clients_no_median():
    assert gap(dict.fromkeys(range(SEEN), 2.0))[0].statistic == pytest.approx(0)
    assert gap(dict.fromkeys(range(SEEN - 1), 2.0)) == []
    assert gap(dict.fromkeys(range(SEEN), 0.0)) == []


def test_a_client_whose_gradient_stays_steep_is_an_alarm():
    steep = 2 * max(GAP.min_effect, math.exp(GAP.default_threshold))
    found = gap(*[{0: 1.0, 1: 1.0, 2: steep, 3: 1.1, 4: 0.9}] * 2)
    assert judge_readings(GAP, Threshold(GAP.default_threshold, 0), found) == "alarm"
    assert "client 2 is left behind" in GAP.explain(found[-1])


def test_clients_that_differ_by_less_than_the_floor_are_none():
    found = gap(*[{0: 1.0, 1: 1.0, 2: 0.9 * GAP.min_effect, 3: 1.1, 4: 0.9}] * 2)
    assert judge_readings(GAP, Threshold(0.1, 19), found) == "ok"
