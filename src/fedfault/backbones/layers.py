"""Layers that know the client axis: a frozen layer with every client's LoRA factors, and layers of which each has its own.

    at a LoRA site:  y = x W + s (x A_k) B_k      x (K, B*T, d_in), one bmm pair over K
    at a full site:  y = x W_k                    each client its own weight

The trainable numbers of all clients are one leaf `flat` (K, P). Splitting it once gives every site its view, so the
backward pass writes one (K, P) gradient with a single concatenation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.backbones.sites import linear_shape
from fedfault.errors import UserError
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Layout, Site


class Slots:
    """The clients' trainable tensors in the current forward pass, by site name; every cohort layer reads them here."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.parts = [n for s in layout.sites for n in s.parts]  # sizes along the row: A and B, or a whole parameter
        self.now: dict[str, tuple[Tensor, ...]] = {}  # site name -> its numbers, (K, size) each
        self.clients = 1
        self.key: Tensor | None = None  # (K,) int64 random streams for dropout; None: no dropout
        self.places: Tensor | None = None  # (K, B*T) where in its stream each token is; None: one behind the other

    @contextmanager
    def bind(self, flat: Tensor, key: Tensor | None = None, places: Tensor | None = None) -> Iterator[None]:
        """Within the block, cohort layers use the parameters flat (K, P)."""
        pieces = iter(flat.split(self.parts, dim=-1))  # one split: the backward pass is one concatenation
        now = {s.name: tuple(next(pieces) for _ in s.parts) for s in self.layout.sites}
        with self._hold(now, len(flat), key, places):
            yield

    def keep_bound(self) -> Callable[[], AbstractContextManager[None]]:
        """Make a context that binds again, whenever it is entered, what is bound now."""
        return functools.partial(self._hold, self.now, self.clients, self.key, self.places)

    @contextmanager
    def _hold(
        self, now: dict[str, tuple[Tensor, ...]], clients: int, key: Tensor | None, places: Tensor | None
    ) -> Iterator[None]:
        before = self.now, self.clients, self.key, self.places
        self.now, self.clients, self.key, self.places = now, clients, key, places
        try:
            yield
        finally:
            self.now, self.clients, self.key, self.places = before

    def full_parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A parameter that is trained in full, (K, *shape)."""
        numbers: Tensor = self.now[name][0].unflatten(-1, shape)
        return numbers


class CohortLora(nn.Module):
    """A frozen nn.Linear or Conv1D plus each client's s * B_k A_k (Hu et al., arXiv 2106.09685).

    base: the frozen layer, which may be quantised and is never written to. folded: (d_out, d_in) the weight that replaces
    the base's where an aggregation has added to it, in floating point: rounding every round's sum again would lose it.
    """

    base: Any
    folded: Tensor | None

    def __init__(self, base: nn.Module, slots: Slots, site: Site, index: int, dropout: float) -> None:
        super().__init__()
        self.base, self.slots, self.site, self.index, self.dropout = base, slots, site, index, dropout
        self.register_buffer("folded", None)

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that look up its type. Who multiplies by it misses the pair: see `_check_layers`."""
        found: Tensor = self.base.weight
        return found

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, as `weight`."""
        found: Tensor | None = self.base.bias
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(K*B, T, d_in) -> (K*B, T, d_out)."""
        y = self.base(x) if self.folded is None else nn.functional.linear(x, self.folded, self.base.bias)
        slots = self.slots
        r, d_in, d_out = self.site.shape
        a, b = (factor.to(x.dtype) for factor in slots.now[self.site.name])
        rows = x.reshape(slots.clients, -1, d_in)  # (K, B*T, d_in)
        if self.dropout and slots.key is not None:
            rows = rows * _dropout_mask(rows.shape, slots.key + self.index * 2**20, self.dropout, rows, slots.places)
        low = torch.bmm(rows, a.unflatten(-1, (r, d_in)).mT)  # (K, B*T, r)
        up = b.unflatten(-1, (d_out, r)).mT  # (K, r, d_out)
        return torch.baddbmm(y.view(slots.clients, -1, d_out), low, up, alpha=slots.layout.scale(self.site)).view_as(y)


class CohortLinear(nn.Module):
    """An nn.Linear or Conv1D of which every client has its own weight (and bias)."""

    def __init__(self, base: nn.Module, slots: Slots, name: str) -> None:
        super().__init__()
        self.slots, self.name = slots, name
        self.shape = tuple(base.get_parameter("weight").shape)
        self.transposed = isinstance(base, nn.Linear)  # Conv1D keeps (d_in, d_out)
        self.has_bias = base.bias is not None
        self.d_in, self.d_out = linear_shape(base)

    def forward(self, x: Tensor) -> Tensor:
        """(K*B, T, d_in) -> (K*B, T, d_out)."""
        slots = self.slots
        weight = slots.full_parameter(f"{self.name}.weight", self.shape).to(x.dtype)  # (K, ...)
        rows = x.reshape(slots.clients, -1, self.d_in)
        y = torch.bmm(rows, weight.mT if self.transposed else weight)
        if self.has_bias:
            y = y + slots.full_parameter(f"{self.name}.bias", (self.d_out,)).to(x.dtype)[:, None]
        return y.view(*x.shape[:-1], self.d_out)


class CohortNorm(nn.Module):
    """A LayerNorm or RMSNorm of which every client has its own scale (and shift)."""

    def __init__(self, base: nn.Module, slots: Slots, name: str) -> None:
        super().__init__()
        self.slots, self.name = slots, name
        self.width = len(base.get_parameter("weight"))
        self.centred = isinstance(base, nn.LayerNorm)
        self.has_bias = getattr(base, "bias", None) is not None
        self.eps = float(getattr(base, "eps", None) or base.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(K*B, T, d) -> (K*B, T, d), computed in float32."""
        slots, wide = self.slots, x.float()
        if self.centred:
            unit = nn.functional.layer_norm(wide, (self.width,), eps=self.eps)
        else:
            unit = nn.functional.rms_norm(wide, (self.width,), eps=self.eps)
        rows = (
            unit.reshape(slots.clients, -1, self.width)
            * slots.full_parameter(f"{self.name}.weight", (self.width,))[:, None]
        )
        if self.has_bias:
            rows = rows + slots.full_parameter(f"{self.name}.bias", (self.width,))[:, None]
        return rows.view_as(x).to(x.dtype)


class CohortEmbedding(nn.Module):
    """An embedding of which every client has its own table."""

    def __init__(self, base: nn.Embedding, slots: Slots, name: str) -> None:
        super().__init__()
        self.slots, self.name, self.shape = slots, name, tuple(base.weight.shape)
        self.num_embeddings, self.dtype = base.num_embeddings, base.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(K*B, T) -> (K*B, T, d)."""
        slots, (V, d) = self.slots, self.shape
        tables = slots.full_parameter(f"{self.name}.weight", self.shape).reshape(slots.clients * V, d)
        shift = torch.arange(slots.clients, device=ids.device).repeat_interleave(len(ids) // slots.clients) * V
        return nn.functional.embedding(ids + shift[:, None], tables).to(self.dtype)


def make_layer(base: nn.Module, slots: Slots, name: str) -> nn.Module:
    """The layer in the place of `base`, of which every client has its own parameters."""
    if isinstance(base, nn.Embedding):
        return CohortEmbedding(base, slots, name)
    if base.get_parameter("weight").ndim == 1:
        return CohortNorm(base, slots, name)
    return CohortLinear(base, slots, name)


def check_same(layer: nn.Module, base: nn.Module, name: str) -> None:
    """Raise `UserError` if a client's layer with the base's weight differs from the base: some norms scale by 1 + weight."""
    weight = base.get_parameter("weight")
    if isinstance(base, nn.Embedding):
        x = torch.arange(3, device=weight.device)[None]
    else:
        width = len(weight) if weight.ndim == 1 else linear_shape(base)[0]
        x = torch.randn(1, 3, width, generator=torch_rng(0, "probe")).to(weight)
    ours, theirs = layer(x).float(), base(x).float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        raise UserError(
            f"cannot train {name} ({type(base).__name__}) per client: it computes something else than its kind usually "
            "does; leave its block out or use model.trainable=lora"
        )


def _dropout_mask(shape: torch.Size, key: Tensor, p: float, like: Tensor, places: Tensor | None = None) -> Tensor:
    """Dropout masks (K, n, d), 1 / (1 - p) where kept, each row drawn from its own key: no state, no client loop.

    A counter-based generator (the finaliser of splitmix64 on int64), so that a client's mask does not depend on who else
    is in the pass. places: (K, n), which d numbers of the stream each token gets; (K, n * T) for layers of one row a text.
    """
    K, n, d = shape
    counter = torch.arange(n * d, device=like.device, dtype=torch.int64).view(1, n, d)
    if places is not None:
        own = places[:, :: places.shape[1] // n].to(like.device)
        counter = own[..., None] * d + counter[:, :1]
    z = _mix_bits(key.to(like.device).view(K, 1, 1)) + counter * -7046029254386353131  # 0x9E3779B97F4A7C15
    uniform = (_mix_bits(z) >> 40 & 0xFFFFFF).to(torch.float32) / 2**24
    return (uniform >= p).to(like.dtype) / (1 - p)


def _mix_bits(z: Tensor) -> Tensor:
    z = (z ^ (z >> 30 & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ (z >> 31 & 0x1FFFFFFFF)
