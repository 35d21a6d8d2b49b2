"""Rows of different lengths: the groups of columns are the best ones, and nothing is left out."""

import itertools

import pytest
import torch

from fedfault.tasks.grouping import PASS, group_columns, split_by_length, split_prompts


def test_passes_begin_with_the_longest_row_and_a_row_that_is_too_long_goes_alone():
    found = [(rows.tolist(), T) for rows, T in split_by_length(torch.tensor([3, 9, 2, 4]), 8)]
    assert found == [([1], 9), ([3, 0], 4), ([2], 2)]


def test_short_prompts_do_not_wait_for_much_longer_ones():
    """With a gap above an answer's length two groups take fewer passes than one: 3 + 12 and 5 + 12, not 90 + 12."""
    assert list(split_prompts([10, 100, 13, 95], answer=12, most=10**6)) == [[0, 2], [3, 1]]
    assert list(split_prompts([10, 22], answer=12, most=10**6)) == [[0, 1]]  # as many passes: side by side
    assert list(split_prompts([], answer=12, most=10)) == []


def test_prompts_in_a_group_keep_to_what_fits_and_one_that_does_not_goes_alone():
    assert list(split_prompts([8, 8, 8, 9], answer=2, most=20)) == [[0, 1], [2], [3]]
    assert list(split_prompts([50, 8], answer=60, most=20)) == [[1], [0]]


def brute_force(lengths: torch.Tensor) -> float:
    """The fewest tokens of all ways to cut, PASS for each group."""
    K, B = lengths.shape
    widest = lengths.sort(dim=1)[0].amax(0).tolist()
    ways = itertools.chain.from_iterable(itertools.combinations(range(1, B), n) for n in range(B))
    return min(sum(K * (j - i) * widest[j - 1] + PASS for i, j in itertools.pairwise((0, *cuts, B))) for cuts in ways)


@pytest.mark.parametrize("seed", range(4))
def test_the_cuts_are_the_best_ones(seed):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (3, 8), generator=g)
    found = group_columns(lengths, 10**9)
    cost = sum(3 * columns.shape[1] * int(lengths.gather(1, columns).max()) + PASS for columns in found)
    assert cost == brute_force(lengths)
    every = torch.cat(found, 1)
    assert torch.equal(every.sort(dim=1)[0], torch.arange(8).expand(3, -1))


def test_groups_keep_to_what_fits():
    lengths = torch.tensor([[50, 50, 50, 50], [50, 1, 50, 50]])
    assert [c.shape[1] for c in group_columns(lengths, 10**9)] == [4]
    assert [c.shape[1] for c in group_columns(lengths, 200)] == [2, 2]
    assert [c.shape[1] for c in group_columns(lengths, 10)] == [1, 1, 1, 1]  # a column is the least there is
    assert torch.equal(group_columns(lengths, None)[0], torch.arange(4).expand(2, -1))


def test_columns_that_no_client_has_are_left_out():
    lengths = torch.tensor([[0, 3, 0, 5], [0, 0, 4, 0]])
    (columns,) = group_columns(lengths, 10**9)
    assert lengths.gather(1, columns).tolist() == [[3, 5], [0, 4]]
    assert group_columns(torch.zeros(2, 3, dtype=torch.int64), 10**9) == []
