"""Next-token loss of K clients without ever holding the cohort's logits.

The head is the last layer, so its loss and the gradient with respect to the hidden states come from the same logits: both
are computed a chunk of rows at a time in the forward pass. A frozen head needs no weight gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGITS = 2**20  # numbers in a chunk of logits: stays in a CPU's last-level cache for small vocabularies,
MIN_ROWS = 256  # but never so few rows that reading the head's weight dominates


def head_loss(hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (K, n, d), W (V, d) or (K, V, d), y (K, n) token ids, weight (K, n) -> (sum of weight * loss, loss (K, n)).

    The first result is differentiable in `hidden` and, if it requires a gradient, in W; the second is not.
    """
    if not torch.is_grad_enabled():
        each = _forward(hidden, W, bias, y)
        return (each * weight).sum(), each
    total, each = _HeadLoss.apply(hidden, W, bias, y, weight)  # type: ignore[no-untyped-call]
    return total, each


def _chunks(n: int, vocab: int) -> range:
    return range(0, n, max(LOGITS // vocab, MIN_ROWS))


def _spans(hidden: Tensor, W: Tensor) -> list[tuple[int | None, slice]]:
    """Pieces of work: (client or None for all, rows). With a shared head the client axis is only more rows."""
    K, n, _ = hidden.shape
    if W.ndim == 2:
        chunks = _chunks(K * n, W.shape[0])
        return [(None, slice(i, i + chunks.step)) for i in chunks]
    chunks = _chunks(n, W.shape[1])
    return [(k, slice(i, i + chunks.step)) for k in range(K) for i in chunks]


def _logits(h: Tensor, w: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """(rows, V) in float32, in `room` where the dtype allows."""
    logits = torch.mm(h, w.T, out=room[: len(h)])
    return (logits if bias is None else logits.add_(bias)).float()


def _room(hidden: Tensor, W: Tensor) -> Tensor:
    """Space for a chunk of logits, used again and again so that it stays in cache."""
    rows = min(_chunks(hidden.shape[0] * hidden.shape[1], W.shape[-2]).step, hidden.shape[0] * hidden.shape[1])
    return hidden.new_empty(rows, W.shape[-2])


def _forward(hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    each, room = torch.empty(y.shape, dtype=torch.float32, device=hidden.device), _room(hidden, W)
    for k, rows in _spans(hidden, W):
        h, t, out = (x.flatten(0, 1)[rows] if k is None else x[k, rows] for x in (hidden, y, each))
        logits = _logits(h, W if k is None else W[k].to(h.dtype), bias, room)
        out.copy_(torch.logsumexp(logits, 1) - logits.gather(1, t[:, None])[:, 0])
    return each


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, W: Tensor, bias: Tensor | None, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        each = torch.empty(y.shape, dtype=torch.float32, device=hidden.device)
        dh = torch.empty_like(hidden)
        dW = torch.zeros_like(W) if ctx.needs_input_grad[1] else None
        room = _room(hidden, W)
        for k, rows in _spans(hidden, W):
            pieces = (hidden, y, weight, each, dh)
            h, t, p, out, dout = (x.flatten(0, 1)[rows] if k is None else x[k, rows] for x in pieces)
            w = (W if k is None else W[k]).to(h.dtype)
            logits = _logits(h, w, bias, room)
            logits.sub_(logits.amax(1, keepdim=True))
            target = logits.gather(1, t[:, None])
            e = logits.exp_()
            total = e.sum(1, keepdim=True)
            out.copy_((total.log() - target)[:, 0])
            dlogits = e.mul_(p[:, None] / total)  # weight * softmax, minus the weight at the target
            dlogits.scatter_add_(1, t[:, None], -p[:, None])
            dlogits = dlogits.to(h.dtype)
            torch.mm(dlogits, w, out=dout)
            if dW is not None:
                (dW if k is None else dW[k]).add_(dlogits.T @ h)
        ctx.save_for_backward(dh, dW if dW is not None else dh.new_empty(0))
        ctx.mark_non_differentiable(each)
        return (each * weight).sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dW = ctx.saved_tensors
        return dh * grads[0], dW * grads[0] if ctx.needs_input_grad[1] else None, None, None, None
