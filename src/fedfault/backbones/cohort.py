"""A frozen model that carries K adapters at once, of which only the layers in `backbones/layers.py` know.

ids (K, B, T) -> (K*B, T) -> frozen blocks -> hidden (K, B*T, d) -> loss (K,), or scores (K, B, C)
                    |
                    +-- at the trainable sites: the clients' own numbers, flat (K, P)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.algebra import fresh_factors, widest
from fedfault.backbones.checks import BROKEN, SHORT, ordinary_tokens
from fedfault.backbones.head import count_rows, head_loss, sparse_head_loss
from fedfault.backbones.kernels import replace_layers
from fedfault.backbones.layers import CohortEmbedding, CohortLora, Slots, check_same, make_layer
from fedfault.backbones.memory import LOGITS
from fedfault.backbones.quantised import dense_weight, named_tensors
from fedfault.backbones.recompute import recompute_blocks
from fedfault.backbones.replay import PASSES, Recordings
from fedfault.backbones.scorer import BIAS, WEIGHT, Scorer, Texts, model_inputs, pool_states
from fedfault.backbones.sites import Targets, find_blocks, find_parent, linear_shape
from fedfault.backbones.starts import FROM_BASE, Start, draw_gaussian, factorise, leave_rest
from fedfault.backbones.unpacked import without_packed_rows
from fedfault.errors import UserError, is_out_of_memory
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Adapter, Layout, Pair, Site
from fedfault.types.algorithm import ExtraLoss

MIXED = 3e-2  # of a client's states by which another's numbers may change them: outliers of 8-bit weights are a batch's


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
        self.recordings = Recordings(PASSES.get(self.device.type))
        self.is_folded = False  # whether LoRA sites have other frozen weights than the base's
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
                layer = make_layer(base, self.slots, name)
                with torch.no_grad(), self.slots.bind(self.init(0).flat[None]):
                    check_same(layer, base, name)
                setattr(parent, leaf, layer)
        self._check_layers(
            ids, [*targets.lora, *(n for n in targets.full_modules if model.get_submodule(n) is not self.head)]
        )

    @torch.no_grad()
    def _check_layers(self, ids: Tensor, names: Sequence[str]) -> None:
        """Raise `UserError` unless the model, given ids (1, T), calls every opened layer, on a row for every text.

        Code that reads a layer's weight misses what is the clients' own. Experts may be left out: a token sees few of them.
        A layer tells clients apart by their rows, which come one after another. Some models call theirs on what all rows
        share, such as DeBERTa's relative positions, or with the rows on another axis, such as Longformer and XLNet: there
        the numbers of one client change what another one gets.
        """
        shapes: dict[str, torch.Size] = {}  # of what a layer gives for two clients with a text each
        layers = {n: self.model.get_submodule(n) for n in names}
        hooks = [m.register_forward_hook(lambda _, __, y, n=n: shapes.update({n: y.shape})) for n, m in layers.items()]
        own, found = self.init(0).flat, []
        try:
            for beside in (own, torch.randn(own.shape, generator=torch_rng(0, "beside")).to(own)):
                with self.slots.bind(torch.stack([own, beside])):
                    found.append(self.model.base_model(input_ids=ids.to(self.device).expand(2, -1))[0][0].float())
        except BROKEN as e:
            if is_out_of_memory(e):
                raise
            raise UserError(
                f"{type(self.model).__name__} does not run with {', '.join(_endings(names))} opened for clients ({e}); "
                "choose other modules"
            ) from e
        finally:
            for hook in hooks:
                hook.remove()
        if idle := [n for n in layers if n not in shapes and ".experts." not in n]:
            raise UserError(
                f"{type(self.model).__name__} does not call {idle[0]}: it reads the layer's weight or leaves it out, and "
                f"training it changes nothing; choose modules without {', '.join(_endings(idle))}"
            )
        if self.device.type == "meta":  # which has shapes and no numbers
            return
        strange = [n for n, shape in shapes.items() if len(shape) > 2 and shape[0] != 2]
        moved = float((found[1] - found[0]).norm() / found[0].norm())
        if not moved <= (0 if strange else MIXED):
            those = ", ".join(_endings(strange or names))
            raise UserError(
                f"{type(self.model).__name__} does not call {those} on a row for every text, so that "
                "clients that train side by side would get one another's numbers; choose other modules"
            )

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def logit_bytes(self) -> int:
        """Estimate the bytes of the logits of a token; 0 without next tokens."""
        return 0 if self.scorer is not None else self.head.weight.shape[0] * LOGITS

    def head_bytes(self) -> int:
        """Estimate the bytes of the logits that are there at a time, and of a head's gradient; 0 without next tokens."""
        if self.scorer is not None:
            return 0
        W: Tensor = self.head.weight
        return count_rows(W) * self.logit_bytes() + (0 if self.head_site is None else W.nbytes)

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
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the weighted loss to differentiate, and the loss of every target token.

        flat: (K, P); ids: (K, B, T+1), targets are ids[..., 1:]; weight: (K, B, T), zero where there is no target;
        extra_loss: added to what is differentiated, on the mean hidden states over target positions, (K, B, d);
        places: (K, B*T) see `Slots`; targets: (m,) which of the K*B*T positions get logits, where most are no target.
        Returns (sum of weight * loss, loss (K, B, T) without gradient, zero where it was not computed).
        """
        K, B, T = weight.shape
        x, y = ids[..., :-1].reshape(K * B, T), ids[..., 1:].reshape(K, B * T)
        with self.slots.bind(flat, key, places):
            hidden = self._hidden(x)
            W, b = self.bound_head()
            given = hidden.reshape(K, B * T, -1), W, b, y, weight.reshape(K, B * T)
            total, each = head_loss(*given) if targets is None or W.ndim == 3 else sparse_head_loss(*given, targets)
        if extra_loss is not None:
            real = (weight > 0).float()[..., None]  # (K, B, T, 1)

            def pool(states: Tensor, real: Tensor) -> Tensor:
                return (states.reshape(*real.shape[:3], -1).float() * real).sum(2) / real.sum(2).clamp(min=1)

            @torch.no_grad()
            def see(params: Tensor, at: Tensor | None = None) -> Tensor:
                own = slice(None) if at is None else at
                with self.slots.bind(params):
                    return pool(self._hidden(x.view(K, B, T)[own].flatten(0, 1)), real[own])

            total = total + extra_loss(pool(hidden, real), see).sum()
        return total, each.view(K, B, T)

    @torch.no_grad()
    def sum_losses(
        self, flat: Tensor, ids: Tensor, real: Tensor, targets: Tensor | None = None, *, replay: bool = True
    ) -> Tensor:
        """Sum the losses of every row's targets, (K, B), by replays of passes that are met often, see `Recordings`.

        flat: (K, P); ids: (K, B, T+1); real: (K, B, T) bool, which targets count; targets: see `losses`; replay: False
        within a block that changes what the model computes.
        """

        def compute(flat: Tensor, ids: Tensor, real: Tensor, *targets: Tensor) -> Tensor:
            _, each = self.losses(flat, ids, real.float(), targets=targets[0] if targets else None)
            return (each * real).sum(2, dtype=widest(flat.device))

        given = flat, ids, real, *(() if targets is None else (targets,))
        return self.recordings.run("losses", compute, given, real.numel()) if replay else compute(*given)

    @torch.no_grad()
    def score_texts(self, flat: Tensor, texts: Texts) -> Tensor:
        """The outputs (K, B, C) of the scorer, by replays of passes that are met often, see `Recordings`."""

        def compute(flat: Tensor, ids: Tensor, lengths: Tensor, second: Tensor) -> Tensor:
            return self.compute_scores(flat, Texts(ids, lengths, second, texts.paired))[0]

        given = flat, texts.ids, texts.lengths, texts.second
        return self.recordings.run(("scores", texts.paired), compute, given, texts.ids.numel())

    def compute_scores(
        self, flat: Tensor, texts: Texts, key: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the outputs (K, B, C) of the scorer under parameters flat (K, P), and the states z (K, B, d) under them.

        key: (K,) the dropout streams; places: (K, B*T) see `Slots`.
        """
        assert self.scorer is not None
        pooling = self.scorer.pooling
        with self.slots.bind(flat, key, places), self.keeping_inputs(), without_packed_rows():
            body = self.model.base_model
            found = body(input_ids=texts.ids.flatten(0, 1), **model_inputs(body, texts, pooling))
            z = pool_states(found, texts, pooling)
            W = self.slots.full_parameter(WEIGHT, (self.scorer.outputs, self.scorer.width))  # (K, C, d)
            b = self.slots.full_parameter(BIAS, (self.scorer.outputs,))  # (K, C)
        return torch.baddbmm(b[:, None], z, W.mT), z

    def _hidden(self, x: Tensor) -> Tensor:
        """Ids (K*B, T) -> last hidden states (K*B, T, d), under the parameters that are bound."""
        with self.keeping_inputs(), without_packed_rows():
            states: Tensor = self.model.base_model(input_ids=x, use_cache=False).last_hidden_state
        return states

    def bound_head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight W and bias: (V, d) and (V,), or where they are trained (K, V, d) and (K, V), as bound."""
        W, b = self.head.weight, self.head.bias
        if self.head_site is not None:
            W = self.slots.full_parameter(self.head_site, tuple(W.shape))
        if self.targets.head_bias is not None:
            b = self.slots.full_parameter(self.targets.head_bias, tuple(b.shape))
        return W, b

    def keeping_inputs(self) -> AbstractContextManager[None]:
        """A context in which the blocks of a forward pass keep their inputs alone, where that is asked for."""
        if not self.recomputed or not torch.is_grad_enabled():
            return nullcontext()
        return recompute_blocks(self.recomputed, self.slots.keep_bound())

    @torch.no_grad()
    def fold(self, base: Mapping[str, Tensor]) -> None:
        """Make the frozen weights of LoRA sites the original ones plus `base`, site -> (d_out, d_in)."""
        if base or self.is_folded:
            self.recordings.forget()
        self.is_folded = bool(base)
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
