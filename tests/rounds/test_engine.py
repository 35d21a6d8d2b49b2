"""The round loop."""

from __future__ import annotations

import math
import time

import pytest
import torch

from fedfault.errors import UserError
from fedfault.records import RoundRecord, Score
from fedfault.registry import build
from fedfault.rounds import clients
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.task import Measurements, Probe


def records_of(fed) -> list[RoundRecord]:
    return [record for _, record in rounds(fed, begin(fed))]


def test_round_zero_is_the_untrained_model():
    first, *rest = records_of(federation(LowRank(), num_rounds=2))
    assert (first.round, first.clients, first.bytes_up) == (0, (), 0)
    assert first.scores
    assert [r.round for r in rest] == [1, 2]


def test_the_seed_alone_draws_the_cohorts():
    one, again, other = (federation(LowRank(), cohort_size=3, seed=seed) for seed in (0, 0, 1))
    rounds_ahead = range(1, 11)
    assert [one.cohort(t) for t in rounds_ahead] == [again.cohort(t) for t in rounds_ahead]
    assert [one.cohort(t) for t in rounds_ahead] != [other.cohort(t) for t in rounds_ahead]


def test_a_cohort_is_drawn_without_replacement_and_sorted():
    fed = federation(LowRank(), cohort_size=3, num_rounds=30)
    cohorts = [fed.cohort(t) for t in range(1, 31)]
    assert all(c == sorted(set(c)) and len(c) == 3 for c in cohorts)
    assert {k for c in cohorts for k in c} == set(range(6))


def test_shares_of_a_round_sum_to_one_by_the_weighting_rule():
    record = records_of(federation(LowRank(), cohort_size=3, num_rounds=1))[1]
    sizes = [10 + 3 * c.client for c in record.clients]
    assert [c.weight for c in record.clients] == pytest.approx([n / sum(sizes) for n in sizes])


def test_who_looks_on_is_told_which_clients_train_and_what_follows():
    """Clients have 10, 13 and 16 examples, which are two batches of 8 each."""
    told = []
    probe = Probe(lambda finished: Measurements())
    fed = federation(
        LowRank(), total_clients=3, cohort_size=3, num_rounds=1, clients_per_pass=2,
        work={"steps": None, "epochs": 1, "batch_size": 8}, tell=told.append, probes={"gradient_noise": probe},
    )  # fmt: skip
    records_of(fed)
    assert told == [
        "evaluating the base",
        "clients 1 to 2 of 3, step 1 of 2",
        "clients 1 to 2 of 3, step 2 of 2",
        "client 3 of 3, step 1 of 2",
        "client 3 of 3, step 2 of 2",
        "evaluating",
        "measuring gradient noise",
    ]


def test_evaluation_can_be_rarer_but_never_misses_the_last_round():
    records = records_of(federation(LowRank(), num_rounds=5, evaluate_every=2))
    assert [r.round for r in records if r.scores] == [0, 2, 4, 5]


def test_warm_up_rises_over_the_first_rounds_only():
    fed = federation(LowRank(), num_rounds=10, warmup_ratio=0.4, work={"lr": 0.8})
    assert [round(fed.lr(t), 6) for t in (1, 2, 3, 4, 5, 10)] == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    assert federation(LowRank(), work={"lr": 0.8}).lr(1) == 0.8


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1.0, 0.775, 0.55, 0.325, 0.1]), ("cosine", [1.0, 0.868198, 0.55, 0.231802, 0.1]),
     ("exponential", [1.0, 10**-0.25, 10**-0.5, 10**-0.75, 0.1]), ("constant", [1.0] * 5)],
)  # fmt: skip
def test_a_schedule_falls_from_the_full_rate_to_that_of_the_last_round(schedule, expected):
    fed = federation(LowRank(), num_rounds=5, work={"lr": 1.0}, lr_schedule=schedule, min_lr=0.1)
    assert [fed.lr(t) for t in range(1, 6)] == pytest.approx(expected, abs=1e-6)
    warm = federation(LowRank(), num_rounds=8, work={"lr": 1.0}, lr_schedule=schedule, min_lr=0.1, warmup_ratio=0.5)
    assert [warm.lr(t) for t in range(1, 4)] == [0.25, 0.5, 0.75]
    assert [warm.lr(t) for t in range(4, 9)] == pytest.approx(expected, abs=1e-6)
    assert federation(LowRank(), num_rounds=1, work={"lr": 1.0}, lr_schedule=schedule, min_lr=0.1).lr(1) == 1.0


def exploding(**changes):
    """Client 1's loss is so steep that its parameters overflow; client 0 is well-behaved."""
    return federation(Quadratic([[1.0], [1e250]], [[0.0], [1.0]], [1, 1]), num_rounds=2, work={"lr": 0.1}, **changes)


def test_an_update_that_is_not_finite_is_left_out_and_the_client_named():
    fed = exploding()
    *_, (state, record) = rounds(fed, begin(fed))
    assert record.events == ("parameters not finite after local training, left out of the average: client 1",)
    assert state.adapter.flat.item() == pytest.approx(3 * 0.9**10)  # client 0 alone, five steps a round


def test_a_round_without_any_finite_update_changes_nothing():
    fed = federation(Quadratic([[1e250]], [[0.0]], [1]), num_rounds=2, work={"lr": 0.1})
    *_, (state, record) = rounds(fed, begin(fed))
    assert state.adapter.flat.item() == 3.0
    assert record.events[0].endswith("client 0, so that the round changes nothing")


def test_a_run_can_stop_at_the_first_update_that_is_not_finite():
    fed = exploding(bad_updates="stop")
    with pytest.raises(UserError, match=r"not finite after local training: client 1; lower training\.lr"):
        list(rounds(fed, begin(fed)))


def test_scores_that_are_not_finite_survive_json():
    line = RoundRecord(1, scores={"validation": Score(math.inf, 10)}).to_json()
    assert line["scores"]["validation"]["loss"] is None
    assert math.isnan(RoundRecord.from_json(line).scores["validation"].loss)


def test_a_record_survives_json():
    record = records_of(federation(LowRank(), num_rounds=1))[1]
    assert RoundRecord.from_json(record.to_json()) == record


def test_client_records_say_what_each_client_did():
    fed = federation(LowRank(), cohort_size=2, num_rounds=1, work={"steps": None, "epochs": 1, "batch_size": 4})
    task, record = fed.task, records_of(fed)[1]
    for c in record.clients:
        assert c.steps == -(-task.examples(c.client) // 4)
        assert c.tokens == task.tokens(c.client)
        assert c.update_norm > 0
        assert c.grad_norm > 0
        assert c.bytes_down == c.bytes_up == 4 * task.layout.size
    assert record.bytes_up == record.bytes_down == 2 * 4 * task.layout.size


def test_effort_is_asked_for_each_round_and_client():
    """Curvature 1 from 3 to 0 with lr 0.1; client k gets k + 1 of 5 steps done in round 1, all of them in round 2."""
    task = Quadratic([[1.0]] * 3, [[0.0]] * 3, [2, 2, 2])
    fed = federation(task, num_rounds=2, effort=lambda t, k: 1.0 if t == 2 else (k + 1) / 5)
    *_, (_, first), (state, second) = rounds(fed, begin(fed))
    assert [c.steps for c in first.clients] == [1, 2, 3]
    assert [c.steps for c in second.clients] == [5, 5, 5]
    assert state.adapter.flat.item() == pytest.approx(3 * (0.9 + 0.9**2 + 0.9**3) / 3 * 0.9**5)


def test_effort_one_is_no_effort_given():
    ends = []
    for effort in (None, lambda t, k: 1.0):
        fed = federation(LowRank(), cohort_size=3, num_rounds=2, effort=effort)
        *_, (state, _) = rounds(fed, begin(fed))
        ends.append(state.adapter.flat)
    assert torch.equal(*ends)


@pytest.mark.slow
def test_seconds_of_probes_are_not_those_of_training(monkeypatch):
    """Gradients that probes ask for are taken before training and belong to the probe."""

    def slow(task, start, *args, **kwargs):
        time.sleep(0.2)
        return start, start

    monkeypatch.setattr(clients, "split_halves", slow)
    fed = federation(LowRank(), num_rounds=1, probes={"gradients": build("probe", "gradients")})
    *_, (_, record) = rounds(fed, begin(fed))
    assert record.seconds["probe/gradients"] >= 0.2 > record.seconds["train"]


@pytest.mark.parametrize(("sparse", "taken"), [(False, [1, 2, 3]), (True, [2, 3])])
def test_a_probe_is_taken_after_every_round_or_only_where_the_model_is_evaluated(sparse, taken):
    """And its seconds are in the record of every round in which it was taken."""
    probe = Probe(lambda m: Measurements({"seven": 7.0}), sparse=sparse)
    records = records_of(federation(LowRank(), num_rounds=3, evaluate_every=2, probes={"lucky": probe}))
    assert [r.round for r in records if r.probes == {"seven": 7.0}] == taken
    assert [r.round for r in records if "probe/lucky" in r.seconds] == taken
