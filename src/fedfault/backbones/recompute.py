"""Gradient checkpointing: of a block only what enters it is kept, and the rest is computed again for its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

Bind = Callable[[], AbstractContextManager[None]]  # what a block needs around it when it is computed again


@contextmanager
def recompute_blocks(blocks: Iterable[nn.Module], bind: Bind) -> Iterator[None]:
    """Within the context, forward passes of these blocks keep their inputs alone (Chen et al., arXiv 1604.06174).

    The backward pass, which may come after the context, computes each of them again within `bind()`. The numbers are the
    same to the bit: dropout here is a function of the step, and nothing else in a frozen block is drawn.
    """
    every = list(blocks)
    for block in every:
        block.forward = _keep_inputs(block.forward, bind)  # shadows the method of the class
    try:
        yield
    finally:
        for block in every:
            del block.forward


def _keep_inputs(forward: Callable[..., Any], bind: Bind) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with bind():
            return forward(*args, **kwargs)

    def keep(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return keep
