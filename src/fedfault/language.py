"""The language-model task: next-token prediction by many clients on one frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import ActivationCache, Prefix
from fedfault.corpora.packing import Blocks
from fedfault.records import Score
from fedfault.types import Adapter, Batch, ExtraLoss

# what a training pass may hold in activations: 10,000 tokens of micro, 500 of SmolLM2-135M
ACTIVATION_BYTES = 2**30
EVALUATION_TOKENS = 2048  # in a forward pass without gradients: more would only leave the CPU's cache


class LanguageTask:
    """Implements `types.Task` over token blocks.

    clients: each client's training blocks; sets: evaluation blocks by score name; mixture: weight of each `topic/...` set
    in the score `validation`, its share of the validation tokens.
    """

    def __init__(
        self,
        model: CohortModel,
        clients: Sequence[Blocks],
        sets: Mapping[str, Blocks],
        mixture: Mapping[str, float],
        *,
        cache_mb: int = 0,
    ) -> None:
        self.model, self.layout = model, model.layout
        self.counts = [len(b) for b in clients]
        self.sizes = [b.num_tokens for b in clients]
        self.first = torch.tensor([0, *self.counts]).cumsum(0)[:-1]  # row of each client's first block
        self.sets, self.mixture = dict(sets), dict(mixture)
        every = [*clients, *self.sets.values()]
        self.ids = torch.cat([b.ids for b in every])  # (N, T+1): training blocks of all clients, then evaluation blocks
        self.mask = torch.cat([b.mask for b in every])  # (N, T)
        self.cache = None
        if cache_mb and model.targets.first_block > 0:
            prefix = Prefix(model.model, model.targets.first_block)
            self.cache = ActivationCache(prefix, self.ids[:, :-1], cache_mb * 2**20)

    def examples(self, client: int) -> int:
        """Blocks of the client."""
        return self.counts[client]

    def tokens(self, client: int) -> int:
        """Target tokens in them."""
        return self.sizes[client]

    def init(self, seed: int) -> Adapter:
        """The untrained adapter, (P,)."""
        return self.model.init(seed)

    def tokens_per_pass(self) -> int:
        """Target tokens that one training pass may take: a function of the model's shape, so the same on every start."""
        c = self.model.model.config
        width, inner = c.hidden_size, getattr(c, "intermediate_size", None) or 4 * c.hidden_size
        held = c.num_hidden_layers * (16 * width + 4 * inner)  # numbers a token leaves behind for the backward pass
        size: int = next(self.model.model.parameters()).element_size()
        return int(ACTIVATION_BYTES // (held * size))

    def grad(
        self,
        params: Tensor,
        clients: Tensor,
        batch: Batch,
        key: Tensor | None,
        extra_loss: ExtraLoss | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.Task.grad`: mean loss over each client's target tokens (K,), gradient (K, P), tokens (K,).

        The representation of a block is the mean of its last hidden states over its target positions.
        """
        rows = self.first[clients][:, None] + batch.rows  # (K, B)
        real = self.mask[rows] & batch.real[..., None]  # (K, B, T)
        tokens = real.sum((1, 2))
        flat = params.detach().requires_grad_()
        weight = real / tokens.clamp(min=1)[:, None, None]
        total, each = self._losses(flat, rows, weight.to(flat.device), key, extra_loss)
        (gradient,) = torch.autograd.grad(total, flat)
        return (each.detach().cpu() * weight).sum((1, 2), dtype=torch.float64), gradient, tokens

    def _losses(
        self, flat: Tensor, rows: Tensor, weight: Tensor, key: Tensor | None, extra_loss: ExtraLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        ids = self.ids[rows].to(flat.device)
        if self.cache is None:
            return self.model.losses(flat, ids, weight, key, extra_loss)
        with self.cache.prefix.replaced_by(self.cache.rows(rows.flatten())):
            return self.model.losses(flat, ids, weight, key, extra_loss)

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `types.Task.fold`."""
        self.model.fold(base)

    def checksums(self) -> Mapping[str, int]:
        """See `types.Task.checksums`."""
        return self.model.checksums()

    @torch.no_grad()
    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Token-weighted scores of one model on every set: sums over sums, whatever the batches.

        With `personal` models (N, P), `client/ID` are theirs, and `personal` is their mean over all held-out tokens.
        """
        start = int(self.first[-1]) + self.counts[-1] if self.counts else 0
        rows = torch.arange(start, len(self.ids))
        if personal is None:
            return self._scores(self._nll(adapter.flat, rows))
        nll = []
        for name, own in zip(self.sets, rows.split([len(b) for b in self.sets.values()]), strict=True):
            client = name.removeprefix("client/")
            nll.append(self._nll(adapter.flat if client == name else personal.flat[int(client)], own))
        found = self._scores(torch.cat(nll))
        held_out = [s for name, s in found.items() if name.startswith("client/")]
        tokens = sum(s.tokens for s in held_out)
        return (
            {**found, "personal": Score(sum(s.loss * s.tokens for s in held_out) / tokens, tokens)} if tokens else found
        )

    def _nll(self, flat: Tensor, rows: Tensor) -> Tensor:
        """Summed loss of each of these blocks, (n,) float64."""
        per = max(1, EVALUATION_TOKENS // self.mask.shape[1])
        out = []
        for some in rows.split(per):
            real = self.mask[some]  # (B, T)
            _, each = self._losses(flat[None], some[None], real[None].to(flat.device, torch.float32), None)
            out.append((each[0].cpu() * real).sum(1, dtype=torch.float64))
        return torch.cat(out)

    def _scores(self, nll: Tensor) -> dict[str, Score]:
        out, at = {}, 0
        for name, blocks in self.sets.items():
            tokens = blocks.num_tokens
            out[name] = Score(float(nll[at : at + len(blocks)].sum()) / tokens, tokens)
            at += len(blocks)
        loss = sum(share * out[name].loss for name, share in self.mixture.items())
        return {"validation": Score(loss, sum(out[name].tokens for name in self.mixture)), **out}
