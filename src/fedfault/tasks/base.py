"""The common part of the tasks on a frozen backbone: sizes, losses before training, and states that probes look at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fedfault.algebra import mask_factor
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import ActivationCache, Prefix, Reads
from fedfault.backbones.quantised import count_weight_bytes
from fedfault.backbones.sites import is_linear, linear_shape
from fedfault.backbones.states import attention_weights, hidden_states
from fedfault.seeds import rng
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.task import States, Task

# (model, flat (k, P), ids (n, T), what goes with them) -> (k, n, ...) by layer, or nothing
Look = Callable[[CohortModel, Tensor, Tensor, Mapping[str, Any]], list[Tensor] | None]
Pairs = Sequence[tuple[Tensor, Tensor]]  # models (P,), and the rows (n,) that each is scored on

# what a training pass may hold in activations: 10,000 tokens of micro, 500 of SmolLM2-135M
ACTIVATION_BYTES = 2**30


class BackboneTask(Task, Protocol):
    """A task on a frozen backbone, with the methods that simulated hardware and other processes call beyond `Task`."""

    @property
    def folded(self) -> Mapping[str, Tensor]:
        """The sum that is folded into the frozen weights, LoRA site -> (d_out, d_in)."""

    def clients_per_pass(self, batch_size: int) -> int:
        """How many clients with so many examples a step fit in one training pass."""

    def select_copy(self, client: int) -> CohortTask:
        """Select the task on the copy of the backbone that the client trains on."""

    def frozen_weights(self) -> int:
        """Count the weights that a token is multiplied with: of all linear layers, without embeddings."""

    def score(self, pairs: Pairs) -> Tensor:
        """Compute the outputs of each model for its rows, one behind the other: all that scores need."""

    def use_scorer(self, score: Callable[[Pairs], Tensor]) -> None:
        """Score models by this function instead of `score` from now on."""


class CohortTask(BackboneTask, ABC):
    """The common part of `types.task.Task` over rows of tokens: those of all clients first, then the evaluation sets."""

    ids: Tensor  # (N, T) all rows, as the model reads them
    mask: Tensor  # (N, T) bool: positions that count
    sets: Mapping[str, Sized]  # the evaluation sets by score name, in the order of their rows

    def __init__(self, model: CohortModel, clients: Sequence[Sized], seed: int) -> None:
        """seed: of the model before training, where that is not the same for all."""
        self.model, self.seed = model, seed
        self.counts = [len(own) for own in clients]
        self.first = torch.tensor([0, *self.counts]).cumsum(0)[:-1]  # row of each client's first one
        self._folded: Mapping[str, Tensor] = {}
        self.untrained: Tensor | None = None  # loss of every evaluation row before training
        self.seen: dict[Look, list[Tensor] | None] = {}  # what was looked at in the model before training
        self.probed: Tensor  # (n,) rows that probes look at
        self.score_pairs: Callable[[Pairs], Tensor] = self.score

    @abstractmethod
    def iterate_passes(self, rows: Tensor, models: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        """Yield these rows in parts small enough for a pass of so many models: ids, and the further inputs of the model."""

    @abstractmethod
    def compute_outputs(self, flat: Tensor, rows: Tensor) -> Tensor:
        """Compute the outputs of one model (P,) for these rows, (n, ...) on the CPU: all that its scores need."""

    @abstractmethod
    def _compute_nll(self, out: Tensor, rows: Tensor) -> Tensor:
        """Compute the loss of each of these rows, (n,) float64, from what `compute_outputs` gave."""

    @abstractmethod
    def _count_targets(self, rows: Tensor) -> int:
        """Count the targets of these rows."""

    @property
    def layout(self) -> Layout:
        """See `Task`."""
        return self.model.layout

    @property
    def folded(self) -> Mapping[str, Tensor]:
        """See `BackboneTask`."""
        return self._folded

    def select_copy(self, client: int) -> CohortTask:
        """See `BackboneTask`: all train on this one."""
        return self

    def examples(self, client: int) -> int:
        """Count the training rows of the client."""
        return self.counts[client]

    def init(self, seed: int) -> Adapter:
        """Make the untrained adapter, (P,)."""
        return self.model.init(seed)

    def read(self, client: int) -> int:
        """See `types.task.Task`: without padding."""
        first = int(self.first[client])
        return int(self.mask[first : first + self.counts[client]].sum())

    def held_bytes(self) -> int:
        """Estimate the bytes that a token leaves behind for the backward pass, from the model's shape."""
        c = self.model.model.config
        width, inner = c.hidden_size, getattr(c, "intermediate_size", None) or 4 * c.hidden_size
        size: int = next(self.model.model.parameters()).element_size()
        return int(c.num_hidden_layers * (16 * width + 4 * inner) * size)

    def frozen_bytes(self) -> int:
        """Count the bytes that the backbone takes in memory."""
        return count_weight_bytes(self.model.model)

    def frozen_weights(self) -> int:
        """See `BackboneTask`."""
        return sum(math.prod(linear_shape(m)) for m in self.model.model.modules() if is_linear(m))

    def tokens_per_pass(self) -> int:
        """Compute how many tokens a training pass may take, from the model's shape, so that every start has the same."""
        return ACTIVATION_BYTES // self.held_bytes()

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `types.task.Task.fold`."""
        self.model.fold(base)
        self._folded = base

    def checksums(self) -> Mapping[str, int]:
        """See `types.task.Task.checksums`."""
        return self.model.checksums()

    @torch.no_grad()
    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """See `types.task.Task.held_out`."""
        owned, found = self.rows_by_set(), torch.full((len(params),), torch.nan, dtype=torch.float64)
        own = {i: owned[f"client/{k}"] for i, k in enumerate(clients.tolist()) if f"client/{k}" in owned}
        if own:
            out = self.score_pairs([(params[i], rows) for i, rows in own.items()]).split(list(map(len, own.values())))
            for (i, rows), some in zip(own.items(), out, strict=True):
                found[i] = self._compute_nll(some, rows).sum() / self._count_targets(rows)
        return found

    @torch.no_grad()
    def score(self, pairs: Pairs) -> Tensor:
        """`compute_outputs` of every model for its rows, one behind the other."""
        return torch.cat([self.compute_outputs(flat, rows) for flat, rows in pairs])

    def use_scorer(self, score: Callable[[Pairs], Tensor]) -> None:
        """See `BackboneTask`."""
        self.score_pairs = score

    def rows_by_set(self) -> dict[str, Tensor]:
        """Return the rows of every evaluation set, by its name."""
        rows = torch.arange(sum(self.counts), len(self.ids)).split([len(own) for own in self.sets.values()])
        return dict(zip(self.sets, rows, strict=True))

    def choose_models(self, adapter: Adapter, personal: Adapter) -> dict[str, Tensor]:
        """Choose the model (P,) that each evaluation set scores: `client/ID` has its row of personal (N, P)."""
        clients = {name: name.removeprefix("client/") for name in self.sets}
        return {name: adapter.flat if k == name else personal.flat[int(k)] for name, k in clients.items()}

    def states(self, params: Tensor | None, blocks: int) -> States | None:
        """See `types.task.Task.states`: hidden states as `hidden_states` has them, on rows of every topic in turn."""
        layers = self._look_cached(hidden_states, params, blocks)
        return None if layers is None else States(layers, self.mask[self.probed[:blocks]])

    def attention(self, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """See `types.task.Task.attention`; None for params is the model before training."""
        layers = self._look_cached(attention_weights, params, blocks)
        return None if layers is None else [layer.flatten(0, 1) for layer in layers]

    def draw_in_turn(self, sets: Mapping[str, Sized], topics: Sequence[str]) -> Tensor:
        """Draw rows of the topics' sets at random: one of every topic, another of every topic, and so on."""
        at, turns = sum(self.counts), []
        for name, rows in sets.items():
            if name in topics:
                drawn = rng(0, "probed", name).permutation(len(rows))
                turns += [(turn, at + int(row)) for turn, row in enumerate(drawn)]
            at += len(rows)
        return torch.tensor([row for _, row in sorted(turns)], dtype=torch.int64)

    def make_cache(self, cache_mb: int, ids: Tensor, reads: Reads | None = None) -> ActivationCache | None:
        """Make a cache of the frozen lower blocks' outputs for these rows; None without such blocks or memory."""
        if not cache_mb or self.model.targets.first_block == 0:
            return None
        prefix = Prefix(self.model.model, self.model.targets.first_block)
        return ActivationCache(prefix, ids, cache_mb * 2**20, *([] if reads is None else [reads]))

    def _look_cached(self, look: Look, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """Look at the model on the first of the probed rows; what the model before training shows is kept."""
        rows = self.probed[:blocks]
        if params is not None:
            return self._look_in_passes(look, params, rows)
        known = self.seen.get(look)
        if known is None or known[0].shape[1] < len(rows):
            with self._without_folds():
                known = self.seen[look] = self._look_in_passes(look, self.init(self.seed).flat[None], rows)
        return None if known is None else [layer[:, : len(rows)] for layer in known]

    def _look_in_passes(self, look: Look, params: Tensor, rows: Tensor) -> list[Tensor] | None:
        found = []
        for ids, reads in self.iterate_passes(rows, len(params)) if len(rows) else ():
            layers = look(self.model, params, ids.to(params.device), reads)
            if layers is None:
                return None
            found.append(layers)
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)] or None

    @contextmanager
    def _without_folds(self) -> Iterator[None]:
        """Give the frozen weights their original values within the block."""
        folded = self._folded
        self.fold({})
        try:
            yield
        finally:
            self.fold(folded)

    def losses_before_training(self, loss: Tensor, adapter: Adapter, rows: Tensor) -> Tensor:
        """Return the losses (n,) of these rows before training, computed once; `loss` are theirs under `adapter`."""
        if self.untrained is None:
            self.untrained = loss if self._is_untrained(adapter) else self._score_untrained(rows)
        return self.untrained

    def _is_untrained(self, adapter: Adapter) -> bool:
        """Tell whether a model is the one before training: B zero, full sites as at the start, nothing folded in."""
        same = (adapter.flat == self.init(self.seed).flat).cpu() | mask_factor(self.layout, "A")
        return bool(same.all()) and not self._folded

    def _score_untrained(self, rows: Tensor) -> Tensor:
        with self._without_folds():
            return self._compute_nll(self.score_pairs([(self.init(self.seed).flat, rows)]), rows)
