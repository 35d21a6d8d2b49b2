"""Small tasks with known answers that drive the same local training, algorithms and engine as language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedfault.records import RoundRecord, Score
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import Room, State, Uploads
from fedfault.types.task import Groups, Probe, Served, Step


class Wordless:
    """What a task says of hidden states, text and memory where it has none."""

    room: Room | None = None

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """Its rows have no lengths."""
        return ()

    def tokens(self, client: int) -> int:
        raise NotImplementedError

    def read(self, client: int) -> int:
        return self.tokens(client)

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        return torch.full((len(params),), torch.nan, dtype=torch.float64)

    def states(self, params: Tensor | None, blocks: int) -> None:
        return None

    def attention(self, params: Tensor, blocks: int) -> None:
        return None

    def continuations(self, flat: Tensor, blocks: int) -> None:
        return None

    def text_losses(self, models: Sequence[Tensor] | None, clients: Sequence[int], most: int) -> None:
        return None

    def take_events(self) -> list[str]:
        return []

    def secret_losses(self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]) -> None:
        return None

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        raise NotImplementedError

    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        return [self.evaluate(*model) for model in models]


@dataclass
class Quadratic(Wordless):
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

    def fold(self, base: Mapping[str, Tensor]) -> None:
        assert not base

    def checksums(self) -> dict[str, int]:
        return {}

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        clients = step.clients
        assert len(params) == len(clients) == len(step.rows)
        gap = params[:, None] - self.bt[clients][:, None] - self.e[clients[:, None], step.rows]  # (K, B, P)
        real = step.real.double()
        n = real.sum(1)
        loss = (0.5 * (self.Ht[clients][:, None] * gap**2).sum(-1) * real).sum(1) / n
        gradient = (self.Ht[clients][:, None] * gap * real[..., None]).sum(1) / n[:, None]
        return loss, gradient, (10 * n).long()

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        loss = 0.5 * (self.Ht * (adapter.flat - self.bt) ** 2).sum(1)
        return {"validation": Score(float(loss.mean()), 100)}


class Pulled(Wordless):
    """Four clients that each pull all numbers of an adapter towards a point of their own.

    The adapter is that of 4 layers, q and v, d = k = 128 at rank 8: 4 * 2 * 8 * (128 + 128) = 16,384 numbers or 65,536
    bytes, half of them in A; and a `head` of so many numbers in full.
    """

    def __init__(self, head: int = 0) -> None:
        sites = [Site(f"{i}.{name}", "lora", (8, 128, 128)) for i in range(4) for name in "qv"]
        self.layout = Layout.of([*sites, Site("head", "full", (head,))] if head else sites, scaling=2.0)
        self.points = torch.randn(4, self.layout.size, generator=torch.Generator().manual_seed(0))

    def examples(self, client: int) -> int:
        return 1

    def tokens(self, client: int) -> int:
        return 1

    def init(self, seed: int) -> Adapter:
        return Adapter(self.layout, torch.zeros(self.layout.size))

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        gap = params - self.points[step.clients]
        return gap.pow(2).mean(1), gap, torch.ones(len(params), dtype=torch.int64)

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        return {"validation": Score(0.0, 1)}

    def fold(self, base: Mapping[str, Tensor]) -> None:
        pass

    def checksums(self) -> dict[str, int]:
        return {}


class LowRank(Wordless):
    """Linear regression through a LoRA pair and a bias trained in full: d_in 4, d_out 5, r 2, six clients that differ."""

    def __init__(self, clients: int = 6, r: int = 2) -> None:
        self.layout = Layout.of([Site("w", "lora", (r, 4, 5)), Site("bias", "full", (5,))], scaling=2.0)
        g = torch.Generator().manual_seed(1)
        self.W0, target = torch.randn(2, 5, 4, generator=g)
        self.W = self.W0.clone()  # with what aggregations folded in
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

    def fold(self, base: Mapping[str, Tensor]) -> None:
        self.W = self.W0 + base["w"] if "w" in base else self.W0.clone()

    def checksums(self) -> dict[str, int]:
        return {"w": int(self.W.view(torch.int32).sum())}

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        own = zip(params, clients.tolist(), strict=True)
        return torch.tensor([float(self._loss(flat, self.X[k], self.Y[k])) for flat, k in own], dtype=torch.float64)

    def _out(self, flat: Tensor, X: Tensor) -> Tensor:
        W = self.W + Adapter(self.layout, flat).delta(self.layout.sites[0])
        out: Tensor = (X @ W.T) + self.layout.part(flat, self.layout.sites[1])
        return out

    def _loss(self, flat: Tensor, X: Tensor, Y: Tensor) -> Tensor:
        loss: Tensor = ((self._out(flat, X) - Y) ** 2).mean()
        return loss

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        X = [self.X[k][rows] for k, rows in zip(step.clients.tolist(), step.rows, strict=True)]
        Y = [self.Y[k][rows] for k, rows in zip(step.clients.tolist(), step.rows, strict=True)]
        leaf = params.detach().requires_grad_(torch.is_grad_enabled())
        losses = [self._loss(flat, x[real], y[real]) for flat, x, y, real in zip(leaf, X, Y, step.real, strict=True)]
        total = torch.stack(losses).sum()
        if step.extra_loss is not None:

            def see(params: Tensor, at: Tensor | None = None) -> Tensor:
                rows = range(len(X)) if at is None else at.tolist()
                out = torch.stack([self._out(flat, X[i]) for flat, i in zip(params, rows, strict=True)])
                return out * step.real[list(rows), :, None]  # zero for padding, as language models have it

            total = total + step.extra_loss(see(leaf), torch.no_grad()(see)).sum()
        gradient = torch.autograd.grad(total, leaf)[0] if leaf.requires_grad else torch.zeros_like(leaf)
        return torch.stack(losses).detach(), gradient, 5 * step.real.sum(1)

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        with torch.no_grad():
            models = {"validation": adapter.flat.expand(len(self.X), -1)}
            models |= {} if personal is None else {"personal": personal.flat}
            losses = {
                name: [float(self._loss(flat, X, Y)) for flat, X, Y in zip(rows, self.X, self.Y, strict=True)]
                for name, rows in models.items()
            }
        return {name: Score(sum(each) / len(each), 100) for name, each in losses.items()}


Part = Any  # a name, a (name, options) pair, or a built component


def federation(
    task: Any, algorithm: Part = "fedavg", aggregation: Part = "fedit", clients: int | None = None, **changes: Any
) -> Federation:
    """A federation over a toy; `work` takes LocalWork's fields, the rest Federation's."""
    N = clients or (len(task.X) if isinstance(task, LowRank) else len(task.H))
    work = LocalWork(
        **{"epochs": None, "steps": 5, "batch_size": 4, "lr": 0.1, "optimizer": "sgd", **changes.pop("work", {})}
    )
    given = {"total_clients": N, "cohort_size": N, "num_rounds": 5, **changes}
    parts = {"algorithm": _build_part("algorithm", algorithm), "aggregation": _build_part("aggregation", aggregation)}
    return Federation(task=task, **parts, work=work, **given)


def run_rounds(fed: Federation, state: State | None = None) -> list[tuple[State, RoundRecord]]:
    """The state after every round and its record, from the start or from a state on."""
    return list(rounds(fed, state or begin(fed)))


def run_to_end(fed: Federation, state: State | None = None) -> tuple[State, list[RoundRecord]]:
    """The last state and all records, from the start or from a state on."""
    states, records = zip(*run_rounds(fed, state), strict=True)
    return states[-1], list(records)


def run_two_clients(
    algorithm: Part,
    *,
    rounds: int = 1,
    steps: int | None = 1,
    H: tuple[float, float] = (1.0, 1.0),
    sizes: tuple[int, int] = (4, 4),
) -> list[float]:
    """The server's models, or those that clients keep, after some rounds of SGD with lr 0.1 from 3 on.

    The clients have f_0(x) = H_0 x^2 / 2 and f_1(x) = H_1 (x - 4)^2 / 2.
    steps: of each client in a round; None for one pass over its examples in batches of four. Four decimal places.
    """
    task = Quadratic([[H[0]], [H[1]]], [[0.0], [4.0]], list(sizes))
    work = {"steps": steps} if steps else {"steps": None, "epochs": 1}
    fed = federation(task, algorithm, num_rounds=rounds, work=work)
    state, _ = run_to_end(fed)
    models, kept = list(fed.algorithm.models(state).values()), fed.algorithm.personal(state)
    rows = [x.flat for x in models] if models else [state.adapter.flat] if kept is None else list(kept.flat)
    return [round(x.item(), 4) for x in rows]


def combine_two_clients(aggregation: Part, ranks: tuple[int, int] = (1, 1)) -> float:
    """The weight that an aggregation makes of two clients of equal weight: B A as one number, with what it folds.

    Client 0 has B A = 2 * 1 and client 1 has 4 * 3; a client of rank 2 has a second slice, 6 * 4.
    """
    layout = Layout.of([Site("w", "lora", (max(ranks), 1, 1))])
    flat = torch.zeros(2, layout.size, dtype=torch.float64)
    A, B = layout.pair(flat, layout.sites[0])  # (2, r, 1), (2, 1, r)
    for k, (a, b) in enumerate((([1.0, 4.0], [2.0, 6.0]), ([3.0, 4.0], [4.0, 6.0]))):
        A[k, : ranks[k], 0], B[k, 0, : ranks[k]] = torch.tensor(a[: ranks[k]]), torch.tensor(b[: ranks[k]])
    before = Adapter(layout, torch.zeros(layout.size, dtype=torch.float64))
    got = Uploads(before, Adapter(layout, flat), torch.ones(2).double(), torch.tensor(ranks), round=1, seed=0)
    pooled = _build_part("aggregation", aggregation).combine(got)
    folded = sum(float(pair.B @ pair.A) for pair in pooled.fold.values())
    return round(float(pooled.adapter.delta(layout.sites[0])) + folded, 4)


def count_bytes(
    algorithm: Part = "fedavg", aggregation: Part = "fedit", task: Any = None, **changes: Any
) -> list[list[tuple[int, int, int]]]:
    """(client, bytes up, bytes down) of every round, two unless told otherwise, of an adapter of 65,536 bytes."""
    given = {"clients": 4, "num_rounds": 2, "work": {"steps": 1}, **changes}
    fed = federation(task or Pulled(), algorithm, aggregation, **given)
    return [[(c.client, c.bytes_up, c.bytes_down) for c in r.clients] for _, r in run_rounds(fed)][1:]


def measure_round(probe: Probe, *parts: Any, **changes: Any) -> RoundRecord:
    """The record of the only round of a federation over a toy, with what this probe measures of it."""
    fed = federation(*parts, **{"num_rounds": 1, "probes": {"one": probe}, **changes})
    return run_rounds(fed)[-1][1]


def _build_part(kind: str, what: Part) -> Any:
    if isinstance(what, str):
        return build(kind, what)
    return build(kind, what[0], **what[1]) if isinstance(what, tuple) else what
