"""Next-token loss of K clients without ever holding the cohort's logits.

The head is the last layer, so its loss and the gradient with respect to the hidden states come from the same logits: both
are computed a chunk of rows at a time in the forward pass. A frozen head needs no weight gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedfault.backbones.memory import LOGITS

CACHED = 2**22  # numbers in a head's weight that stay in a CPU's cache from chunk to chunk
ROWS = 256  # rows of logits at a time over such a head: the logits stay in cache too
ROWS_OVER_LARGE = 512  # over a larger head, which is read from memory for every chunk: fewer chunks
ROWS_ON_GPU = 8192  # on any other device than a CPU: products large enough to keep it busy,
LOGITS_ON_GPU = 2**28  # but no more logits than this, with two copies of each,
SHARE_ON_GPU = 16  # nor than this part of a card's memory holds: 3 GB of logits leave a card of 8 GB little for clients
SOFTENED = 2**18  # logits of a CPU that become losses and gradients at a time, in single precision: a MB stays in cache


def even_slices(n: int, most: int) -> list[slice]:
    """Divide 0..n into the fewest slices of at most `most`, all about as long.

    >>> even_slices(10, 4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 12, None)]
    """
    size = -(-n // -(-n // most))
    return [slice(i, i + size) for i in range(0, n, size)]


def count_rows(W: Tensor) -> int:
    """How many rows of logits are computed at a time over a head's weight W (V, d) or (K, V, d), of all clients together."""
    if W.device.type != "cpu":
        return max(1, min(ROWS_ON_GPU, _count_logits(W.device) // W.shape[-2]))
    return ROWS if W.numel() <= CACHED else ROWS_OVER_LARGE


def _count_logits(device: torch.device) -> int:
    """How many logits are computed at a time on a device that is not a CPU."""
    if device.type != "cuda":
        return LOGITS_ON_GPU
    memory = int(torch.cuda.get_device_properties(device).total_memory)
    return min(LOGITS_ON_GPU, memory // SHARE_ON_GPU // LOGITS)


def head_loss(hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token loss of every position, (K, n), and its weighted sum, from hidden states and the head's weight.

    hidden: (K, n, d); W: (V, d) or (K, V, d); bias: (V,), or with a W for each (K, V); y: (K, n) token ids; weight: (K, n).
    Returns (sum of weight * loss, loss).

    The first result is differentiable in `hidden` and, if they require a gradient, in W and bias; the second is not.
    """
    shape = y.shape
    if W.ndim == 2:  # one head for all: the client axis is only more rows
        hidden, W, y, weight = hidden.flatten(0, 1)[None], W[None], y.flatten()[None], weight.flatten()[None]
    total, each = _HeadLoss.apply(hidden, W, bias, y, weight)  # type: ignore[no-untyped-call]
    return total, each.view(shape)


def sparse_head_loss(
    hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor, weight: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`head_loss` over a head W (V, d) for all, from the logits of some of the K * n positions; elsewhere the loss is 0.

    rows: (m,) the positions, in order: no device is asked for those of weight.
    """
    chosen = hidden.flatten(0, 1)[rows][None]
    total, each = head_loss(chosen, W, bias, y.flatten()[rows][None], weight.flatten()[rows][None])
    return total, each.new_zeros(y.numel()).index_copy_(0, rows, each[0]).view(y.shape)


class _HeadLoss(torch.autograd.Function):
    """Computes (K, rows, V) logits, `rows` of every client at a time, always in the same memory."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        K, n, _ = hidden.shape
        V = W.shape[1]
        parts = even_slices(n, -(-count_rows(W) // K))
        room = hidden.new_empty(K * parts[0].stop * V)
        each = torch.empty(y.shape, dtype=torch.float32, device=hidden.device)
        dh = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dW = torch.zeros_like(W) if ctx.needs_input_grad[1] else None
        db = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        W, learns = W.to(hidden.dtype), any(d is not None for d in (dh, dW, db))
        for part in parts:
            h, target, p = hidden[:, part], y[:, part, None], weight[:, part, None]
            logits = torch.bmm(h, W.mT, out=room[: K * h.shape[1] * V].view(K, -1, V))
            logits = logits if bias is None else logits.add_(bias if bias.ndim == 1 else bias[:, None])
            each[:, part] = _soften(logits, target, p if learns else None)
            if dh is not None:
                dh[:, part] = torch.bmm(logits, W)
            if dW is not None:
                dW += torch.bmm(logits.mT, h)
            if db is not None:
                db += logits.sum(1, dtype=db.dtype) if db.ndim > 1 else logits.sum((0, 1), dtype=db.dtype)
        ctx.save_for_backward(dh, dW, db)
        ctx.mark_non_differentiable(each)
        return (each * weight).sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else d * grads[0] for d in ctx.saved_tensors)
        return (*scaled, None, None)


def _soften(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The losses (K, n) of logits (K, n, V); with weights the logits become the gradient of the weighted sum, in place.

    target, weight: (K, n, 1). Computed in single precision, on a CPU a few rows at a time, so that they stay in its cache.
    """
    rows, target = logits.flatten(0, 1), target.flatten(0, 1)
    weight = None if weight is None else weight.flatten(0, 1)
    loss = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    most = max(1, SOFTENED // logits.shape[-1]) if logits.device.type == "cpu" else len(rows)
    for s in even_slices(len(rows), most):
        e = rows[s].float()
        e.sub_(e.amax(-1, keepdim=True))
        at_target = e.gather(-1, target[s])
        e.exp_()
        total = e.sum(-1, keepdim=True)
        loss[s] = total.log() - at_target
        if weight is not None:
            e.mul_(weight[s] / total)  # weight * softmax, minus the weight at the target
            e.scatter_add_(-1, target[s], -weight[s])
            if e.dtype != rows.dtype:  # else they are the same memory
                rows[s] = e
    return loss.view(logits.shape[:-1])
