"""Keeps transformers from looking at every batch, which waits for the device each time, where the answer is known or free.

Its models take position ids that begin anew within a row as the sign of packed documents, and look for it in every forward
pass without a mask. While a CUDA graph is captured they cannot look, and take a whole mask instead of a causal one, which is
slower. Rows here begin at position zero and have no breaks, so that the answer is known. Models with a mask of padding look
whether it masks anything, to leave it out if not: while a graph is captured they take it as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

LOOKS, TRACING = "find_packed_sequence_indices", "is_tracing"  # of transformers.masking_utils, where it has them

_known: ContextVar[bool] = ContextVar("_known", default=False)  # of the thread that is in the block
_blind: ContextVar[bool] = ContextVar("_blind", default=False)


def without_packed_rows() -> AbstractContextManager[None]:
    """Within the block, transformers takes every row of tokens of this thread for one document."""
    return _answering(LOOKS, None, _known)


def without_looking_at_masks() -> AbstractContextManager[None]:
    """Within the block, transformers takes masks of this thread as if it could not look at them."""
    return _answering(TRACING, True, _blind)


@contextmanager
def _answering(name: str, answer: Any, known: ContextVar[bool]) -> Iterator[None]:
    """Within the block, a function of transformers.masking_utils gives this answer without a look at what it is given."""
    masks: Any = sys.modules.get("transformers.masking_utils")  # not imported for the packaged model
    looks = getattr(masks, name, None)  # without it there is nothing to keep from looking
    if looks is not None and not hasattr(looks, "asks_fedfault"):
        setattr(masks, name, _ask_first(looks, answer, known))
    token = known.set(True)
    try:
        yield
    finally:
        known.reset(token)


def _ask_first(looks: Any, answer: Any, known: ContextVar[bool]) -> Any:
    def look(*given: Any, **more: Any) -> Any:
        return answer if known.get() else looks(*given, **more)

    look.asks_fedfault = True  # type: ignore[attr-defined] # it is put in its place once
    return look
