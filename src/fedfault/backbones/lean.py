"""The frozen parts of Llama-like blocks with fewer trips through memory.

On a CPU a small model spends as long on element-wise passes as on matrix products, and bfloat16 attention is slow to
differentiate. A module is replaced only if the replacement, tried on random numbers, gives what the original gives:
architectures that differ keep their own code. Names of sub-modules stay, so that sites and exports do not notice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedfault.backbones.head import even_slices
from fedfault.backbones.quantised import dense_weight

CHUNK = 512  # rows: intermediate results stay in cache, and matrix products still run at full rate
CACHES = ("cache", "past_key_values")  # keywords of earlier keys and values: since transformers 5.24, and before
SHORT = 256  # tokens up to which whole attention matrices are faster than blockwise attention on a CPU, and small


def make_lean(model: Any) -> None:
    """Replace the modules of a model that have a faster equivalent, in place; nothing on a GPU."""
    if next(model.parameters()).device.type != "cpu":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            lean = _find_replacement(child, model)
            if lean is not None:
                setattr(parent, name, lean)


def _find_replacement(module: nn.Module, model: Any) -> nn.Module | None:
    """Find a replacement that gives the same outputs as the module; None if there is none."""
    children = dict(module.named_children())
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        norm = LeanRMSNorm(module)
        return norm if len(norm.weight) == x.shape[-1] and _is_same(norm(x), module(x)) else None
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        mlp = LeanMLP(children)
        return mlp if _is_same(mlp(x), module(x)) else None
    if set(children) == {"q_proj", "k_proj", "v_proj", "o_proj"} and hasattr(module, "head_dim"):
        rotary = getattr(model.base_model, "rotary_emb", None)
        if rotary is None or vars(module).get("attention_dropout", 0.0):
            return None
        around = {"position_embeddings": rotary(x, torch.arange(5)[None]), "attention_mask": None}
        if around["position_embeddings"][0].shape[-1] != module.head_dim:  # only a part of each head is rotated
            return None
        attention = LeanAttention(module, children)
        return attention if _is_same(attention(x, **around)[0], module(x, **around)[0]) else None
    return None


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-5 if theirs.dtype == torch.float32 else 2e-2
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= tolerance * theirs.norm())


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
        self.silu = _is_same(F.silu(line), self.act_fn(line))

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


class LeanAttention(nn.Module):
    """Causal grouped-query attention with rotary positions over whole, short sequences; for others it calls the original."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, base: nn.Module, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.original = [base]  # in a list, so that it is not a sub-module
        self.head_dim = int(base.head_dim)  # type: ignore[arg-type]
        self.scaling = float(getattr(base, "scaling", 1 / math.sqrt(self.head_dim)))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, T, d) -> (N, T, d), and the attention weights (N, H, T, T)."""
        N, T, _ = hidden_states.shape
        cached = any(kwargs.get(name) is not None for name in CACHES)
        if cached or attention_mask is not None or position_embeddings is None or T > SHORT:
            return self._as_original(hidden_states, position_embeddings, attention_mask, kwargs)
        cos, sin = position_embeddings  # (1, T, head_dim)
        q, k, v = (
            m(hidden_states).view(N, T, -1, self.head_dim).transpose(1, 2)
            for m in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (_Rotary.apply(x, cos[:, None], sin[:, None]) for x in (q, k))  # type: ignore[no-untyped-call]
        H, G = q.shape[1], k.shape[1]
        q = q.view(N * G, H // G * T, self.head_dim)  # the heads that share a key are more queries
        k, v = k.reshape(N * G, T, self.head_dim), v.reshape(N * G, T, self.head_dim)
        weights = torch.baddbmm(_future_mask(T, H // G, q.dtype), q, k.mT, alpha=self.scaling).softmax(-1)
        out = torch.bmm(weights, v).view(N, H, T, self.head_dim).transpose(1, 2).reshape(N, T, -1)
        return self.o_proj(out), weights.view(N, H, T, T)

    def _as_original(self, hidden: Tensor, around: Any, mask: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
        base = self.original[0]
        for name, child in self.named_children():
            setattr(base, name, child)  # the layers in force, which may carry adapters
        found: tuple[Tensor, Tensor | None] = base(
            hidden_states=hidden, position_embeddings=around, attention_mask=mask, **kwargs
        )
        return found


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
