"""A frozen model that carries K adapters at once: LoRA layers that know the client axis, their dropout, modules in full.

    ids (K, B, T) -> (K*B, T) -> frozen blocks -> hidden (K, B*T, d) -> loss (K,)
                        |
                        +-- at a LoRA site:  y = x W + s (x A_k) B_k      x (K, B*T, d_in), one bmm pair over K
                        +-- at a full site:  y = x W_k                    each client its own weight

The trainable numbers of all clients are one leaf `flat` (K, P). Splitting it once gives every site its view, so the
backward pass writes one (K, P) gradient with a single concatenation. Only these layers know about the client axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.algebra import fresh_factors
from fedfault.backbones.checks import BROKEN, SHORT, ordinary_tokens
from fedfault.backbones.head import count_rows, head_loss, sparse_head_loss
from fedfault.backbones.kernels import replace_layers
from fedfault.backbones.memory import LOGITS
from fedfault.backbones.quantised import dense_weight, named_tensors
from fedfault.backbones.recompute import recompute_blocks
from fedfault.backbones.scorer import Scorer
from fedfault.backbones.sites import Targets, find_blocks, find_parent, linear_shape
from fedfault.backbones.starts import FROM_BASE, Start, draw_gaussian, factorise, leave_rest
from fedfault.backbones.unpacked import without_packed_rows
from fedfault.errors import UserError
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Adapter, Layout, Pair, Site
from fedfault.types.algorithm import ExtraLoss


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
        before = self.now, self.key, self.places
        self.now, self.clients, self.key, self.places = now, clients, key, places
        try:
            yield
        finally:
            self.now, self.key, self.places = before

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
        """The base's weight, for models that look up its type. Who multiplies by it misses the pair: see `_check_called`."""
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


class CohortModel:
    """The backbone with its trainable sites opened up for K clients.

    `model` is a transformers causal LM or has its interface (`llama.py`); it is changed in place. Its own parameters stay
    frozen. With a `scorer` it is any backbone, whose own head, if it has one, is not used.
    """

    def __init__(
        self,
        model: Any,
        targets: Targets,
        *,
        r: int,
        alpha: float,
        dropout: float = 0.0,
        scorer: Scorer | None = None,
        recompute: bool = False,
        own: Mapping[str, tuple[int, float]] = MappingProxyType({}),
        start: Start = "uniform",
    ) -> None:
        """recompute: whether blocks keep only their inputs for the gradient, see `recompute_blocks`.

        own: rank and alpha of LoRA sites by name, where they are others than r and alpha. start: see `starts.py`.
        """
        self.recomputed = list(find_blocks(model)[1])[targets.first_block :] if recompute else []
        self.model, self.targets, self.scorer = model.eval().requires_grad_(False), targets, scorer
        self.kernels = replace_layers(model)
        ids = ordinary_tokens(model, SHORT)[None]
        sites = [_make_site(name, model.get_submodule(name), own.get(name), r) for name in targets.lora]
        sites += [Site(name, "full", tuple(model.get_parameter(name).shape)) for name in targets.full_parameters]
        sites += scorer.sites if scorer else ()
        self.layout = Layout.of(sites, scaling=alpha / r)
        self.slots = Slots(self.layout)
        self.start: dict[str, Pair] = {}  # LoRA site -> the factors that it starts from, where the base has the rest
        self.gaussian = start == "gaussian"
        self.full_values = {name: model.get_parameter(name).detach().float() for name in targets.full_parameters}
        self.head = model.get_output_embeddings()
        self.head_site = targets.head_site
        for index, site in enumerate(s for s in sites if s.kind == "lora"):
            parent, leaf = find_parent(model, site.name)
            base = model.get_submodule(site.name)
            if start in FROM_BASE:
                s = self.layout.scale(site)
                A, B = self.start[site.name] = factorise(dense_weight(base), site.shape[0], s, start)
                base = leave_rest(base, s * B @ A)
            setattr(parent, leaf, CohortLora(base, self.slots, site, index, dropout))
        for name in targets.full_modules:
            parent, leaf = find_parent(model, name)
            base = model.get_submodule(name)
            if base is not self.head:  # the head is not called: its loss is computed in chunks from its weight
                layer = _make_layer(base, self.slots, name)
                with torch.no_grad(), self.slots.bind(self.init(0).flat[None]):
                    _check_same(layer, base, name)
                setattr(parent, leaf, layer)
        self._check_called(
            ids, [*targets.lora, *(n for n in targets.full_modules if model.get_submodule(n) is not self.head)]
        )

    @torch.no_grad()
    def _check_called(self, ids: Tensor, names: Sequence[str]) -> None:
        """Raise `UserError` unless the model, given ids (1, T), calls every opened layer.

        Code that reads a layer's weight misses what is the clients' own. Experts are left out, of which a token sees few.
        """
        called: set[str] = set()
        layers = {n: self.model.get_submodule(n) for n in names if ".experts." not in n}
        hooks = [m.register_forward_hook(lambda *_, n=n: called.add(n)) for n, m in layers.items()]
        try:
            with self.slots.bind(self.init(0).flat[None]):
                self.model.base_model(input_ids=ids.to(self.device))
        except BROKEN as e:
            raise UserError(
                f"{type(self.model).__name__} does not run with {', '.join(_endings(names))} opened for clients ({e}); "
                "choose other modules"
            ) from e
        finally:
            for hook in hooks:
                hook.remove()
        if idle := [n for n in layers if n not in called]:
            raise UserError(
                f"{type(self.model).__name__} does not call {idle[0]}: it reads the layer's weight or leaves it out, and "
                f"training it changes nothing; choose modules without {', '.join(_endings(idle))}"
            )

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def head_bytes(self) -> int:
        """Estimate the bytes of the logits that are there at a time, and of a head's gradient; 0 without next tokens."""
        if self.scorer is not None:
            return 0
        W: Tensor = self.head.weight
        return count_rows(W) * W.shape[0] * LOGITS + (0 if self.head_site is None else W.nbytes)

    def input_embeddings(self) -> Tensor:
        """The base's input embeddings, (V, d): frozen, or as they are before training."""
        layer = self.model.get_input_embeddings()
        if isinstance(layer, CohortEmbedding):
            return self.full_values[f"{layer.name}.weight"]  # type: ignore[no-any-return]
        weight: Tensor = layer.weight
        return weight

    def init(self, seed: int) -> Adapter:
        """The untrained adapter (P,): A uniform in +-1/sqrt(d_in) as PEFT has it and B zero, or as `starts.py` makes them.

        Full sites are as in the base.
        A scorer's head, which the base does not have, is drawn anew.
        """
        flat = torch.zeros(self.layout.size)
        fresh_factors(self.layout, flat, "init", seed=seed)
        if self.gaussian:
            draw_gaussian(self.layout, flat, seed)
        for site in self.layout.sites:
            if site.name in self.start:
                A, B = self.layout.pair(flat, site)
                A.copy_(self.start[site.name].A), B.copy_(self.start[site.name].B)
            if site.name in self.full_values:
                self.layout.part(flat, site).copy_(self.full_values[site.name])
        if self.scorer is not None:
            self.scorer.fill(self.layout, flat, seed)
        return Adapter(self.layout, flat.to(self.device))

    def losses(
        self,
        flat: Tensor,
        ids: Tensor,
        weight: Tensor,
        key: Tensor | None = None,
        extra_loss: ExtraLoss | None = None,
        *,
        places: Tensor | None = None,
        sparse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Compute the weighted loss to differentiate, and the loss of every target token.

        flat: (K, P); ids: (K, B, T+1), targets are ids[..., 1:]; weight: (K, B, T), zero where there is no target;
        extra_loss: added to what is differentiated, on the mean hidden states over target positions, (K, B, d);
        places: (K, B*T) see `Slots`; sparse: most positions are no target, so that logits are computed of targets alone.
        Returns (sum of weight * loss, loss (K, B, T) without gradient, zero where it was not computed).
        """
        K, B, T = weight.shape
        x, y = ids[..., :-1].reshape(K * B, T), ids[..., 1:].reshape(K, B * T)
        with self.slots.bind(flat, key, places):
            hidden = self._hidden(x)
            W = (
                self.head.weight
                if self.head_site is None
                else self.slots.full_parameter(self.head_site, tuple(self.head.weight.shape))
            )
            head = sparse_head_loss if sparse and W.ndim == 2 else head_loss
            total, each = head(hidden.view(K, B * T, -1), W, self.head.bias, y, weight.reshape(K, B * T))
        if extra_loss is not None:
            real = (weight > 0).float()[..., None]  # (K, B, T, 1)

            def pool(states: Tensor, real: Tensor) -> Tensor:
                return (states.view(*real.shape[:3], -1).float() * real).sum(2) / real.sum(2).clamp(min=1)

            @torch.no_grad()
            def see(params: Tensor, at: Tensor | None = None) -> Tensor:
                own = slice(None) if at is None else at
                with self.slots.bind(params):
                    return pool(self._hidden(x.view(K, B, T)[own].flatten(0, 1)), real[own])

            total = total + extra_loss(pool(hidden, real), see).sum()
        return total, each.view(K, B, T)

    def _hidden(self, x: Tensor) -> Tensor:
        """Ids (K*B, T) -> last hidden states (K*B, T, d), under the parameters that are bound."""
        with self.keeping_inputs(), without_packed_rows():
            states: Tensor = self.model.base_model(input_ids=x, use_cache=False).last_hidden_state
        return states

    def keeping_inputs(self) -> AbstractContextManager[None]:
        """A context in which the blocks of a forward pass keep their inputs alone, where that is asked for."""
        if not self.recomputed or not torch.is_grad_enabled():
            return nullcontext()
        return recompute_blocks(self.recomputed, self.slots.keep_bound())

    @torch.no_grad()
    def fold(self, base: Mapping[str, Tensor]) -> None:
        """Make the frozen weights of LoRA sites the original ones plus `base`, site -> (d_out, d_in)."""
        for site in self.layout.lora:
            layer, change = self.model.get_submodule(site.name), base.get(site.name)
            W = dense_weight(layer.base)
            layer.folded = None if change is None else (W.float() + change.to(W.device)).to(W.dtype)

    def checksums(self) -> dict[str, int]:
        """Sum up each weight of the backbone, and each folded one, read as integers modulo 2^64."""
        folded = ((s.name, self.model.get_submodule(s.name).folded) for s in self.layout.lora)
        held = [*named_tensors(self.model), *((f"{name}.folded", W) for name, W in folded if W is not None)]
        names, weights = zip(*held, strict=True)
        sums = [_as_integers(p.detach().contiguous()).sum() for p in weights]
        return dict(zip(names, torch.stack(sums).tolist(), strict=True))


def _make_site(name: str, base: nn.Module, own: tuple[int, float] | None, r: int) -> Site:
    """The LoRA site of a linear layer, of its own rank and alpha, or of rank r."""
    if own is None:
        return Site(name, "lora", (r, *linear_shape(base)))
    rank, alpha = own
    return Site(name, "lora", (rank, *linear_shape(base)), scaling=alpha / rank)


def _endings(names: Iterable[str]) -> list[str]:
    return sorted({".".join(n.split(".")[-2:]) for n in names})


def _as_integers(weight: Tensor) -> Tensor:
    """View the same bits as the widest integers that fit: int64 adds up several times as fast as int32 or int16."""
    flat = weight.flatten()
    size = math.gcd(8, flat.nbytes, flat.storage_offset() * flat.element_size())
    return flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[size])


def _make_layer(base: nn.Module, slots: Slots, name: str) -> nn.Module:
    if isinstance(base, nn.Embedding):
        return CohortEmbedding(base, slots, name)
    if base.get_parameter("weight").ndim == 1:
        return CohortNorm(base, slots, name)
    return CohortLinear(base, slots, name)


def _check_same(layer: nn.Module, base: nn.Module, name: str) -> None:
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
