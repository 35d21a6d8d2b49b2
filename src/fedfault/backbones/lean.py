"""The frozen parts of Llama-like blocks with fewer trips through memory.

On a CPU a small model spends as long on element-wise passes as on matrix products, and bfloat16 attention is slow to
differentiate. Which modules of a model are replaced, `kernels.py` finds out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfault.backbones.attention import WholeAttention
from fedfault.backbones.head import even_slices
from fedfault.backbones.quantised import dense_weight

CHUNK = 512  # rows: intermediate results stay in cache, and matrix products still run at full rate
SHORT = 256  # tokens up to which whole attention matrices are faster than blockwise attention on a CPU, and small


def is_same(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two results are equal but for rounding."""
    tolerance = 1e-5 if theirs.dtype == torch.float32 else 2e-2
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= tolerance * theirs.norm())


def list_norms(base: nn.Module) -> list[nn.Module]:
    """List what could replace an RMSNorm."""
    return [LeanRMSNorm(base)] if hasattr(base, "variance_epsilon") else []


def list_mlps(children: dict[str, nn.Module]) -> list[nn.Module]:
    """List what could replace a gated MLP of these layers."""
    return [LeanMLP(children)]


class LeanRMSNorm(nn.Module):
    """x / rms(x) * weight with the statistics in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.weight = base.get_parameter("weight")
        self.variance_epsilon = float(base.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        out: Tensor = _RMSNorm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]  # 1 / rms
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (wide * scale).mul_(weight).to(x.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        g = grads[0] * weight.float()
        wide = x.float()
        along = torch.linalg.vecdot(g, wide)[..., None] * scale.square() / x.shape[-1]
        return g.addcmul_(wide, along, value=-1).mul_(scale).to(x.dtype), None, None


class LeanMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); one fused step while its three layers are frozen."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        line = torch.linspace(-4, 4, 9)
        self.silu = is_same(F.silu(line), self.act_fn(line))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        if self.silu and all(isinstance(m, nn.Linear) and m.bias is None for m in layers):
            out: Tensor = _SwiGLU.apply(x, layers)  # type: ignore[no-untyped-call]
        else:
            out = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class _SwiGLU(torch.autograd.Function):
    """The fused MLP. Quantised weights are dequantised once forward and once backward for all clients, and not stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        rows = x.flatten(0, -2)
        gate, up, down = map(dense_weight, layers)
        g, u = x.new_empty(2, len(rows), len(gate))
        y = torch.empty_like(rows)
        for part in even_slices(len(rows), CHUNK):
            torch.mm(rows[part], gate.T, out=g[part])
            torch.mm(rows[part], up.T, out=u[part])
            torch.mm(F.silu(g[part]).mul_(u[part]), down.T, out=y[part])
        ctx.layers = layers
        ctx.save_for_backward(g, u)
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g, u = ctx.saved_tensors
        gate, up, down = map(dense_weight, ctx.layers)
        dy = grads[0].flatten(0, -2)
        dx = torch.empty_like(dy)
        for part in even_slices(len(dy), CHUNK):
            inner = dy[part] @ down
            du = F.silu(g[part]).mul_(inner)
            dg = torch.ops.aten.silu_backward(inner.mul_(u[part]), g[part])
            torch.mm(dg, gate, out=dx[part]).addmm_(du, up)
        return dx.view_as(grads[0]), None


class LeanAttention(WholeAttention):
    """Attention over short sequences with whole matrices of weights."""

    def fits(self, T: int) -> bool:
        """See `WholeAttention`."""
        return T <= SHORT

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `WholeAttention`."""
        q, k = (_Rotary.apply(x, cos[:, None], sin[:, None]) for x in (q, k))  # type: ignore[no-untyped-call]
        (N, H, T, _), G = q.shape, k.shape[1]
        q = q.view(N * G, H // G * T, self.head_dim)  # the heads that share a key are more queries
        k, v = k.reshape(N * G, T, self.head_dim), v.reshape(N * G, T, self.head_dim)
        weights = torch.baddbmm(_future_mask(T, H // G, q.dtype), q, k.mT, alpha=self.scaling).softmax(-1)
        return torch.bmm(weights, v).view(N, H, T, self.head_dim), weights.view(N, H, T, T)


@functools.lru_cache(maxsize=8)
def _future_mask(T: int, groups: int, dtype: torch.dtype) -> Tensor:
    """Mask (groups * T, T): minus infinity where a key lies in the future of the query, else zero."""
    return torch.full((T, T), -torch.inf, dtype=dtype).triu_(1).repeat(groups, 1)


class _Rotary(torch.autograd.Function):
    """x cos + rotate(x) sin with rotate((a, b)) = (-b, a) on the two halves (Su et al., arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out
