"""Keeps transformers from looking at every batch for rows of several documents, which waits for the device each time.

Its models take position ids that begin anew within a row as the sign of packed documents, and look for it in every forward
pass without a mask. While a CUDA graph is captured they cannot look, and take a whole mask instead of a causal one, which is
slower. Rows here begin at position zero and have no breaks, so that the answer is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LOOKS = (
    "find_packed_sequence_indices"  # in transformers.masking_utils; without it there is nothing to keep from looking
)


_known: ContextVar[bool] = ContextVar("_known", default=False)  # of the thread that is in the block


@contextmanager
def without_packed_rows() -> Iterator[None]:
    """Within the block, transformers takes every row of tokens of this thread for one document."""
    masks: Any = sys.modules.get("transformers.masking_utils")  # not imported for the packaged model
    looks = getattr(masks, LOOKS, None)
    if looks is not None and not hasattr(looks, "asks_fedfault"):
        setattr(masks, LOOKS, _ask_first(looks))
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def _ask_first(looks: Any) -> Any:
    def look(position_ids: Any) -> Any:
        return None if _known.get() else looks(position_ids)

    look.asks_fedfault = True  # type: ignore[attr-defined] # it is put in its place once
    return look
