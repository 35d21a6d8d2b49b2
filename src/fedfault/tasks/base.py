"""The common part of the tasks on a frozen backbone: sizes, losses before training, and states that probes look at."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedfault.algebra import mask_factor
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.layers import CohortLinear
from fedfault.backbones.prefix import ActivationCache, Prefix, Reads, read_ids_only
from fedfault.backbones.quantised import count_weight_bytes
from fedfault.backbones.sites import is_linear, linear_shape
from fedfault.backbones.states import attention_weights, hidden_states
from fedfault.records import Score
from fedfault.seeds import rng
from fedfault.tasks.fitting import FittedTask
from fedfault.tasks.grouping import group_columns, plan_groups, take_groups
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.task import Groups, SecretLosses, Served, States, Step, Task, TextLosses


class Tables(NamedTuple):
    """What steps look up of the rows, on the device of the model."""

    first: Tensor  # (N,) row of each client's first one
    ids: Tensor
    mask: Tensor
    lengths: Tensor


class Columns(NamedTuple):
    """Columns of a step whose rows go through the model together."""

    here: Tensor  # (K, b), on the device
    known: Tensor | None  # the same on the CPU, where the step is planned there
    tokens: int  # of the longest row that there may be


# (model, flat (k, P), ids (n, T), what goes with them) -> (k, n, ...) by layer, or nothing
Look = Callable[[CohortModel, Tensor, Tensor, Mapping[str, Any]], list[Tensor] | None]
Pairs = Sequence[tuple[Tensor, Tensor]]  # models (P,), and the rows (n,) that each is scored on

MODELS = 64  # in a pass without gradients at most: their numbers take memory too


class BackboneTask(Task, Protocol):
    """A task on a frozen backbone, with the methods that simulated hardware and other processes call beyond `Task`."""

    free: int | None  # bytes of the device's memory that were free when passes were planned; None where nobody asks

    @property
    def folded(self) -> Mapping[str, Tensor]:
        """The sum that is folded into the frozen weights, LoRA site -> (d_out, d_in)."""

    def clients_per_pass(self, batch_size: int) -> int:
        """How many clients with so many examples a step fit in one training pass.

        Raises `UserError` if the device has no memory for one.
        """

    def estimate_pass(self, clients: int, batch_size: int) -> int:
        """Estimate the bytes that such a training pass takes at its peak, beside the backbone."""

    def select_copy(self, client: int) -> CohortTask:
        """Select the task on the copy of the backbone that the client trains on."""

    def score(self, pairs: Pairs) -> Tensor:
        """Compute the outputs of each model for its rows, one behind the other: all that scores need."""

    def use_scorer(self, score: Callable[[Pairs], Tensor]) -> None:
        """Score models by this function instead of `score` from now on."""


class CohortTask(FittedTask, BackboneTask):
    """The common part of `types.task.Task` over rows of tokens: those of all clients first, then the evaluation sets."""

    table: Any  # all rows, of the type in which the constructor takes those of each client
    cache: ActivationCache | None  # of the outputs of frozen lower blocks
    sets: Mapping[str, Sized]  # the evaluation sets by score name, in the order of their rows

    def __init__(self, model: CohortModel, clients: Sequence[Sized], seed: int) -> None:
        """seed: of the model before training, where that is not the same for all."""
        super().__init__(model, [len(own) for own in clients], seed)
        self._folded: Mapping[str, Tensor] = {}
        self.untrained: Tensor | None = None  # loss of every evaluation row before training
        self.lost: dict[tuple[int, int], TextLosses] = {}  # of a client and at most so many texts: before training
        self.seen: dict[Look, list[Tensor] | None] = {}  # what was looked at in the model before training
        self.probed: Tensor  # (n,) rows that probes look at
        self.score_pairs: Callable[[Pairs], Tensor] = self.score

    @abstractmethod
    def make_like(self, clients: Sequence[Any]) -> CohortTask:
        """Make a task of other clients' training rows on the same model, with nothing to evaluate."""

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

    @property
    def loss_key(self) -> Hashable:
        """What clients of other runs have in common with these where one step may train both: the model and the loss."""
        return id(self.model), type(self)

    def select_copy(self, client: int) -> CohortTask:
        """See `BackboneTask`: all train on this one."""
        return self

    def examples(self, client: int) -> int:
        """Count the training examples of the client."""
        return self.counts[client] // self.rows_each

    def split_training_rows(self) -> list[Any]:
        """Split the training rows by client, as the constructor takes them."""
        return [self.table[at : at + n] for at, n in zip(self.first.tolist(), self.counts, strict=True)]

    def init(self, seed: int) -> Adapter:
        """Make the untrained adapter, (P,)."""
        return self.model.init(seed)

    def read(self, client: int) -> int:
        """See `types.task.Task`: without padding."""
        first = int(self.first[client])
        return int(self.lengths[first : first + self.counts[client]].sum())

    def frozen_bytes(self) -> int:
        """Count the bytes that the backbone takes in memory."""
        return count_weight_bytes(self.model.model)

    def frozen_weights(self) -> int:
        """Count the frozen weights that a token is multiplied with: of all linear layers, without embeddings."""
        return _count_weights(self.model.model) - self._head_weights()

    def full_weights(self) -> int:
        """Count the weights trained in full that a token is multiplied with.

        Without embeddings, and without what scores a text, which sees one state of it.
        """
        opened = (m for m in self.model.model.modules() if isinstance(m, CohortLinear))
        return sum(m.d_in * m.d_out for m in opened) + self._head_weights()

    def recomputed_weights(self) -> int:
        """Count the weights of the blocks whose forward pass is computed again for the gradient."""
        opened = (m for block in self.model.recomputed for m in block.modules() if isinstance(m, CohortLinear))
        return sum(m.d_in * m.d_out for m in opened) + sum(map(_count_weights, self.model.recomputed))

    def _head_weights(self) -> int:
        """Count the weights of a head of next tokens that is trained: its layer stays in the model, and is not called."""
        return 0 if self.model.head_site is None else math.prod(linear_shape(self.model.head))

    @functools.cached_property
    def tables(self) -> Tables:
        """The rows on the device of the model."""
        return Tables(*(x.to(self.model.device) for x in (self.first, self.ids, self.mask, self.lengths)))

    def iterate_columns(self, step: Step) -> Iterator[Columns]:
        """Yield the columns of a step, which is on the device, in groups of about equal length, see `grouping`.

        An extra loss sees the whole batch: then there is one group.
        """
        if step.groups:
            t = self.tables
            lengths = t.lengths[t.first[step.clients][:, None] + step.rows] * step.real  # (K, B)
            yield from (Columns(here, None, T) for here, T in take_groups(lengths, step.groups[0]))
            return
        lengths = self._look_up_lengths(step.on_host)
        for known in group_columns(lengths, self._most_grouped(step)):  # (K, b)
            yield Columns(known.to(step.rows.device), known, int(lengths.gather(1, known).max()))

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """See `types.task.Trainable`."""
        if not self.grouped:
            return ()
        lengths = torch.stack([self._look_up_lengths(step.on_host) for step in steps])
        return plan_groups(lengths, self._most_grouped(steps[0]))

    def _find_rows(self, step: Step, columns: Tensor | None) -> Tensor | None:
        """The rows of some columns (K, b) of a step, on the CPU, where a cache asks for them."""
        return None if self.cache is None or columns is None else self._list_rows(step.on_host).gather(1, columns)

    def _list_rows(self, planned: Step) -> Tensor:
        """The rows of a step as it was planned, (K, B) on the CPU."""
        return self.first[planned.clients][:, None] + planned.rows

    def _look_up_lengths(self, planned: Step) -> Tensor:
        """The lengths of a step's rows, (K, B) on the CPU, 0 for those that are not there."""
        return self.lengths[self._list_rows(planned)] * planned.real

    def _most_grouped(self, step: Step) -> int | None:
        return None if step.extra_loss is not None else self.tokens_per_pass()

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `types.task.Task.fold`."""
        self.model.fold(base)
        self._folded = base

    def checksums(self) -> Mapping[str, int]:
        """See `types.task.Task.checksums`."""
        return self.model.checksums()

    @torch.no_grad()
    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """See `types.task.Task.evaluate`."""
        return self.evaluate_each([Served(adapter, personal)])[0]

    @torch.no_grad()
    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        """See `types.task.Task.evaluate_each`: the rows of all models are scored together, in as large passes as fit."""
        asked = [self._list_pairs(model) for model in models]
        out = self.score_pairs([pair for own in asked for pair in own])
        found = out.split([sum(len(rows) for _, rows in own) for own in asked])
        return [self.make_scores(own, model) for own, model in zip(found, models, strict=True)]

    def _list_pairs(self, model: Served) -> Pairs:
        """List what is scored of a model: evaluation rows in their order, each with the adapter (P,) that sees it."""
        if model.personal is None:
            return [(model.adapter.flat, torch.arange(sum(self.counts), len(self.ids)))]
        chosen = self.choose_models(model.adapter, model.personal)
        return [(chosen[name], own) for name, own in self.rows_by_set().items()]

    @abstractmethod
    def make_scores(self, out: Tensor, model: Served) -> dict[str, Score]:
        """Make the scores of a model on every set from its outputs (n, ...) for all evaluation rows."""

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
    def text_losses(
        self, models: Sequence[Tensor] | None, clients: Sequence[int], most: int
    ) -> Sequence[TextLosses] | None:
        """See `types.task.Task.text_losses`: texts are rows, such as blocks. None where an example has several rows."""
        if self.rows_each != 1:
            return None
        if models is None:
            return self._lose_before_training(clients, most)
        owned, nobody = self.rows_by_set(), torch.zeros(0, dtype=torch.int64)
        seen = [torch.arange(int(self.first[k]), int(self.first[k]) + min(most, self.counts[k])) for k in clients]
        kept = [owned.get(f"client/{k}", nobody) for k in clients]
        rows = [torch.cat(both) for both in zip(seen, kept, strict=True)]
        out = self.score_pairs(list(zip(models, rows, strict=True))).split([len(own) for own in rows])
        found = []
        for scored, own, mine in zip(out, rows, seen, strict=True):
            targets = torch.tensor([self._count_targets(own[i : i + 1]) for i in range(len(own))])
            each = (self._compute_nll(scored, own) / targets).numpy()
            found.append(TextLosses(each[: len(mine)], each[len(mine) :]))
        return found

    def _lose_before_training(self, clients: Sequence[int], most: int) -> Sequence[TextLosses] | None:
        """`text_losses` of the model before training, which are kept for each client."""
        new = [k for k in dict.fromkeys(clients) if (k, most) not in self.lost]
        if new:
            start = self.init(self.seed).flat
            with self.without_folds():
                found = self.text_losses([start] * len(new), new, most) or []
            self.lost |= {(k, most): losses for k, losses in zip(new, found, strict=True)}
        return [self.lost[k, most] for k in clients]

    def take_events(self) -> list[str]:
        """See `types.task.Task.take_events`: what became of recordings of passes without gradients."""
        events = self.model.recordings.events
        found = [*events]
        events.clear()
        return found

    def secret_losses(
        self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]
    ) -> Sequence[SecretLosses] | None:
        """See `types.task.Task.secret_losses`: there are none but in running text."""
        return None

    @torch.no_grad()
    def score(self, pairs: Pairs) -> Tensor:
        """`compute_outputs` of every model for its rows, one behind the other."""
        if self.room is not None and not self.grouped and self.cache is None and len(pairs) > 1:
            return self.fit_evaluation(self._score_side_by_side, pairs)
        return torch.cat([self.fit_evaluation(self.compute_outputs, flat, rows) for flat, rows in pairs])

    def _score_side_by_side(self, pairs: Pairs) -> Tensor:
        """The same on a device with room: models with about as many rows each share a pass, as far as they fit."""
        T, out = self.mask.shape[1], dict[int, Tensor]()
        waiting = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))
        while waiting:
            most = len(pairs[waiting[0]][1])
            count = min(MODELS, max(1, self.evaluation_tokens() // (T * max(1, most))))
            some, waiting = waiting[:count], waiting[count:]
            found = self.compute_side_by_side([pairs[i] for i in some]) if count > 1 else []
            out |= zip(some, found or [self.compute_outputs(*pairs[i]) for i in some], strict=True)
        return torch.cat([out[i] for i in range(len(pairs))])

    def compute_side_by_side(self, pairs: Pairs) -> list[Tensor]:
        """`compute_outputs` of several models in one pass, for tasks whose rows are all as long: one result a model."""
        return [self.compute_outputs(flat, rows) for flat, rows in pairs]

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
        """Make a cache of the frozen lower blocks' outputs for these rows.

        None without such blocks or memory, and for a model that computes something else when they are skipped.
        """
        if not cache_mb or self.model.targets.first_block == 0 or not len(ids):
            return None
        prefix = Prefix(self.model.model, self.model.targets.first_block)
        one = torch.zeros(1, dtype=torch.int64)
        with self.model.slots.bind(self.init(self.seed).flat[None]):
            if not prefix.is_right(ids[one].to(self.model.device), (reads or read_ids_only)(one)):
                return None
        return ActivationCache(prefix, ids, cache_mb * 2**20, *([] if reads is None else [reads]))

    def _look_cached(self, look: Look, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """Look at the model on the first of the probed rows; what the model before training shows is kept."""
        rows = self.probed[:blocks]
        if params is not None:
            return self.fit_evaluation(self._look_in_passes, look, params, rows)
        known = self.seen.get(look)
        if known is None or known[0].shape[1] < len(rows):
            with self.without_folds():
                start = self.init(self.seed).flat[None]
                known = self.seen[look] = self.fit_evaluation(self._look_in_passes, look, start, rows)
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
    def without_folds(self) -> Iterator[None]:
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
        """Tell whether a model is the one before training: nothing moved but an A beside B = 0, and nothing is folded in."""
        start, is_A = self.init(self.seed).flat, mask_factor(self.layout, "A")
        same = (adapter.flat == start).cpu()
        if not bool(start.cpu()[mask_factor(self.layout, "B")].any()):
            same |= is_A
        return bool(same.all()) and not self._folded

    def _score_untrained(self, rows: Tensor) -> Tensor:
        with self.without_folds():
            return self._compute_nll(self.score_pairs([(self.init(self.seed).flat, rows)]), rows)


def _count_weights(module: nn.Module) -> int:
    """Count the weights of all frozen linear layers below a module."""
    return sum(math.prod(linear_shape(m)) for m in module.modules() if is_linear(m))
