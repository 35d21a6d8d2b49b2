"""Keeps transformers from looking at every batch for rows of several documents, which waits for the device each time.

Its models take position ids that begin anew within a row as the sign of packed documents, and look for it in every forward
pass without a mask. While a CUDA graph is captured they cannot look, and take a whole mask instead of a causal one, which is
slower. Rows here begin at position zero and have no breaks, so that the answer is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOKS = (
    "find_packed_sequence_indices"  # in transformers.masking_utils; without it there is nothing to keep from looking
)


@contextmanager
def without_packed_rows() -> Iterator[None]:
    """Within the block, transformers takes every row of tokens for one document."""
    masks: Any = sys.modules.get("transformers.masking_utils")  # not imported for the packaged model
    looks = getattr(masks, LOOKS, None)
    if looks is None:
        yield
        return
    setattr(masks, LOOKS, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masks, LOOKS, looks)
