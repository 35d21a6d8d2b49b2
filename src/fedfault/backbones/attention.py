"""The common part of attention layers that replace a model's own: for whole sequences, without a cache or a mask."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

CACHES = ("cache", "past_key_values")  # keywords of earlier keys and values: since transformers 5.24, and before


class WholeAttention(nn.Module, ABC):
    """Causal grouped-query attention with rotary positions over whole sequences; for others it calls the original."""

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

    @abstractmethod
    def fits(self, T: int) -> bool:
        """Tell whether `attend` is the better way for sequences of T tokens."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute what the heads see, (N, H, T, head_dim), and the weights (N, H, T, T) if there are any.

        q: (N, H, T, head_dim), k and v: (N, G, T, head_dim), without their rotation by cos and sin, (1, T, head_dim).
        """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, T, d) -> (N, T, d), and the attention weights (N, H, T, T) if there are any."""
        N, T, _ = hidden_states.shape
        cached = any(kwargs.get(name) is not None for name in CACHES)
        if cached or attention_mask is not None or position_embeddings is None or not self.fits(T):
            return self._as_original(hidden_states, position_embeddings, attention_mask, kwargs)
        q, k, v = (
            m(hidden_states).view(N, T, -1, self.head_dim).transpose(1, 2)
            for m in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, weights = self.attend(q, k, v, *position_embeddings)
        return self.o_proj(out.transpose(1, 2).reshape(N, T, -1)), weights

    def _as_original(self, hidden: Tensor, around: Any, mask: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
        base = self.original[0]
        for name, child in self.named_children():
            setattr(base, name, child)  # the layers in force, which may carry adapters
        found: tuple[Tensor, Tensor | None] = base(
            hidden_states=hidden, position_embeddings=around, attention_mask=mask, **kwargs
        )
        return found
