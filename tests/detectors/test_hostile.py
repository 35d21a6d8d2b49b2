"""Who stands out from honest clients of the same partition, and who only differs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from fedfault.detectors.hostile import average_rounds, hostile_client, measure_outlying
from fedfault.diagnosis.calibration import ALPHA, Calibration, learn_thresholds
from fedfault.diagnosis.detection import detect_failures
from fedfault.records import RoundRecord
from fedfault.testing.histories import client, history

CLIENTS = 8


def run(seed, *, spread=0.05, flipped=(), long=(), rounds=3):
    """Cosines of about a half, of flipped clients minus a half; the updates of long clients are four times as long."""
    g = np.random.default_rng(seed)
    own = g.normal(0, spread, CLIENTS)  # of the client, in every round
    matrices = []
    for _ in range(rounds):
        half = np.triu(0.5 + own[:, None] + own + g.normal(0, 0.02, (CLIENTS, CLIENTS)), 1)
        cosines = half + half.T
        cosines[list(flipped), :] -= 1
        cosines[:, list(flipped)] -= 1
        np.fill_diagonal(cosines, 1)
        matrices.append(cosines.tolist())
    records = history(
        clients=[{}, *[{k: {} for k in range(CLIENTS)}] * rounds], matrices={"update_cosine": [None, *matrices]}
    )
    sized = lambda c: replace(client(c.client), update_norm=0.4 if c.client in long else 0.1)  # noqa: E731
    return [replace(r, clients=tuple(sized(c) for c in r.clients)) for r in records]


@lru_cache
def calibration(same_partition=True, **how):
    controls = [run(100 + i, **how) for i in range(19)]
    known = {"hostile_client": hostile_client()}
    thresholds, exact = learn_thresholds(controls, known, same_partition=same_partition)
    return Calibration("made", thresholds, 19, ALPHA, exact, {}, same_partition=same_partition)


def alarms(records, made):
    return [f for f in detect_failures(records, made) if f.detector == "hostile_client" and f.level == "alarm"]


@pytest.mark.slow
def test_flipped_and_long_updates_are_found_and_the_clients_are_named():
    made = calibration()
    (found,) = alarms(run(1, flipped=(2, 5)), made)
    assert found.sentence.startswith("clients 2, 5 stand out from honest clients of this partition")
    (found,) = alarms(run(1, long=(3,)), made)
    assert found.sentence.endswith("by the length of its updates, 4.0 times from the median")
    assert found.evidence["worst_client"] == 3


@pytest.mark.slow
def test_honest_clients_that_differ_are_accused_by_thresholds_of_alike_ones_and_not_by_those_of_their_own_kind():
    alike, unlike = calibration(spread=0.01), calibration(spread=0.15)
    runs = [run(seed, spread=0.15) for seed in range(10)]
    assert sum(bool(alarms(r, alike)) for r in runs) == 10
    assert sum(bool(alarms(r, unlike)) for r in runs) <= 3  # 5 % are expected


def test_iid_controls_set_no_threshold_and_without_any_it_is_silent():
    assert calibration(same_partition=False).thresholds == {}
    assert alarms(run(1, flipped=(2,)), None) == []


def test_a_client_s_number_is_its_mean_over_the_rounds_that_it_was_in():
    records = run(0, rounds=2)
    first, second = (r.matrices["update_cosine"] for r in records[1:])
    there = replace(records[2], clients=records[2].clients[1:])
    there = replace(there, matrices={"update_cosine": tuple(row[1:] for row in second[1:])})
    found = average_rounds([*records[:2], there])
    assert found[0]["direction"] == -np.median(first[0][1:])
    medians = [np.median([v for j, v in enumerate(m) if j != i]) for m, i in ((first[1], 1), (second[1][1:], 0))]
    assert np.isclose(found[1]["direction"], -np.mean(medians))


NAN = math.nan


def record(norms, cosines, **harm):
    own = {k: {"contribution/validation": value} for k, value in harm.items()}
    clients = [replace(client(7 + k, **own.get(f"c{k}", {})), update_norm=norm) for k, norm in enumerate(norms)]
    return RoundRecord(1, tuple(clients), matrices={"update_cosine": cosines})


def test_numbers_are_of_the_client_against_the_others():
    found = measure_outlying(record([1.0, 2.0, 8.0], ((1.0, 0.5, -0.5), (0.5, 1.0, 0.1), (-0.5, 0.1, 1.0)), c2=-0.25))
    assert found[7] == pytest.approx({"length": math.log(2), "direction": 0.0, "likeness": 0.5})
    assert found[8] == pytest.approx({"length": 0.0, "direction": -0.3, "likeness": 0.5})
    assert found[9] == pytest.approx({"length": math.log(4), "direction": 0.2, "likeness": 0.1, "harm": 0.25})


def test_who_sends_back_what_it_got_is_as_short_as_can_be_and_has_no_direction():
    nothing = (NAN, NAN, NAN)
    found = measure_outlying(record([0.0, 1.0, 1.0], (nothing, (NAN, 1.0, 0.5), (NAN, 0.5, 1.0))))
    assert found[7] == pytest.approx({"length": -math.log(1e-6)})
    assert found[8] == pytest.approx({"length": 0.0, "direction": -0.5, "likeness": 0.5})


@pytest.mark.parametrize(
    "short",
    [
        record([1.0, 2.0], ((1.0, 0.5), (0.5, 1.0))),  # nobody stands out from one other
        record([1.0, 2.0, 3.0], ()),  # the probe is off
        record([NAN, 2.0, 3.0], ((1.0, 0.5, 0.5),) * 3),
        record([0.0, 0.0, 0.0], ((1.0, 0.5, 0.5),) * 3),
        RoundRecord(0),
    ],
)
def test_where_nobody_can_stand_out_there_is_nothing(short):
    assert measure_outlying(short) == {}
