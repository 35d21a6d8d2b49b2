"""The language-model task: next-token prediction by many clients on one frozen backbone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedfault.algebra import factor
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import ActivationCache, Prefix
from fedfault.backbones.sample import greedy
from fedfault.backbones.states import attention_weights, hidden_states
from fedfault.corpora.decoding import Decode
from fedfault.corpora.packing import Blocks
from fedfault.records import Score
from fedfault.seeds import rng
from fedfault.types import Adapter, Batch, Continuations, ExtraLoss, States

# (model, flat (k, P), ids (n, T)) -> (k, n, ...) by layer, or nothing
Look = Callable[[CohortModel, Tensor, Tensor], list[Tensor] | None]

# what a training pass may hold in activations: 10,000 tokens of micro, 500 of SmolLM2-135M
ACTIVATION_BYTES = 2**30
EVALUATION_TOKENS = 2048  # in a forward pass without gradients: more would only leave the CPU's cache


class LanguageTask:
    """Implements `types.Task` over token blocks.

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
        self.model, self.layout = model, model.layout
        self.counts = [len(b) for b in clients]
        self.sizes = [b.num_tokens for b in clients]
        self.first = torch.tensor([0, *self.counts]).cumsum(0)[:-1]  # row of each client's first block
        self.sets, self.mixture, self.decode = dict(sets), dict(mixture), decode
        every = [*clients, *self.sets.values()]
        self.ids = torch.cat([b.ids for b in every])  # (N, T+1): training blocks of all clients, then evaluation blocks
        self.mask = torch.cat([b.mask for b in every])  # (N, T)
        self.folded: Mapping[str, Tensor] = {}  # what the frozen weights hold beside the original ones
        self.untrained: Tensor | None = None  # summed loss of every evaluation block before training
        self.probed = self._in_turn()
        self.seen: dict[Look, list[Tensor] | None] = {}  # what was looked at in the model before training
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

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """See `types.Task.continuations`: blocks without padding, one of every topic in turn. None without `decode`."""
        topics = [self.sets[name] for name in self.mixture]
        rows = itertools.zip_longest(*(b.ids[b.targets == b.ids.shape[1] - 1] for b in topics))
        whole = [ids for turn in rows for ids in turn if ids is not None]  # (T+1,) each
        if self.decode is None or not whole:
            return None
        first, second = torch.stack(whole[:blocks]).tensor_split(2, dim=1)
        made = greedy(self.model, flat, first, second.shape[1])
        return Continuations(made, *([self.decode(row) for row in half.tolist()] for half in (made, second)))

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `types.Task.fold`."""
        self.model.fold(base)
        self.folded = base

    def checksums(self) -> Mapping[str, int]:
        """See `types.Task.checksums`."""
        return self.model.checksums()

    def states(self, params: Tensor | None, blocks: int) -> States | None:
        """See `types.Task.states`: hidden states as `hidden_states` has them, on blocks of every topic in turn."""
        layers = self._seen(hidden_states, params, blocks)
        return None if layers is None else States(layers, self.mask[self.probed[:blocks]])

    def attention(self, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """See `types.Task.attention`; None for params is the model before training."""
        layers = self._seen(attention_weights, params, blocks)
        return None if layers is None else [layer.flatten(0, 1) for layer in layers]

    def _in_turn(self) -> Tensor:
        """Rows of the topics' evaluation blocks, drawn at random: one of every topic, another of every topic, and so on."""
        at, turns = sum(self.counts), []
        for name, blocks in self.sets.items():
            if name in self.mixture:
                drawn = rng(0, "probed", name).permutation(len(blocks))
                turns += [(turn, at + int(row)) for turn, row in enumerate(drawn)]
            at += len(blocks)
        return torch.tensor([row for _, row in sorted(turns)], dtype=torch.int64)

    def _seen(self, look: Look, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """What `look` finds on the first of these blocks; in the model before training it looks once."""
        rows = self.probed[:blocks]
        if params is not None:
            return self._passes(look, params, rows)
        known = self.seen.get(look)
        if known is None or known[0].shape[1] < len(rows):
            with self._unfolded():
                known = self.seen[look] = self._passes(look, self.init(0).flat[None], rows)
        return None if known is None else [layer[:, : len(rows)] for layer in known]

    def _passes(self, look: Look, params: Tensor, rows: Tensor) -> list[Tensor] | None:
        """The same, so many blocks at a time that a pass takes about EVALUATION_TOKENS tokens."""
        per = max(1, EVALUATION_TOKENS // (len(params) * self.mask.shape[1]))
        found = []
        for some in rows.split(per) if len(rows) else ():
            layers = look(self.model, params, self.ids[some, :-1].to(params.device))
            if layers is None:
                return None
            found.append(layers)
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)] or None

    @contextmanager
    def _unfolded(self) -> Iterator[None]:
        """Within the block, the frozen weights are the original ones."""
        folded = self.folded
        self.fold({})
        try:
            yield
        finally:
            self.fold(folded)

    @torch.no_grad()
    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Token-weighted scores of one model on every set: sums over sums, whatever the batches.

        With `personal` models (N, P), `client/ID` are theirs, and `personal` is their mean over all held-out tokens.
        """
        rows = torch.arange(sum(self.counts), len(self.ids))
        if personal is None:
            return self._scores(self._nll(adapter.flat, rows), adapter)
        nll = []
        for name, own in zip(self.sets, rows.split([len(b) for b in self.sets.values()]), strict=True):
            client = name.removeprefix("client/")
            nll.append(self._nll(adapter.flat if client == name else personal.flat[int(client)], own))
        found = self._scores(torch.cat(nll), adapter)
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

    def _scores(self, nll: Tensor, adapter: Adapter) -> dict[str, Score]:
        """Scores from the summed loss of every evaluation block (n,), and how sure their change since round 0 is."""
        if self.untrained is None:
            self.untrained = nll if self._is_untrained(adapter) else self._nll_untrained()
        out, at = {}, 0
        for name, blocks in self.sets.items():
            own = slice(at, at := at + len(blocks))
            tokens = blocks.targets.double()
            loss = float(nll[own].sum()) / blocks.num_tokens
            se = _paired_error(nll[own] - self.untrained[own], tokens)
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

    def _is_untrained(self, adapter: Adapter) -> bool:
        """Whether a model is the one before training: B zero, full sites as in the base, nothing folded in."""
        same = (adapter.flat == self.init(0).flat).cpu() | factor(self.layout, "A")
        return bool(same.all()) and not self.folded

    def _nll_untrained(self) -> Tensor:
        """`_nll` of all evaluation blocks before training."""
        with self._unfolded():
            return self._nll(self.init(0).flat, torch.arange(sum(self.counts), len(self.ids)))


def _paired_error(change: Tensor, tokens: Tensor) -> float | None:
    """Standard error of sum(change) / sum(tokens) over blocks drawn at random, (n,) each; None for one block.

    The usual one of a ratio estimator (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    n, total = len(change), tokens.sum()
    rest = change - tokens * (change.sum() / total)
    return None if n < 2 else float((rest.square().sum() * n / (n - 1)).sqrt() / total)
