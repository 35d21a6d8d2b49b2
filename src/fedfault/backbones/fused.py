"""The frozen parts of Llama-like blocks by the fused kernels of liger-kernel, on a GPU.

Between its matrix products a block is many short element-wise kernels, which read and write memory that a fused one touches
once. Which modules of a model are replaced, `kernels.py` finds out. Reference: Hsu et al., arXiv 2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fedfault.backbones.attention import WholeAttention

FORMS = ((0.0, "llama"), (1.0, "gemma"))  # of an RMSNorm: what is added to its weight, and where it rounds


class Liger(NamedTuple):
    """The functions of `liger_kernel.transformers.functional` that are used here, and the version that they are of."""

    version: str
    rms_norm: Callable[..., Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    geglu: Callable[[Tensor, Tensor], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def list_norms(self, base: nn.Module) -> list[nn.Module]:
        """List what could replace an RMSNorm."""
        return [FusedRMSNorm(base, self.rms_norm, *form) for form in FORMS]

    def list_mlps(self, children: dict[str, nn.Module]) -> list[nn.Module]:
        """List what could replace a gated MLP of these layers."""
        return [FusedMLP(children, gate) for gate in (self.swiglu, self.geglu)]

    def make_attention(self, base: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
        """Make what could replace an attention layer."""
        return FusedAttention(base, children, self.rope)


def load_liger() -> Liger:
    """Import liger-kernel, which imports Triton. Raises whatever that raises: it depends on driver and versions."""
    from importlib.metadata import version

    from liger_kernel.transformers import functional  # type: ignore[import-not-found,unused-ignore]

    names = ("liger_rms_norm", "liger_swiglu", "liger_geglu", "liger_rope")
    return Liger(version("liger-kernel"), *(getattr(functional, name) for name in names))


class FusedRMSNorm(nn.Module):
    """x / rms(x) * (offset + weight) by one kernel forward and one backward."""

    def __init__(self, base: nn.Module, rms_norm: Callable[..., Tensor], offset: float, casting: str) -> None:
        super().__init__()
        self.weight = base.get_parameter("weight")
        self.variance_epsilon = float(getattr(base, "variance_epsilon", None) or base.eps)  # type: ignore[arg-type]
        self.rms_norm, self.form = rms_norm, (offset, casting)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        offset, casting = self.form
        in_place = False  # the gradient that it would write over belongs to the residual stream too
        return self.rms_norm(x, self.weight, self.variance_epsilon, offset, casting, in_place)


class FusedMLP(nn.Module):
    """down(gated(gate(x), up(x))), whose gate is one kernel."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, children: dict[str, nn.Module], gated: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        out: Tensor = self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
        return out


class FusedAttention(WholeAttention):
    """Attention whose queries and keys are rotated by one kernel, before that of torch."""

    def __init__(self, base: nn.Module, children: dict[str, nn.Module], rope: Callable[..., Any]) -> None:
        super().__init__(base, children)
        self.rope = rope
        self.config: Any = getattr(base, "config", None)

    def fits(self, T: int) -> bool:
        """See `WholeAttention`: not where somebody wants to see the weights."""
        return getattr(self.config, "_attn_implementation", "") != "eager"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `WholeAttention`."""
        q, k = self.rope(q, k, cos, sin)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scaling, enable_gqa=grouped)
        return out, None
