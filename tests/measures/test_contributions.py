"""Which coalitions are valued; what Shapley values are worth is in tests/theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedfault.measures.contributions import find_shapley, plan_coalitions


@pytest.mark.parametrize(("players", "pairs", "number"), [(1, 1, 2), (3, 2, 8), (4, 8, 16), (6, 8, 64)])
def test_all_coalitions_are_valued_where_they_are_no_more_than_those_of_the_permutations(players, pairs, number):
    design = plan_coalitions(players, pairs, np.random.default_rng(0))
    assert not design.orders
    assert len(set(design.coalitions)) == number == 2**players


def test_others_come_in_pairs_of_a_permutation_and_its_reverse_with_the_coalitions_on_the_way():
    design = plan_coalitions(10, 4, np.random.default_rng(0))
    assert [sorted(order) for order in design.orders] == [list(range(10))] * 8
    assert all(order == back[::-1] for order, back in zip(design.orders[::2], design.orders[1::2], strict=True))
    on_the_way = {frozenset(order[:n]) for order in design.orders for n in range(11)}
    assert on_the_way == set(design.coalitions)
    assert len(design.coalitions) == len(on_the_way) <= 2 * 4 * 9 + 2


def test_one_pair_has_no_standard_error_and_several_games_are_valued_at_once():
    design = plan_coalitions(9, 1, np.random.default_rng(0))
    phi, error = find_shapley(design, {c: np.array([len(c), -3.0 * (4 in c)]) for c in design.coalitions})
    assert phi.tolist() == [[1.0, -3.0 * (k == 4)] for k in range(9)]
    assert all(map(math.isnan, error.ravel()))


def test_a_lone_player_gets_everything():
    design = plan_coalitions(1, 8, np.random.default_rng(0))
    assert find_shapley(design, {frozenset(): np.array([1.0]), frozenset({0}): np.array([4.0])})[0].tolist() == [[3.0]]
