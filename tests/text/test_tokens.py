import logging

import numpy as np
import pytest

from fedfault.text import tokens
from fedfault.text.tokens import Tokens, encode_texts


def lists(ids):
    return [row.tolist() for row in ids]


def test_tokens_are_a_sequence_of_rows():
    ids = Tokens.from_documents([[1, 2], [], [3]])
    assert len(ids) == 3
    assert lists(ids) == [ids[i].tolist() for i in range(3)] == [[1, 2], [], [3]]
    assert lists(Tokens.from_documents([])) == []


def test_some_rows_can_be_replaced():
    ids = Tokens.from_documents([[1, 2], [], [3]])
    assert lists(ids.replace({2: [7, 8], 0: []})) == [[], [], [7, 8]]
    assert ids.replace({}) is ids


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.enable_truncation(2)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", model_max_length=4)


def test_encode_adds_no_special_tokens_and_cuts_nothing(tokenizer):
    assert lists(encode_texts(tokenizer, ["a b", "", "a " * 50])) == [[3, 4], [], [3] * 50]
    assert lists(encode_texts(tokenizer, [])) == []


def test_encode_in_batches_is_encode_at_once(tokenizer, monkeypatch):
    texts = ["a b", "b", "a a a", "b b", "a"]
    whole = lists(encode_texts(tokenizer, texts))
    monkeypatch.setattr("fedfault.text.tokens.BATCH", 2)
    assert lists(encode_texts(tokenizer, texts)) == whole


def test_encode_does_not_warn_about_long_texts(tokenizer):
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        encode_texts(tokenizer, ["a " * 100])
    finally:
        logger.removeHandler(handler)
    assert not heard


@pytest.fixture
def counted(tokenizer, monkeypatch, tmp_path):
    """A tokeniser that counts its calls, a cache of its own, and every text worth caching."""
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "WORTH", 0)
    calls = []

    class Counting:
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, texts, **options):
            calls.append(texts)
            return tokenizer(texts, **options)

    return Counting(), calls, tmp_path


def test_the_same_texts_are_tokenised_once(counted):
    counting, calls, _ = counted
    first, again = (encode_texts(counting, ["a b", "", "b"]) for _ in range(2))
    assert len(calls) == 1
    assert lists(first) == lists(again) == [[3, 4], [], [4]]
    assert again.ids.dtype == np.int32


def test_other_texts_are_not_taken_for_the_same(counted):
    counting, calls, _ = counted
    assert lists(encode_texts(counting, ["ab", "c"])) == [[0], [0]]
    assert lists(encode_texts(counting, ["a", "b c"])) == [[3], [4, 0]]
    assert len(calls) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"nonsense",
        lambda data: data[:-3],
        lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:],  # another token
    ],
    ids=["empty", "nonsense", "cut", "flipped"],
)
def test_a_damaged_file_is_made_again(counted, damage):
    counting, calls, cache = counted
    encode_texts(counting, ["a b", "b"])
    (file,) = (cache / "tokens").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert lists(encode_texts(counting, ["a b", "b"])) == [[3, 4], [4]]
    assert len(calls) == 2
