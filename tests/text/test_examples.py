"""Labelled texts as rows of tokens: pairs, truncation, special tokens."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.llama import FileTokenizer
from fedfault.backbones.load import MICRO
from fedfault.errors import UserError
from fedfault.text.examples import EncodedText, Examples, _join_pair, encode_pairs
from tiny import tiny_bert_tokenizer

CLS, SEP, GOOD, BAD, FILM, PLOT = 2, 3, 4, 5, 6, 7


def test_an_encoder_gets_its_own_special_tokens_and_kinds():
    rows = encode_pairs([("good film", "bad"), ("plot", "good bad")], tiny_bert_tokenizer(), 16, None)
    assert rows == [EncodedText([CLS, GOOD, FILM, SEP, BAD, SEP], 4), EncodedText([CLS, PLOT, SEP, GOOD, BAD, SEP], 3)]
    assert encode_pairs([("good", ""), ("bad film", "")], tiny_bert_tokenizer(), 16, None) == [
        EncodedText([CLS, GOOD, SEP], 3),
        EncodedText([CLS, BAD, FILM, SEP], 4),
    ]


def test_of_a_pair_that_is_too_long_the_longer_sentence_is_cut():
    (row,) = encode_pairs([("good", "bad film plot bad")], tiny_bert_tokenizer(), 7, None)
    assert row == EncodedText([CLS, GOOD, SEP, BAD, FILM, PLOT, SEP], 3)
    (row,) = encode_pairs([("good bad film plot bad", "")], tiny_bert_tokenizer(), 4, None)
    assert row == EncodedText([CLS, GOOD, BAD, SEP], 4)
    with pytest.raises(UserError, match="no room for a pair"):
        encode_pairs([("good", "bad")], tiny_bert_tokenizer(), 3, None)


def test_a_decoder_reads_the_separator_and_then_what_a_line_break_joins():
    micro = FileTokenizer(MICRO)
    one, two = "It rains all day.", "The street is wet."
    (row,) = encode_pairs([(one, two)], micro, 64, 0)
    text = micro.backend_tokenizer.decode(list(row.ids[1:]))
    assert (row.ids[0], text) == (0, f"{one}\n{two}")
    assert micro.backend_tokenizer.decode(list(row.ids[row.second :])) == f"\n{two}"
    (alone,) = encode_pairs([(one, "")], micro, 64, 0)
    assert alone == EncodedText(list(row.ids[: row.second]), row.second)
    (short,) = encode_pairs([(one, two)], micro, 9, 0)
    assert len(short.ids) == 9
    assert short.second == 5  # four tokens of each


@pytest.mark.parametrize(
    ("a", "b", "kept"), [(2, 9, (2, 5)), (9, 2, (5, 2)), (9, 9, (4, 3)), (2, 2, (2, 2)), (9, 0, (7, 0))]
)
def test_both_sentences_are_cut_as_far_as_they_have_to_be(a, b, kept):
    row = _join_pair([1] * a, [2] * b, 8, 0)
    assert (row.ids.count(1), row.ids.count(2)) == kept
    assert row.second == 1 + kept[0]


def test_rows_are_filled_up_and_cut_to_what_is_there():
    made = Examples.from_rows(
        [EncodedText([5, 6, 7, 8], 2), EncodedText([9], 1), EncodedText([5, 6], 2)], [1, 0, 1], padding=3
    )
    assert made.ids.tolist() == [[5, 6, 7, 8], [9, 3, 3, 3], [5, 6, 3, 3]]
    assert made.mask.sum(1).tolist() == made.lengths.tolist() == [4, 1, 2]
    assert made.labels.dtype == torch.int64
    some = made[torch.tensor([2, 1])]
    assert (some.ids.tolist(), some.labels.tolist(), some.num_tokens) == ([[5, 6], [9, 3]], [1, 0], 2)
    both = Examples.concatenate([some, made])
    assert both.ids.shape == (5, 4)
    assert both.lengths.tolist() == [2, 1, 4, 1, 2]
    assert len(made[torch.tensor([], dtype=torch.int64)]) == 0


def test_scores_are_numbers_and_not_classes():
    assert Examples.from_rows([EncodedText([5], 1)] * 2, [1.0, 4.25]).labels.dtype == torch.float32
