import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.text.packing import pack_blocks

SEPARATOR = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=9), max_size=8).filter(any)


def stream_of(documents):
    stream = [SEPARATOR]
    for document in documents:
        if document:
            stream += [*document, SEPARATOR]
    return stream


@pytest.mark.slow
@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 8))
def test_every_token_but_the_first_is_a_target_exactly_once_after_its_own_past(documents, length):
    """The naive reference: block b predicts stream[b T + 1 : b T + T + 1] from the token before each."""
    stream = stream_of(documents)
    blocks = pack_blocks(documents, length, SEPARATOR)
    inputs, targets = blocks.ids[:, :-1][blocks.mask], blocks.ids[:, 1:][blocks.mask]
    assert targets.tolist() == stream[1:]
    assert inputs.tolist() == stream[:-1]
    assert blocks.num_tokens == len(stream) - 1


@pytest.mark.slow
@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 8))
def test_only_the_last_block_is_padded_and_none_is_empty(documents, length):
    blocks = pack_blocks(documents, length, SEPARATOR)
    assert blocks.ids.shape == (len(blocks), length + 1)
    assert blocks.ids.dtype == torch.int64
    assert (blocks.targets[:-1] == length).all()
    assert 1 <= blocks.targets[-1] <= length
    assert (blocks.ids[-1, blocks.targets[-1] + 1 :] == SEPARATOR).all()
    torch.testing.assert_close(blocks.mask.sum(1), blocks.targets)


def test_blocks_by_hand():
    blocks = pack_blocks([[5, 6, 7], [8, 9]], length=3, separator=0)
    assert blocks.ids.tolist() == [[0, 5, 6, 7], [7, 0, 8, 9], [9, 0, 0, 0]]
    assert blocks.targets.tolist() == [3, 3, 1]
    assert blocks.mask.tolist() == [[True] * 3, [True] * 3, [True, False, False]]


def test_the_number_of_targets_does_not_depend_on_the_length():
    documents = [[1, 2, 3], [], [4], np.array([5, 6])]
    assert {pack_blocks(documents, length, 0).num_tokens for length in range(1, 20)} == {3 + 1 + 2 + 3}


def test_blocks_do_not_share_memory():
    blocks = pack_blocks([[1, 2, 3, 4]], length=2, separator=0)
    blocks.ids[0, -1] = 77
    assert blocks.ids[1, 0] == 2


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_nothing_to_pack_is_a_user_error(documents):
    with pytest.raises(UserError, match="no tokens"):
        pack_blocks(documents, 4, 0)


def test_a_length_of_zero_is_a_user_error():
    with pytest.raises(UserError, match="block of 0"):
        pack_blocks([[1]], 0, 0)
