"""The trainable numbers of a model as one flat row: where each tensor sits, and arithmetic on the row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Site:
    """One trainable place in the model: a LoRA pair on a module, or one parameter trained in full.

    A `lora` site has shape (r, d_in, d_out); its numbers are A (r, d_in), then B (d_out, r).
    A `full` site has the shape of its parameter. A `scaling` of its own stands in the place of the layout's.
    """

    name: str
    kind: Literal["lora", "full"]
    shape: tuple[int, ...]
    offset: int = 0
    scaling: float | None = None

    @property
    def parts(self) -> tuple[int, ...]:
        """How many numbers each of its tensors holds: A and B, or the one parameter."""
        if self.kind == "full":
            return (math.prod(self.shape),)
        r, d_in, d_out = self.shape
        return (r * d_in, d_out * r)

    @property
    def size(self) -> int:
        """How many numbers the site holds."""
        return sum(self.parts)


class Pair(NamedTuple):
    """The two LoRA factors of a site; the weight update is scaling * B @ A."""

    A: Tensor  # (..., r, d_in)
    B: Tensor  # (..., d_out, r)


@dataclass(frozen=True)
class Layout:
    """Where every trainable tensor sits in the flat row of P numbers, and the LoRA scaling, which all clients share.

    >>> Layout.of([Site("q", "lora", (2, 3, 5)), Site("norm", "full", (4,))], scaling=2.0).size
    20
    """

    sites: tuple[Site, ...]
    scaling: float = 1.0  # of the LoRA sites that have none of their own, see `scale`

    @classmethod
    def of(cls, sites: Iterable[Site], scaling: float = 1.0) -> Layout:
        """Lay the sites out one behind the other."""
        placed, offset = [], 0
        for s in sites:
            placed.append(dataclasses.replace(s, offset=offset))
            offset += s.size
        return cls(tuple(placed), scaling)

    @property
    def size(self) -> int:
        """P, the length of the row."""
        return sum(s.size for s in self.sites)

    @property
    def lora(self) -> tuple[Site, ...]:
        """The LoRA sites."""
        return tuple(s for s in self.sites if s.kind == "lora")

    @property
    def fingerprint(self) -> str:
        """Identity of the trainable sites: two runs with the same one can exchange adapters."""
        sites = [[s.name, s.kind, s.shape, *([] if s.scaling is None else [s.scaling])] for s in self.sites]
        text = json.dumps([*sites, self.scaling])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def scale(self, site: Site) -> float:
        """The scaling s of a LoRA site, whose weight update is s B A."""
        return self.scaling if site.scaling is None else site.scaling

    def part(self, flat: Tensor, site: Site) -> Tensor:
        """The numbers of a full site as a view: flat (..., P) -> (..., *shape)."""
        part: Tensor = flat[..., site.offset : site.offset + site.size].unflatten(-1, site.shape)
        return part

    def pair(self, flat: Tensor, site: Site) -> Pair:
        """The factors of a LoRA site as views: flat (..., P) -> A (..., r, d_in), B (..., d_out, r)."""
        r, d_in, d_out = site.shape
        a, b = flat[..., site.offset : site.offset + site.size].split(site.parts, dim=-1)
        return Pair(a.unflatten(-1, (r, d_in)), b.unflatten(-1, (d_out, r)))


@dataclass(frozen=True)
class Adapter:
    """A value: all trainable numbers of one model, flat (P,), or of a cohort of K clients, flat (K, P).

    `+ - *` act on the numbers; a (P,) adapter broadcasts over a cohort.
    """

    layout: Layout
    flat: Tensor

    def __add__(self, other: Adapter) -> Adapter:
        return Adapter(self.layout, self.flat + other.flat)

    def __sub__(self, other: Adapter) -> Adapter:
        return Adapter(self.layout, self.flat - other.flat)

    def __mul__(self, c: float) -> Adapter:
        return Adapter(self.layout, self.flat * c)

    __rmul__ = __mul__

    def delta(self, site: Site) -> Tensor:
        """The weight update scaling * B @ A of a LoRA site: (..., d_out, d_in)."""
        pair = self.layout.pair(self.flat, site)
        return self.layout.scale(site) * (pair.B @ pair.A)
