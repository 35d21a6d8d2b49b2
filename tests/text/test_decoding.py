"""Bytes of text behind tokens: their sum is the size of the text, wherever it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fedfault.backbones.llama import FileTokenizer
from fedfault.backbones.load import MICRO
from fedfault.text.decoding import count_text_bytes, make_decoder
from fedfault.text.tokens import encode_texts

TEXTS = ["The cat sat on the mat.", "naïve café – 10 €\n\ttabs", "🦊 狐 \ufffd", " two  spaces ", "a"]


class Given:
    """A tokenizer of the library, with the part of the interface that is used."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend

    def __call__(self, texts: list[str], **_) -> dict[str, list[list[int]]]:
        return {"input_ids": [e.ids for e in self.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]}


def sentencepiece() -> Given:
    """Words marked by a low line and single bytes for what is not in the vocabulary, as Llama 2 has it."""
    pieces = ["<unk>", "<s>", "▁", "▁the", "a", "t", "h", "e", "▁t", "▁th", *(f"<0x{i:02X}>" for i in range(256))]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    replace, fuse = decoders.Replace("▁", " "), decoders.Fuse()
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), fuse, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return Given(backend)


def sizes(tokenizer, text: str) -> list[int]:
    return count_text_bytes(tokenizer, encode_texts(tokenizer, [text])[0].astype(np.int64), separator=-1).tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_text_are_the_sum_over_its_tokens_with_byte_level_bpe(text):
    assert sum(sizes(FileTokenizer(MICRO), text)) == len(text.encode())


def test_a_vocabulary_of_words_and_single_bytes():
    # the first low line is put there by the tokenizer: it stands for a space that the text does not have
    assert sizes(sentencepiece(), "the tea") == [4, 2, 1, 1]
    assert sizes(sentencepiece(), "t€") == [2, 1, 1, 1]


def test_special_tokens_and_separators_have_no_bytes():
    ids = np.array([1, 3, 4, 4, 1])
    assert count_text_bytes(sentencepiece(), ids, separator=-1).tolist() == [0, 4, 1, 1, 0]
    assert count_text_bytes(sentencepiece(), ids, separator=4).tolist() == [0, 4, 0, 0, 0]


def test_ids_beyond_the_vocabulary_have_no_bytes():
    assert count_text_bytes(FileTokenizer(MICRO), np.array([10**6]), separator=0).tolist() == [0]


def test_decoding_inverts_encoding_and_leaves_special_tokens_out():
    tokenizer = FileTokenizer(MICRO)
    for text in TEXTS:
        ids = encode_texts(tokenizer, [text])[0].tolist()
        assert make_decoder(tokenizer)([tokenizer.eos_token_id, *ids, tokenizer.eos_token_id]) == text


def test_tokenizers_without_the_library_are_decoded_by_themselves():
    class Own:
        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return bytes(ids).decode(errors="replace")

        def convert_ids_to_tokens(self, i):
            return f"<0x{i:02X}>"

    text = "a – b"
    assert make_decoder(Own())(text.encode()) == text
    assert count_text_bytes(Own(), np.array(list(text.encode())), separator=-1).tolist() == [1] * len(text.encode())
