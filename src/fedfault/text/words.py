r"""Texts as words, which are what `\w+(?:['’]\w+)*` matches. Works on arrays of code points: a Python loop is too slow."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedfault.scheduling import Ints

Bools = NDArray[np.bool_]

CHUNK = 1 << 22  # characters at a time, each takes some 30 bytes

_BLANK, _STRAIGHT, _CURLED = map(ord, " '’")
_WORD, _SPACE, _STOP, _OTHER = 1, 2, 3, 4  # kinds of characters


@dataclass(frozen=True)
class Words:
    """The words of n texts, one text after the other."""

    types: list[str]  # the different words in lower case, with ' for ’, in the order of their first occurrence
    ids: NDArray[np.int32]  # (num_words,) the place of each word in `types`
    starts_sentence: Bools  # (num_words,) whether the word is the first of a sentence
    counts: Ints  # (n,) words of each text

    @property
    def text_of_word(self) -> Ints:
        """The position of the text that each word is in, (num_words,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def split_words(texts: Sequence[str]) -> Words:
    """Split texts into words. A sentence ends at . ! ? or … unless it is the only character between two words, as in 3.5.

    >>> words = split_words(["It's 3.5 m. Fine!", "?"])
    >>> words.types, words.starts_sentence.tolist(), words.counts.tolist()
    (["it's", '3', '5', 'm', 'fine'], [True, False, False, False, True], [5, 0])
    """
    places: collections.defaultdict[str, int] = collections.defaultdict()
    places.default_factory = places.__len__
    ids, opens, counts = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=bool)], [np.empty(0, dtype=np.int64)]
    for part in _chunk_texts(texts):
        found = _locate_words(part)
        counts.append(found.counts)
        if len(found.starts) > 0:
            encoded = _encode_words(found)
            place = np.array([places[word] for word in encoded.dictionary.to_pylist()], dtype=np.int32)
            ids.append(place[encoded.indices.to_numpy()])
            opens.append(_find_sentence_starts(found))
    return Words(list(places), np.concatenate(ids), np.concatenate(opens), np.concatenate(counts))


def count_words(texts: Sequence[str]) -> Ints:
    """Count the words of each text, (n,)."""
    return np.concatenate([_locate_words(part).counts for part in _chunk_texts(texts)])


def remove_words(texts: Sequence[str], gone: Bools) -> list[str]:
    """Remove the words marked in `gone` (num_words,) from the texts, each with the white space before it.

    A text that loses its first word does not begin with the white space after it. All other characters stay.

    >>> remove_words(["A cat, a dog."], np.array([True, False, False, True]))
    ['cat, a.']
    """
    left: list[str] = []
    for part in _chunk_texts(texts):
        found = _locate_words(part)
        mine, gone = np.split(gone, [len(found.starts)])
        solid = np.flatnonzero(found.kinds != _SPACE)
        before = np.searchsorted(solid, found.starts[mine]) - 1
        begins = np.maximum(np.where(before < 0, 0, solid[before] + 1), np.repeat(found.begins, found.counts)[mine])
        edges = np.zeros(len(found.chars) + 1, dtype=np.int8)
        edges[begins] += 1
        edges[found.ends[mine]] -= 1
        kept = np.cumsum(edges[:-1], dtype=np.int8) == 0
        rest = _decode_chars(found.chars[kept])
        ends = np.cumsum(np.add.reduceat(kept, found.begins, dtype=np.int64)).tolist()
        for text, begin, end in zip(part, [0, *ends], ends, strict=False):
            new = rest[begin : end - 1]  # without the line break that was put behind the text
            left.append(new if text[:1].isspace() else new.lstrip())
    return left


def shorten_texts(texts: Sequence[str], limits: Ints) -> list[str]:
    """Cut each text off after as many words as `limits` (n,) says, at least one; a text with no more words stays whole.

    >>> shorten_texts(["One, two. Three!", "One."], np.array([2, 2]))
    ['One, two', 'One.']
    """
    left: list[str] = []
    for part in _chunk_texts(texts):
        found = _locate_words(part)
        mine, limits = np.split(limits, [len(part)])
        lengths = np.array([len(text) for text in part])
        long = found.counts > mine
        last = (np.cumsum(found.counts) - found.counts + mine - 1)[long]
        lengths[long] = found.ends[last] - found.begins[long]
        left += [text[:length] for text, length in zip(part, lengths.tolist(), strict=True)]
    return left


class _Spans(NamedTuple):
    """The places of words in texts that are joined to one, with a line break after each."""

    chars: NDArray[np.uint32]  # (num_chars,) code points
    kinds: NDArray[np.uint8]  # (num_chars,)
    inside: Bools  # (num_chars,) part of a word
    begins: Ints  # (n,) the first character of each text
    starts: Ints  # (num_words,)
    ends: Ints  # (num_words,) one past the last character of each word
    counts: Ints  # (n,) words of each text


def _chunk_texts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield neighbouring texts of about `CHUNK` characters together."""
    total = np.cumsum([len(text) for text in texts])
    cuts = (np.flatnonzero(np.diff(total // CHUNK)) + 1).tolist()
    return (texts[first:last] for first, last in zip([0, *cuts], [*cuts, len(texts)], strict=True))


def _locate_words(texts: Sequence[str]) -> _Spans:
    joined = "\n".join([*texts, ""])
    chars = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _classify_chars(chars)
    inside = kinds == _WORD
    quotes = np.flatnonzero((chars == _STRAIGHT) | (chars == _CURLED))  # never last: the last is a line break
    inside[quotes[inside[quotes - 1] & inside[quotes + 1]]] = True
    edges = np.flatnonzero(np.diff(inside, prepend=False))  # never odd in number, as the line break is no word
    begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
    counts = np.diff(np.searchsorted(edges[::2], begins))
    return _Spans(chars, kinds, inside, begins[:-1], edges[::2], edges[1::2], counts)


def _encode_words(found: _Spans) -> Any:
    """Encode the words, in lower case, as pyarrow's dictionary of types and indices."""
    names = np.where(found.inside, found.chars, np.uint32(_BLANK))
    names[names == _CURLED] = _STRAIGHT
    return pc.ascii_split_whitespace(pa.array([_decode_chars(names).lower().strip()])).values.dictionary_encode()


def _find_sentence_starts(found: _Spans) -> Bools:
    opens = np.zeros(len(found.starts) + 1, dtype=bool)
    after = np.searchsorted(found.starts, np.flatnonzero(found.kinds == _STOP))
    after = after[(after > 0) & (after < len(found.starts))]
    opens[after] = found.starts[after] - found.ends[after - 1] > 1
    opens[np.cumsum(found.counts) - found.counts] = True
    return opens[:-1]


def _classify_chars(chars: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The kind of each character, computed once for each different character."""
    table = np.zeros(chars.max(initial=0) + 1, dtype=np.uint8)
    table[chars] = _OTHER
    codes = np.flatnonzero(table)
    table[codes] = [_classify_char(chr(code)) for code in codes.tolist()]
    return table.take(chars)


def _classify_char(char: str) -> int:
    if char.isalnum() or char == "_":  # what \w matches
        return _WORD
    return _SPACE if char.isspace() else _STOP if char in ".!?…" else _OTHER


def _decode_chars(chars: NDArray[np.uint32]) -> str:
    return chars.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")
