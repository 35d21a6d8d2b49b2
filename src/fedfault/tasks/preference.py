"""The task of preferences: of two responses to a prompt, the better one is to become likelier than under the base.

rows     0 prompt + chosen    1 prompt + rejected    2 prompt + chosen    ...        two of each example
r        log p(response) - log p_base(response), of each row
DPO      -log sigmoid(beta (r_chosen - r_rejected))
IPO      (r_chosen / n_chosen - r_rejected / n_rejected - 1 / (2 beta))^2,  n: tokens of the response
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedfault.algebra import widest
from fedfault.backbones.cohort import CohortModel
from fedfault.records import Score
from fedfault.tasks.language import LanguageTask, estimate_error
from fedfault.text.responses import Responses
from fedfault.types.task import Groups, Step

GENERAL = "general"  # the set of running text, whose rows are no pairs
Recall = Callable[[Callable[[], Tensor]], Tensor]  # gives what the function would compute, if it is kept


@dataclass(frozen=True)
class Objective:
    """The loss of a pair: DPO (Rafailov et al., arXiv 2305.18290) or IPO (Azar et al., arXiv 2310.12036).

    Ratios are (..., 2), of the chosen and of the rejected response: log p - log p_base. With label smoothing a share of the
    pairs is taken to be the wrong way round (Mitchell, 2023: conservative DPO). IPO counts a ratio per token, as TRL does.
    """

    kind: Literal["dpo", "ipo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def losses(self, ratios: Tensor, tokens: Tensor) -> Tensor:
        """The loss of every pair, (...); tokens: (..., 2) of the responses.

        >>> Objective("dpo").losses(torch.zeros(2), torch.ones(2))  # log 2
        tensor(0.6931)
        """
        margin = self._measure_margin(ratios, tokens)
        if self.kind == "ipo":
            return (margin - 1 / (2 * self.beta)).square()
        right, wrong = F.logsigmoid(self.beta * margin), F.logsigmoid(-self.beta * margin)
        return -(1 - self.label_smoothing) * right - self.label_smoothing * wrong

    def slopes(self, ratios: Tensor, tokens: Tensor) -> Tensor:
        """The derivatives of `losses` with respect to the two ratios, (..., 2)."""
        margin = self._measure_margin(ratios, tokens)
        if self.kind == "ipo":
            slope = 2 * (margin - 1 / (2 * self.beta))
            return torch.stack([slope, -slope], -1) / tokens.clamp(min=1)
        right, wrong = torch.sigmoid(self.beta * margin), torch.sigmoid(-self.beta * margin)
        slope = self.beta * (self.label_smoothing * right - (1 - self.label_smoothing) * wrong)
        return torch.stack([slope, -slope], -1)

    def _measure_margin(self, ratios: Tensor, tokens: Tensor) -> Tensor:
        each = ratios / tokens.clamp(min=1) if self.kind == "ipo" else ratios
        return each[..., 0] - each[..., 1]


class PreferenceTask(LanguageTask):
    """Implements `types.task.Task` over pairs of responses; a pair is an example and one target.

    Rows are as `text.responses` has them, two of every pair; the set `general` has rows of running text instead. The
    reference is the base: its losses on all rows are computed when they are first needed, or recalled.
    """

    rows_each, first_looks = 2, 1
    metrics = ("reward_accuracy", "reward_margin")

    def __init__(
        self,
        model: CohortModel,
        clients: Sequence[Responses],
        sets: Mapping[str, Responses],
        mixture: Mapping[str, float],
        objective: Objective,
        *,
        cache_mb: int = 0,
        recall: Recall = lambda compute: compute(),
    ) -> None:
        self.objective, self.recall = objective, recall
        super().__init__(model, clients, sets, mixture, cache_mb=cache_mb)

    @property
    def loss_key(self) -> Hashable:
        """See `CohortTask.loss_key`."""
        return super().loss_key, self.objective

    def make_like(self, clients: Sequence[Any]) -> PreferenceTask:
        """See `CohortTask.make_like`."""
        return PreferenceTask(self.model, clients, {}, {}, self.objective)

    def tokens(self, client: int) -> int:
        """Count the targets of the client: one a pair."""
        return self.examples(client)

    @functools.cached_property
    def reference(self) -> Tensor:
        """The base's summed loss of every row, (N,) float64."""
        return self.recall(self._score_base)

    @functools.cached_property
    def reference_here(self) -> Tensor:
        """The same on the device of the model."""
        return self.reference.to(self.model.device, widest(self.model.device))

    @torch.no_grad()
    def _score_base(self) -> Tensor:
        with self.without_folds():
            flat = self.init(self.seed).flat
            return self.fit_evaluation(self.compute_outputs, flat, torch.arange(len(self.ids)))

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Task.grad`: mean loss over each client's pairs (K,), gradient (K, P), pairs (K,).

        A first pass without gradients gives every row's loss, from which follows how much a token of each row counts in the
        second: what is then differentiated is a weighted sum of token losses, in any groups of rows.
        """
        rows = _take_both(step.to(params.device))
        t = self.tables
        places = t.first[rows.clients][:, None] + rows.rows  # (K, 2 B)
        real = t.mask[places] & rows.real[..., None]  # (K, 2 B, T)
        flat = params.detach().requires_grad_(torch.is_grad_enabled())
        nll = self._sum_losses(flat, rows, real.float())
        ratios = ((self.reference_here[places] - nll) * rows.real).unflatten(1, (-1, 2))  # (K, B, 2)
        tokens, there = real.sum(2).unflatten(1, (-1, 2)), step.real.to(params.device)
        pairs = there.sum(1)
        share = there / pairs.clamp(min=1)[:, None]
        loss = (self.objective.losses(ratios, tokens) * share).sum(1)
        if not flat.requires_grad:
            return loss, torch.zeros_like(flat), pairs
        counts = -(self.objective.slopes(ratios, tokens) * share[..., None]).flatten(1)  # of a row's loss, (K, 2 B)
        _, gradient = self.differentiate_groups(flat, rows, real * counts.to(flat)[..., None])
        return loss, gradient, pairs

    @torch.no_grad()
    def _sum_losses(self, flat: Tensor, step: Step, real: Tensor) -> Tensor:
        """Sum up the token losses of every row of a step, (K, B), with its dropout; real: (K, B, T)."""
        out = flat.new_zeros(real.shape[:2], dtype=widest(flat.device))
        for group in self.iterate_groups(step, real):
            each = self.compute_losses(flat, step, group)  # (K, b, T)
            out.scatter_(1, group.columns, (each * group.weight).sum(2, dtype=out.dtype))
        return out

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """See `types.task.Trainable`: of both rows of every pair."""
        return super().plan_groups([_take_both(step.on_host) for step in steps])

    def _compare(self, nll: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of pairs, (n,), and their ratios, (n, 2), from the summed losses of their rows (2 n,)."""
        ratios, tokens = (self.reference[rows] - nll).view(-1, 2), self.mask[rows].sum(1).view(-1, 2)
        return self.objective.losses(ratios, tokens), ratios

    def score_set(self, name: str, nll: Tensor, before: Tensor, rows: Tensor) -> Score:
        """See `LanguageTask.score_set`: of pairs, with the share that is ranked right, and how far the two are apart.

        Rewards are of whole responses, for IPO too, as TRL has them.
        """
        if name == GENERAL:
            return super().score_set(name, nll, before, rows)
        (losses, ratios), (start, _) = self._compare(nll, rows), self._compare(before, rows)
        margin = self.objective.beta * (ratios[:, 0] - ratios[:, 1])
        metrics = {"reward_accuracy": float((margin > 0).double().mean()), "reward_margin": float(margin.mean())}
        n = len(losses)
        return Score(float(losses.mean()), n, estimate_error(losses - start, torch.ones(n).double()), n, metrics)

    @torch.no_grad()
    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """See `types.task.Task.held_out`: the mean loss of each client's pairs."""
        owned, found = self.rows_by_set(), torch.full((len(params),), torch.nan, dtype=torch.float64)
        for i, name in enumerate(f"client/{k}" for k in clients.tolist()):
            if name in owned:
                found[i] = self._compare(self.score_pairs([(params[i], owned[name])]), owned[name])[0].mean()
        return found


def _take_both(step: Step) -> Step:
    """The step on rows instead of pairs: 2 n and 2 n + 1 of every pair n."""
    rows = (2 * step.rows[..., None] + torch.arange(2, device=step.rows.device)).flatten(1)
    real = step.real.repeat_interleave(2, 1)
    host = None if step.host is None else _take_both(step.host)
    return replace(step, rows=rows, real=real, host=host)
