"""From texts to token ids, once: the ids of a list of texts are stored in the cache and shared between runs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfault.storage import cache_dir, keep, recall

Ids = Sequence[int] | NDArray[np.int32]

BATCH = 1000  # texts a tokeniser call: enough for all its threads, and memory stays flat
WORTH = 200_000  # characters from which on reading the cache is faster than the tokeniser


@dataclass(frozen=True)
class Tokens(Sequence[NDArray[np.int32]]):
    """The token ids of n documents in one array, one document after the other."""

    ids: NDArray[np.int32]  # (sum of lengths,)
    lengths: NDArray[np.int64]  # (n,)

    @classmethod
    def from_documents(cls, documents: Iterable[Ids]) -> Tokens:
        """Put lists of ids, one a document, into one array."""
        rows = [np.asarray(d, dtype=np.int32) for d in documents]
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        return cls(np.concatenate(rows) if rows else np.zeros(0, np.int32), lengths)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: Any) -> Any:
        """The ids of one document, (length,)."""
        end = self._ends[place]  # type: ignore[attr-defined]
        return self.ids[end - self.lengths[place] : end]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return iter(np.split(self.ids, self._ends[:-1]) if len(self) else ())  # type: ignore[attr-defined]

    def replace(self, changed: Mapping[int, Ids]) -> Tokens:
        """The same tokens with the ids of some documents replaced: position -> new ids."""
        return Tokens.from_documents([changed.get(i, row) for i, row in enumerate(self)]) if changed else self


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    """Encode every text in full: no special tokens, no truncation, and no warning about long ones.

    The ids are stored in the cache under the hash of the tokeniser and the texts, so that runs of a study tokenise once.
    """
    if sum(map(len, texts)) < WORTH:
        return _encode_without_cache(tokenizer, texts)
    file = _cache_file(tokenizer, texts)
    if (kept := recall(file)) is not None:
        found = np.load(io.BytesIO(kept), allow_pickle=False)
        return Tokens(found[1 + len(texts) :].astype(np.int32), found[1 : 1 + len(texts)].astype(np.int64))
    made = _encode_without_cache(tokenizer, texts)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([[len(texts)], made.lengths, made.ids]).astype(np.int32))
    keep(file, buffer.getvalue())
    return made


def _encode_without_cache(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    ids: list[list[int]] = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            list(texts[start : start + BATCH]),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids += batch["input_ids"]
    return Tokens.from_documents(ids)


def _cache_file(tokenizer: Any, texts: Sequence[str]) -> Path:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    identity = backend.to_str() if backend is not None else f"{type(tokenizer)}{sorted(tokenizer.get_vocab().items())}"
    digest = hashlib.blake2b(identity.encode(), digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return cache_dir() / "tokens" / f"{digest.hexdigest()}.npy"
