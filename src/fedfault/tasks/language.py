"""The language-model task: next-token prediction by many clients on one frozen backbone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fedfault.algebra import widest
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import read_ids_only
from fedfault.backbones.sample import decode_greedily
from fedfault.records import Score
from fedfault.tasks.base import CohortTask
from fedfault.text.decoding import Decode
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from fedfault.types.task import Continuations, Step


class LanguageTask(CohortTask):
    """Implements `types.task.Task` over token blocks.

    clients: each client's training blocks; sets: evaluation blocks by score name; mixture: weight of each `topic/...` set
    in the score `validation`, its share of the validation tokens; decode: ids -> text, for `continuations`.
    """

    def __init__(
        self,
        model: CohortModel,
        clients: Sequence[Blocks],
        sets: Mapping[str, Blocks],
        mixture: Mapping[str, float],
        *,
        cache_mb: int = 0,
        decode: Decode | None = None,
    ) -> None:
        super().__init__(model, clients, seed=0)  # before training B is zero, so that A may be anybody's
        self.sizes = [b.num_tokens for b in clients]
        self.sets: dict[str, Blocks] = dict(sets)
        self.mixture, self.decode = dict(mixture), decode
        every = [*clients, *self.sets.values()]
        self.ids = torch.cat([b.ids for b in every])  # (N, T+1): training blocks of all clients, then evaluation blocks
        self.mask = torch.cat([b.mask for b in every])  # (N, T)
        self.probed = self.draw_in_turn(self.sets, list(self.mixture))
        self.cache = self.make_cache(cache_mb, self.ids[:, :-1])
        self.plan_passes()

    def tokens(self, client: int) -> int:
        """Count the target tokens of the client."""
        return self.sizes[client]

    def clients_per_pass(self, batch_size: int) -> int:
        """See `BackboneTask`."""
        if self.free is not None and self.room is not None:
            return self.count_clients_in_memory(self.free, batch_size)
        return max(1, self.tokens_per_pass() // (batch_size * self.mask.shape[1]))

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Task.grad`: mean loss over each client's target tokens (K,), gradient (K, P), tokens (K,).

        The representation of a block is the mean of its last hidden states over its target positions.
        """
        step = step.to(params.device)
        first, ids, mask = self.tables
        rows = first[step.clients][:, None] + step.rows  # (K, B)
        real = mask[rows] & step.real[..., None]  # (K, B, T)
        tokens = real.sum((1, 2))
        flat = params.detach().requires_grad_(torch.is_grad_enabled())
        weight = real / tokens.clamp(min=1)[:, None, None]
        with self._skip_frozen_blocks(step.on_host):
            total, each = self.model.losses(flat, ids[rows], weight, step.key, step.extra_loss)
        gradient = torch.autograd.grad(total, flat)[0] if flat.requires_grad else torch.zeros_like(flat)
        return (each.detach() * weight).sum((1, 2), dtype=widest(params.device)), gradient, tokens

    def _skip_frozen_blocks(self, step: Step) -> AbstractContextManager[None]:
        """Within the block, layers below the first trained one are not computed but looked up, if there is a cache."""
        if self.cache is None:
            return nullcontext()
        return self.cache.skip_frozen_blocks((self.first[step.clients][:, None] + step.rows).flatten())

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """See `types.task.Task.continuations`: blocks without padding, one of every topic in turn. None without `decode`."""
        topics = [self.sets[name] for name in self.mixture]
        rows = itertools.zip_longest(*(b.ids[b.targets == b.ids.shape[1] - 1] for b in topics))
        whole = [ids for turn in rows for ids in turn if ids is not None]  # (T+1,) each
        if self.decode is None or not whole:
            return None
        first, second = torch.stack(whole[:blocks]).tensor_split(2, dim=1)
        made = decode_greedily(self.model, flat, first, second.shape[1])
        return Continuations(made, *([self.decode(row) for row in half.tolist()] for half in (made, second)))

    def iterate_passes(self, rows: Tensor, models: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        """See `CohortTask.iterate_passes`."""
        per = max(1, self.evaluation_tokens() // (models * self.mask.shape[1]))
        for some in rows.split(per):
            yield self.ids[some, :-1], read_ids_only(some)

    @torch.no_grad()
    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Score one model on every set, weighted by tokens: sums over sums, whatever the batches.

        With `personal` models (N, P), `client/ID` are theirs, and `personal` is their mean over all held-out tokens.
        """
        rows = torch.arange(sum(self.counts), len(self.ids))
        if personal is None:
            return self._make_scores(self.score_pairs([(adapter.flat, rows)]), adapter)
        models = self.choose_models(adapter, personal)
        found = self._make_scores(
            self.score_pairs([(models[name], own) for name, own in self.rows_by_set().items()]), adapter
        )
        held_out = [s for name, s in found.items() if name.startswith("client/")]
        tokens = sum(s.tokens for s in held_out)
        return (
            {**found, "personal": Score(sum(s.loss * s.tokens for s in held_out) / tokens, tokens)} if tokens else found
        )

    def compute_outputs(self, flat: Tensor, rows: Tensor) -> Tensor:
        """See `CohortTask.compute_outputs`: the summed loss of each of these blocks, (n,) float64."""
        per = max(1, self.evaluation_tokens() // self.mask.shape[1])
        _, ids, mask = self.tables
        out = []
        for some, here in zip(rows.split(per), rows.to(flat.device).split(per), strict=True):
            real = mask[here]  # (B, T)
            with nullcontext() if self.cache is None else self.cache.skip_frozen_blocks(some):
                _, each = self.model.losses(flat[None], ids[here][None], real[None].float())
            out.append((each[0] * real).sum(1, dtype=widest(flat.device)))
        return torch.cat(out).cpu().double()

    def _compute_nll(self, out: Tensor, rows: Tensor) -> Tensor:
        return out

    def _count_targets(self, rows: Tensor) -> int:
        return int(self.mask[rows].sum())

    def _make_scores(self, nll: Tensor, adapter: Adapter) -> dict[str, Score]:
        """Make scores, with standard errors of their changes since round 0, from the loss of every block (n,)."""
        before = self.losses_before_training(nll, adapter, torch.arange(sum(self.counts), len(self.ids)))
        out, at = {}, 0
        for name, blocks in self.sets.items():
            own = slice(at, at := at + len(blocks))
            tokens = blocks.targets.double()
            loss = float(nll[own].sum()) / blocks.num_tokens
            se = _paired_error(nll[own] - before[own], tokens)
            out[name] = Score(loss, blocks.num_tokens, se, len(blocks))
        shares = self.mixture.items()
        errors = [out[name].se for name in self.mixture]
        se = None if None in errors else math.sqrt(sum((w * (out[name].se or 0.0)) ** 2 for name, w in shares))
        mixture = Score(
            loss=sum(share * out[name].loss for name, share in shares),
            tokens=sum(out[name].tokens for name in self.mixture),
            se=se,
            blocks=sum(len(self.sets[name]) for name in self.mixture),
        )
        return {"validation": mixture, **out}


def _paired_error(change: Tensor, tokens: Tensor) -> float | None:
    """Estimate the standard error of sum(change) / sum(tokens) over blocks drawn at random, (n,) each; None for one.

    The usual one of a ratio estimator (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    n, total = len(change), tokens.sum()
    rest = change - tokens * (change.sum() / total)
    return None if n < 2 else float((rest.square().sum() * n / (n - 1)).sqrt() / total)
