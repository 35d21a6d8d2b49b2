"""From tokens back to text: the text of token ids, and how many bytes of text each token stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BROKEN = "\ufffd"  # what a part of a character is decoded to
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece vocabularies write a token that is one byte

Decode = Callable[[Sequence[int]], str]


def make_decoder(tokenizer: Any) -> Decode:
    """Make a function from ids to their text; it leaves special tokens out, such as the one between documents."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda ids: str(backend.decode(list(ids), skip_special_tokens=True))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def count_text_bytes(tokenizer: Any, ids: NDArray[np.int64], separator: int) -> NDArray[np.int64]:
    """Count the UTF-8 bytes by which each token makes a text longer, (n,) -> (n,).

    Special tokens and `separator`, which stands between documents, count zero; a token that holds a part of a character
    counts the bytes of that part. So the bytes of a text are the sum over its tokens, wherever it is cut.
    """
    found, places = np.unique(ids, return_inverse=True)
    text, piece = make_decoder(tokenizer), _make_piece_lookup(tokenizer)
    sizes = [0 if i == separator else _count_bytes(i, text, piece) for i in found.tolist()]
    return np.array(sizes, dtype=np.int64)[places]


def _count_bytes(token: int, text: Decode, piece: Callable[[int], str]) -> int:
    # the second is not at the start, where a space may be left out
    once, twice = text([token]), text([token, token])
    if BROKEN in twice and BROKEN not in (own := piece(token)):
        return 1 if BYTE.fullmatch(own) else len(own)  # byte-level BPE writes every byte as one character
    return len(twice.encode()) - len(once.encode())


def _make_piece_lookup(tokenizer: Any) -> Callable[[int], str]:
    """Make a function from an id to the token as the vocabulary writes it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.convert_ids_to_tokens if backend is None else backend.id_to_token  # type: ignore[no-any-return]
