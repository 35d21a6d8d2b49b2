"""Training that learns nothing ends in words, and not as a finished run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfault.errors import UserError
from fedfault.session.training import check_learning
from fedfault.testing.histories import history
from small import start

TRAINED = history([5.0, 4.0, 3.0, 2.0, 1.0], clients=[{}, *[{0: {}, 1: {}}] * 4])


def lose(records, *rounds):
    """These records, in which the updates of all clients of some rounds were left out."""
    return [leave_out(r, math.nan) if r.round in rounds else r for r in records]


def leave_out(record, norm):
    """A record in which no client has a weight, and the changes of all have this norm."""
    return replace(record, clients=tuple(replace(c, weight=0.0, update_norm=norm) for c in record.clients))


@pytest.mark.parametrize("lost", [(), (3, 4), (1, 2, 3), (1, 2, 4)])
def test_a_run_that_loses_a_few_rounds_goes_on(lost):
    check_learning(lose(TRAINED, *lost), 9, 0.1)


def test_a_client_that_is_left_out_beside_one_who_is_not_loses_no_round():
    half = [replace(r, clients=(leave_out(r, math.nan).clients[0], *r.clients[1:])) for r in TRAINED[1:]]
    check_learning([TRAINED[0], *half], 9, 0.1)


def test_rounds_in_which_the_aggregation_listens_to_nobody_are_not_lost():
    check_learning([TRAINED[0], *(leave_out(r, 0.3) for r in TRAINED[1:])], 9, 0.1)


def test_a_run_before_its_first_round_and_rounds_without_clients_are_not_lost():
    check_learning(TRAINED[:1], 1, 0.1)
    check_learning([replace(r, clients=()) for r in TRAINED], 9, 0.1)  # nobody was in time


@pytest.mark.parametrize(("lost", "num_rounds"), [((2, 3, 4), 9), ((1, 2, 3, 4), 4)])
def test_three_rounds_without_a_finite_update_end_the_run(lost, num_rounds):
    with pytest.raises(UserError, match=rf"not one update was finite in the last {len(lost)} rounds.*training\.lr"):
        check_learning(lose(TRAINED, *lost), num_rounds, 0.1)


def test_a_run_of_one_round_that_is_lost_ends_too():
    with pytest.raises(UserError, match="in the last 1 rounds"):
        check_learning(lose(TRAINED[:2], 1), 1, 0.1)


@pytest.mark.slow
def test_a_learning_rate_beyond_all_numbers_ends_in_the_same_words_however_often_it_is_run(tmp_path):
    said = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"lower training\.lr, which is 3e\+38") as e:
            start(tmp_path, "training.lr=3e38", "federation.num_rounds=5")
        said.append(str(e.value))
    assert said[0] == said[1]


@pytest.mark.slow
def test_fltrust_goes_on_through_rounds_without_the_client_that_it_trusts(tmp_path):
    run = start(
        tmp_path,
        "federation.aggregation={name: fltrust, trusted: 3}",
        "federation.total_clients=4",
        "federation.participation_rate=0.25",
        "federation.num_rounds=5",
    )
    weights = [sum(c.weight for c in r.clients) for r in run.read_records() if r.clients]
    assert len(weights) == 5
    assert weights[:3] == [0, 0, 0]
