"""DP-SGD: every step of a client is a noisy sum of its examples' clipped gradients, one row of the cohort an example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fedfault.algebra import widest
from fedfault.privacy.budget import Budget
from fedfault.privacy.noise import clip_rows, draw_noise
from fedfault.types.delegating import DelegatingTrainable
from fedfault.types.task import Step, Trainable

NUMBERS = 2**25  # numbers of per-example gradients that are there at a time: 128 MiB
APART = 0.05  # relative: rounding of a backbone in bfloat16, which batches in another way
ROWS = 64  # examples of a pass, at most


class ExampleTask(DelegatingTrainable):
    """A `Trainable` whose gradients hide examples (Abadi et al., CCS 2016, algorithm 1), for K clients at once.

    g_k = (sum_{i in batch} clip_C(grad of example i) + z C xi) / L_k, with L_k the examples that are drawn on average:
    batch_size, or all n_k of a client that has fewer. K clients of B examples go through the model as K x B clients of one
    example each: their gradients are per-example gradients, of whatever model the cohort opens. Steps of which nobody has an
    example have noise like the others.
    """

    def __init__(
        self, inner: Trainable, budget: Budget, batch_size: int, trainable: Tensor | None, clients: Tensor
    ) -> None:
        """trainable: (K, P) bool of these clients (K,), see `Trainer`: other numbers take no part in the norm."""
        super().__init__(inner)
        self._budget, self._batch_size = budget, batch_size
        self._trainable, self._row = trainable, {k: i for i, k in enumerate(clients.tolist())}

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Trainable`: the loss is exact, and not for publication; the gradient (K, P) is noisy.

        Raises `RuntimeError` for what would be computed of examples without noise.
        """
        if step.key is None or step.extra_loss is not None or not torch.is_grad_enabled():
            raise RuntimeError("an algorithm asks for more than noisy gradients of its clients' examples")
        loss, tokens = params.new_zeros(len(params), dtype=widest(params.device)), torch.zeros_like(step.clients)
        total = torch.zeros_like(params)
        for k, each, gradient, n in self._iterate_examples(params, step, step.key):
            total.index_add_(0, k, clip_rows(gradient, self._budget.clip))
            loss.index_add_(0, k, each.to(loss) * n)
            tokens.index_add_(0, k, n)
        z, C = self._budget.release.noise, self._budget.clip
        noise = [draw_noise(params.shape[1], z * C, self._budget.secret, key) for key in step.key.tolist()]
        total += torch.stack(noise).to(total)
        lot = [min(self._batch_size, self.examples(k)) for k in step.on_host.clients.tolist()]
        return loss / tokens.clamp(min=1), total / torch.tensor(lot)[:, None].to(total), tokens

    def _iterate_examples(
        self, params: Tensor, step: Step, keys: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Passes over the examples of a step: clients' places (n,), losses (n,), gradients (n, P), target tokens (n,)."""
        entered = step.real.clone()
        entered[:, 0] = True  # who has none goes in with padding, so that every client is seen to start where it should
        places, columns = entered.nonzero(as_tuple=True)
        key = keys[places] + (columns + 1) * 2**40
        for some in torch.arange(len(places), device=places.device).split(
            max(1, min(ROWS, NUMBERS // params.shape[1]))
        ):
            k, b = places[some], columns[some]
            one = Step(step.clients[k], step.rows[k, b][:, None], step.real[k, b][:, None], key[some])
            each, gradient, n = self.inner.grad(params[k], one)
            real = step.real[k, b]
            each, gradient = each.where(real, 0.0), gradient.where(real[:, None], 0.0)
            if self._trainable is not None:
                rows = torch.tensor([self._row[client] for client in one.on_host.clients.tolist()])
                gradient = gradient.where(self._trainable[rows].to(gradient.device), 0.0)
            yield k, each, gradient, n


def check_examples(task: Trainable, at: Tensor, client: int, numbers: list[int]) -> str | None:
    """Say how gradients of examples taken side by side differ from those taken one by one, or that all are zero; or None.

    at: (P,) parameters; numbers: of some of the client's examples.
    """
    n = len(numbers)
    step = Step(torch.full((n,), client), torch.tensor(numbers)[:, None], torch.ones(n, 1, dtype=torch.bool))
    _, together, tokens = task.grad(at.expand(n, -1), step)
    alone = torch.cat([task.grad(at[None], _take_row(step, i))[1] for i in range(n)])
    batch = Step(step.clients[:1], step.rows.T, step.real.T)
    _, mean, _ = task.grad(at[None], batch)
    weighted = (tokens.to(together) @ together / tokens.sum().to(together))[None]
    for name, a, b in (("each alone", together, alone), ("their batch", weighted, mean)):
        gap, size = float((a - b).norm(dim=1).max()), float(b.norm(dim=1).max())
        if not gap <= APART * size:
            return f"gradients of single examples are wrong: {gap:.3g} away from {name}, which has norm {size:.3g}"
    if not bool(together.any()):
        return "gradients of all examples are zero, so that nothing but noise would be learned"
    return None


def _take_row(step: Step, i: int) -> Step:
    return replace(step, clients=step.clients[i : i + 1], rows=step.rows[i : i + 1], real=step.real[i : i + 1])
