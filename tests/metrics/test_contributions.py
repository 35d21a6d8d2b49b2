"""What the probe measures where an update is missing, weights are folded, clients hidden, models several."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedfault.metrics.contributions import contributions
from fedfault.testing.toys import LowRank, Quadratic, federation, measure_round, run_rounds

PULLED = Quadratic([[1.0], [1.0], [1e200]], [[0.0], [4.0], [1.0]], [4, 4, 4])


def test_an_update_that_was_not_taken_did_nothing_and_the_others_share_the_round():
    record = measure_round(contributions(pairs=4), PULLED, work={"steps": 2, "lr": 0.1}, bad_updates="drop")
    broken = [c.client for c in record.clients if not c.weight]
    assert broken == [2]
    assert [bool(c.probes) for c in record.clients] == [True, True, False]


@pytest.mark.parametrize("aggregation", ["fedit", "flora", "fedex_lora"])
def test_values_sum_to_what_the_round_gained_also_where_it_is_folded_into_frozen_weights(aggregation):
    task = LowRank()
    fed = federation(task, "fedavg", aggregation, num_rounds=2, cohort_size=4, probes={"one": contributions(pairs=8)})
    records = [r for _, r in run_rounds(fed)]
    for before, after in pairwise(records):
        gained = before.scores["validation"].loss - after.scores["validation"].loss
        assert sum(c.probes["shapley/validation"] for c in after.clients) == pytest.approx(gained, abs=1e-5)
    assert torch.equal(task.W, task.W0) == (aggregation == "fedit")


def test_models_of_clients_own_are_scored_too():
    record = measure_round(contributions(), LowRank(), "fedavg", "fedsa_lora", cohort_size=3)
    assert all({"contribution/validation", "contribution/personal"} <= set(c.probes) for c in record.clients)


def test_a_rule_that_needs_more_updates_than_are_left_is_not_asked():
    def measure(hostile, **options):
        rule = ("krum", {"hostile": hostile})
        record = measure_round(contributions(**options), LowRank(), "fedavg", rule, cohort_size=6)
        return {name.partition("/")[0] for c in record.clients for name in c.probes}

    assert measure(1) == {"contribution"}  # five of the six are enough for one hostile client
    assert measure(1, pairs=4) == {"contribution"}
    assert measure(2) == set()


def test_nothing_is_said_of_clients_that_are_hidden():
    (_, record) = run_rounds(federation(LowRank(), num_rounds=1, probes={"one": contributions()}))[1]
    assert any(c.probes for c in record.clients)
    seen = []
    probe = replace(
        contributions(), measure=lambda m: seen.append(m) or contributions().measure(replace(m, ablate=None))
    )
    (_, record) = run_rounds(federation(LowRank(), num_rounds=1, probes={"one": probe}))[1]
    assert seen
    assert not any(c.probes for c in record.clients)
