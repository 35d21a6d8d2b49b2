"""Small tasks with known answers that drive the same local training, algorithms and engine as language models."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedfault.engine import Federation
from fedfault.local import LocalWork
from fedfault.registry import build
from fedfault.types import Adapter, Batch, Layout, Score, Site


@dataclass
class Quadratic:
    """f_i(x) = mean over examples of (x - b_i - e_ij)' H_i (x - b_i - e_ij) / 2 with H_i diagonal, in float64."""

    H: list[list[float]]  # (N, P)
    b: list[list[float]]  # (N, P)
    sizes: list[int]
    noise: float = 0.0
    start: float = 3.0
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout.of([Site("x", "full", (len(self.H[0]),))])
        self.Ht, self.bt = torch.tensor(self.H, dtype=torch.float64), torch.tensor(self.b, dtype=torch.float64)
        P, g = self.layout.size, torch.Generator().manual_seed(0)
        self.e = self.noise * torch.randn(len(self.H), max(self.sizes), P, generator=g, dtype=torch.float64)

    def examples(self, client: int) -> int:
        return self.sizes[client]

    def tokens(self, client: int) -> int:
        return 10 * self.sizes[client]

    def init(self, seed: int) -> Adapter:
        return Adapter(self.layout, torch.full((self.layout.size,), self.start, dtype=torch.float64))

    def grad(self, params: Tensor, clients: Tensor, batch: Batch, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert len(params) == len(clients) == len(batch.rows) == len(key)
        gap = params[:, None] - self.bt[clients][:, None] - self.e[clients[:, None], batch.rows]  # (K, B, P)
        real = batch.real.double()
        n = real.sum(1)
        loss = (0.5 * (self.Ht[clients][:, None] * gap**2).sum(-1) * real).sum(1) / n
        gradient = (self.Ht[clients][:, None] * gap * real[..., None]).sum(1) / n[:, None]
        return loss, gradient, (10 * n).long()

    def evaluate(self, adapter: Adapter) -> dict[str, Score]:
        loss = 0.5 * (self.Ht * (adapter.flat - self.bt) ** 2).sum(1)
        return {"validation": Score(float(loss.mean()), 100)}


class LowRank:
    """Linear regression through a LoRA pair and a bias trained in full: d_in 4, d_out 5, r 2, six clients that differ."""

    def __init__(self, clients: int = 6) -> None:
        self.layout = Layout.of([Site("w", "lora", (2, 4, 5)), Site("bias", "full", (5,))], scaling=2.0)
        g = torch.Generator().manual_seed(1)
        self.W0, target = torch.randn(2, 5, 4, generator=g)
        self.X, self.Y = [], []
        for k in range(clients):
            X = torch.randn(10 + 3 * k, 4, generator=g)
            self.X.append(X)
            self.Y.append(X @ (self.W0 + target + 0.3 * torch.randn(5, 4, generator=g)).T + 0.1 * k)

    def examples(self, client: int) -> int:
        return len(self.X[client])

    def tokens(self, client: int) -> int:
        return 5 * len(self.X[client])

    def init(self, seed: int) -> Adapter:
        flat = torch.zeros(self.layout.size)
        pair = self.layout.pair(flat, self.layout.sites[0])
        pair.A.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed))
        return Adapter(self.layout, flat)

    def _loss(self, flat: Tensor, X: Tensor, Y: Tensor) -> Tensor:
        W = self.W0 + Adapter(self.layout, flat).delta(self.layout.sites[0])
        return (((X @ W.T) + self.layout.part(flat, self.layout.sites[1]) - Y) ** 2).mean()

    def grad(self, params: Tensor, clients: Tensor, batch: Batch, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses, grads = [], []
        for k, rows, real, flat in zip(clients.tolist(), batch.rows, batch.real, params, strict=True):
            leaf = flat.detach().requires_grad_()
            loss = self._loss(leaf, self.X[k][rows[real]], self.Y[k][rows[real]])
            grads.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(grads), 5 * batch.real.sum(1)

    def evaluate(self, adapter: Adapter) -> dict[str, Score]:
        with torch.no_grad():
            losses = [float(self._loss(adapter.flat, X, Y)) for X, Y in zip(self.X, self.Y, strict=True)]
        return {"validation": Score(sum(losses) / len(losses), 100)}


def federation(task, algorithm: str = "fedavg", clients: int | None = None, **changes) -> Federation:
    """A federation over a toy; `work` takes LocalWork's fields, the rest Federation's."""
    N = clients or (len(task.X) if isinstance(task, LowRank) else len(task.H))
    work = LocalWork(
        **{"epochs": None, "steps": 5, "batch_size": 4, "lr": 0.1, "optimizer": "sgd", **changes.pop("work", {})}
    )
    given = {"total_clients": N, "cohort_size": N, "num_rounds": 5, **changes}
    return Federation(task=task, algorithm=build("algorithm", algorithm), work=work, **given)
