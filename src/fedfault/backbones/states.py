"""Inner tensors of a forward pass: hidden states after every block, and attention weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import find_blocks

PLAIN: Mapping[str, Any] = {"use_cache": False}  # the inputs of a language model besides ids


def hidden_states(model: CohortModel, flat: Tensor, ids: Tensor, reads: Mapping[str, Any] = PLAIN) -> list[Tensor]:
    """The input of the first block and the output of every block, under each row of flat (k, P): (k, n, T, d) by layer.

    ids: (n, T); reads: the model's other inputs, tensors of (n, T) each. The last layer is the input of the model's last
    norm. Without gradients.
    """
    found: list[Tensor] = []

    def enters(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def leaves(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    blocks = find_blocks(model.model)[1]
    hooks = [blocks[0].register_forward_pre_hook(enters, with_kwargs=True)]
    hooks += [block.register_forward_hook(leaves) for block in blocks]
    _run(model, flat, ids, reads, hooks)
    return [layer.unflatten(0, (len(flat), -1)) for layer in found]


def attention_weights(
    model: CohortModel, flat: Tensor, ids: Tensor, reads: Mapping[str, Any] = PLAIN
) -> list[Tensor] | None:
    """Attention weights under each row of flat (k, P): (k, n, heads, T, T) by layer; None if a block gives none.

    ids and reads as in `hidden_states`. For this pass the model uses the implementation of attention that returns its
    weights. Without gradients.
    """
    T = ids.shape[1]
    found: dict[int, Tensor] = {}

    def leaves(block: int, out: Any) -> None:
        for part in out[1:] if isinstance(out, tuple) else ():
            if isinstance(part, Tensor) and part.ndim == 4 and part.shape[-2:] == (T, T):
                found.setdefault(block, part)

    blocks = find_blocks(model.model)[1]
    hooks = [
        module.register_forward_hook(lambda _module, _args, out, block=i: leaves(block, out))
        for i, block in enumerate(blocks)
        for module in block.modules()
    ]
    with _use_eager_attention(model.model):
        _run(model, flat, ids, reads, hooks)
    if len(found) < len(blocks):
        return None
    return [found[i].unflatten(0, (len(flat), -1)) for i in range(len(blocks))]


@torch.no_grad()
def _run(model: CohortModel, flat: Tensor, ids: Tensor, reads: Mapping[str, Any], hooks: list[Any]) -> None:
    """Run one forward pass of k times n rows, then remove the hooks."""
    k = len(flat)
    given = {name: v.repeat(k, 1) if isinstance(v, Tensor) else v for name, v in {"input_ids": ids, **reads}.items()}
    try:
        with model.slots.bind(flat):
            model.model.base_model(**given)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _use_eager_attention(model: Any) -> Iterator[None]:
    """Within the block, attention is computed in steps: fused kernels never hold its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
