"""The same ranks in every round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.testing.cohorts import situation


def four():
    s = situation(0, n=4)
    return replace(s, clients=np.array([4, 0, 1, 2]), low=np.full(4, 1), high=np.array([8, 8, 4, 8]))


def test_without_a_rank_everybody_trains_with_the_largest():
    assert build("scheduler", "fixed").assign({}, four()).ranks == (8, 8, 4, 8)


def test_a_rank_is_for_all_and_who_cannot_hold_it_gets_the_nearest_with_an_event():
    given = build("scheduler", "fixed", rank=6).assign({}, four())
    assert given.ranks == (6, 6, 4, 6)
    assert len(given.events) == 1
    assert "client 1 cannot hold" in given.events[0]


def test_ranks_are_by_client_and_start_again_when_they_end():
    """Client 4 is the second of 2, 3, 5 again."""
    given = build("scheduler", "fixed", ranks=[2, 3, 5]).assign({}, four())
    assert given.ranks == (3, 2, 3, 5)
    assert given.events == ()


def test_a_deadline_changes_nothing():
    assert build("scheduler", "fixed", rank=4).assign({}, replace(four(), deadline=1e-9)).ranks == (4, 4, 4, 4)


@pytest.mark.parametrize("wrong", [{"rank": 4, "ranks": [4]}, {"ranks": []}])
def test_two_answers_or_none_are_refused(wrong):
    with pytest.raises(UserError, match="give one of them"):
        build("scheduler", "fixed", **wrong)
