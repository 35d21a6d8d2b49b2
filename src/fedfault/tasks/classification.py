"""The task of labels: classes or scores of texts, learned by many clients on one frozen backbone with a head for each."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedfault.algebra import widest
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.scorer import Texts, model_inputs
from fedfault.measures.labels import correlate_scores, score_classes
from fedfault.records import Score
from fedfault.tasks.base import CohortTask
from fedfault.tasks.grouping import place_tokens, split_by_length
from fedfault.text.examples import Examples
from fedfault.types.algorithm import ExtraLoss
from fedfault.types.task import Continuations, Served, Step


class ClassificationTask(CohortTask):
    """Implements `types.task.Task` over labelled examples: cross-entropy of classes, or the squared error of scores.

    clients: each client's training examples; sets: evaluation examples by score name, of which those called `topic/...`
    are together the validation set; positive: the class whose F1 is measured, see `measures.labels`; seed: of the fresh
    head.
    """

    grouped = True

    def __init__(
        self,
        model: CohortModel,
        clients: Sequence[Examples],
        sets: Mapping[str, Examples],
        *,
        seed: int = 0,
        positive: int | None = None,
        cache_mb: int = 0,
    ) -> None:
        super().__init__(model, clients, seed)
        assert model.scorer is not None
        self.scorer, self.pooling = model.scorer, model.scorer.pooling
        self.positive = positive
        self.sets: dict[str, Examples] = dict(sets)
        self.table = Examples.concatenate([*clients, *self.sets.values()])
        self.ids, self.mask, self.lengths = self.table.ids, self.table.mask, self.table.lengths
        self.paired = bool((self.table.second < self.table.lengths).any())
        self.regression = self.table.labels.is_floating_point()
        self.topics = [name for name in self.sets if name.startswith("topic/")]
        self.probed = self.draw_in_turn(self.sets, self.topics)
        self.cache = self.make_cache(
            cache_mb,
            self.ids,
            lambda rows: model_inputs(model.model.base_model, self._select_texts(rows[None]), self.pooling),
        )
        self.plan_passes()

    @functools.cached_property
    def second_here(self) -> Tensor:
        """Where the second sentence of each row begins, (N,), on the device of the model."""
        second: Tensor = self.table.second.to(self.model.device)
        return second

    @functools.cached_property
    def labels_here(self) -> Tensor:
        """The labels of the rows, (N,), on the device of the model."""
        labels: Tensor = self.table.labels.to(self.model.device)
        return labels

    def make_like(self, clients: Sequence[Any]) -> ClassificationTask:
        """See `CohortTask.make_like`."""
        return ClassificationTask(self.model, clients, {}, seed=self.seed)

    def tokens(self, client: int) -> int:
        """Count the targets of the client: one an example."""
        return self.counts[client]

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Task.grad`: mean loss over each client's examples (K,), gradient (K, P), examples (K,).

        The representation of a text is the state that the head reads. With an extra loss, which sees the whole batch, all
        rows go through the model at once.
        """
        step = step.to(params.device)
        rows, counts = self.tables.first[step.clients][:, None] + step.rows, step.real.sum(1)  # (K, B), (K,)
        weight = step.real / counts.clamp(min=1)[:, None]
        flat = params.detach().requires_grad_(torch.is_grad_enabled())
        loss, gradient = params.new_zeros(len(flat), dtype=widest(params.device)), torch.zeros_like(params)
        for columns in self.iterate_columns(step):
            own, share = rows.gather(1, columns.here), weight.gather(1, columns.here)  # (K, b)
            texts = self._select_texts(own, columns.tokens)
            places = None if step.key is None else place_tokens(columns.here, columns.tokens)
            known = self._find_rows(step, columns.known)
            out, z = self._compute_scores(flat, texts, known, step.key, places)
            each = self._compute_losses(out, own)
            total = (each * share.to(each)).sum()
            if step.extra_loss is not None:
                total = total + self._sum_extra_loss(step.extra_loss, texts, known, z, share > 0)
            if flat.requires_grad:
                gradient += torch.autograd.grad(total, flat)[0]
            loss += (each.detach() * share).sum(1, dtype=loss.dtype)
        return loss, gradient, counts

    def _sum_extra_loss(
        self, extra_loss: ExtraLoss, texts: Texts, known: Tensor | None, z: Tensor, real: Tensor
    ) -> Tensor:
        """Sum the extra loss of each client on its representations (K, B, d)."""
        shown = real.to(z)[..., None]

        @torch.no_grad()
        def see(params: Tensor, at: Tensor | None = None) -> Tensor:
            if at is None:
                return self._compute_scores(params, texts, known)[1] * shown
            some = Texts(texts.ids[at], texts.lengths[at], texts.second[at], texts.paired)
            own = None if known is None else known[at.cpu()]
            return self._compute_scores(params, some, own)[1] * shown[at]

        return extra_loss(z * shown, see).sum()

    def _select_texts(self, rows: Tensor, width: int | None = None) -> Texts:
        """Select the texts of rows (K, B), cut to so many tokens."""
        t, rows = self.tables, rows.to(self.model.device)
        T = t.ids.shape[1] if width is None else width
        return Texts(t.ids[rows][..., :T], t.lengths[rows].clamp(max=T), self.second_here[rows], self.paired)

    def _compute_scores(
        self,
        flat: Tensor,
        texts: Texts,
        known: Tensor | None,
        key: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute outputs (K, B, C) and states (K, B, d) of texts, which are these rows (K, B) where there is a cache."""
        if self.cache is None or known is None:
            return self.model.compute_scores(flat, texts, key, places)
        with self.cache.prefix.skip_frozen_blocks(self.cache.get(known.flatten())[:, : texts.ids.shape[-1]]):
            return self.model.compute_scores(flat, texts, key, places)

    def _compute_losses(self, out: Tensor, rows: Tensor) -> Tensor:
        """Compute the loss of every row: out (..., C), rows (...) -> (...)."""
        every: Tensor = self.table.labels if out.device.type == "cpu" else self.labels_here
        labels = every[rows]
        if self.regression:
            return (out[..., 0] - labels).square()
        return F.cross_entropy(out.flatten(0, -2), labels.flatten(), reduction="none").view_as(labels)

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """See `types.task.Task.continuations`: a classifier continues nothing."""
        return None

    def iterate_passes(self, rows: Tensor, models: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        """See `CohortTask.iterate_passes`."""
        T = self.ids.shape[1]
        for some in rows.split(max(1, self.evaluation_tokens() // (models * T))):
            texts = self._select_texts(some[None])
            yield texts.ids[0], model_inputs(self.model.model.base_model, texts, self.pooling)

    def make_scores(self, out: Tensor, model: Served) -> dict[str, Score]:
        """See `CohortTask.make_scores`: all topics together are `validation`; every example counts once.

        With personal models `client/ID` are theirs, and `personal` is all held-out examples together.
        """
        owned, rows = self.rows_by_set(), torch.arange(sum(self.counts), len(self.ids))
        shown = {"validation": torch.cat([owned[name] for name in self.topics])} if self.topics else {}
        held_out = [own for name, own in owned.items() if name.startswith("client/")]
        if model.personal is not None and held_out:
            shown["personal"] = torch.cat(held_out)
        loss = self._compute_losses(out, rows).double()
        change = loss - self.losses_before_training(loss, model.adapter, rows)
        return {name: self._make_score(name, own - rows[0], out, loss, change) for name, own in (shown | owned).items()}

    def _make_score(self, name: str, own: Tensor, out: Tensor, loss: Tensor, change: Tensor) -> Score:
        """Make the score of some of the evaluated examples, by their place in out (n, C), loss (n,) and change (n,)."""
        n, labels = len(own), self.table.labels[len(self.ids) - len(out) + own]
        se = float(change[own].std() / math.sqrt(n)) if n > 1 else None
        if self.regression:
            found = {} if name in self.topics else correlate_scores(out[own, 0].numpy(), labels.numpy())
        else:
            found = score_classes(out[own].argmax(1).numpy(), labels.numpy(), self.positive)
            found = {"accuracy": found["accuracy"]} if name in self.topics else found  # in one class: its recall
        return Score(float(loss[own].mean()), n, se, n, found)

    def _compute_nll(self, out: Tensor, rows: Tensor) -> Tensor:
        return self._compute_losses(out, rows).double()

    def _count_targets(self, rows: Tensor) -> int:
        return len(rows)

    def compute_outputs(self, flat: Tensor, rows: Tensor) -> Tensor:
        """See `CohortTask.compute_outputs`: (n, C). The longest rows go first."""
        out = torch.empty(len(rows), self.scorer.outputs)
        for some, T in split_by_length(self.lengths[rows], self.evaluation_tokens()):
            own = rows[some][None]
            texts = self._select_texts(own, T)
            found = (
                self.model.score_texts(flat[None], texts)
                if self.cache is None
                else self._compute_scores(flat[None], texts, own)[0]
            )
            out[some] = found[0].cpu()
        return out
