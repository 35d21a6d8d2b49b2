"""Local training of a cohort: the one place where tensors are mutated.

K clients are the rows of one (K, P) matrix under one `torch.optim` optimiser. Rows are sorted by their number of steps,
longest first, so the clients still at work are always a prefix:

    step      0   1   2   3   4
    client 3  x   x   x   x   x
    client 0  x   x   x               leaf = y[:3], then y[:2], then y[:1]
    client 7  x
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fedfault.errors import UserError
from fedfault.seeds import entropy, rng
from fedfault.types import Adapter, Batch, Task, Trained


@dataclass(frozen=True)
class LocalWork:
    """What a client does in a round; lengths in epochs over its data or in optimiser steps."""

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 8
    lr: float = 5e-4
    optimizer: str = "adamw"
    max_grad_norm: float | None = None
    weighting: str = "tokens"


@dataclass
class Passes:
    """How many clients go through the model at once; halved when memory runs out, which is an event of the round."""

    size: int
    events: list[str] = field(default_factory=list)

    def next(self, left: int) -> int:
        """Clients of the next pass when `left` remain: as few passes as fit, all about as large."""
        return -(-left // -(-left // self.size))

    def halve(self, error: Exception) -> None:
        """Half as many clients a pass; `UserError` when it is one already."""
        if self.size == 1:
            raise UserError(
                "out of memory with one client in a pass; lower training.batch_size or model.max_length"
            ) from error
        self.size //= 2
        self.events.append(f"out of memory: {self.size} clients in a pass from now on")


def plan(n: int, work: LocalWork, generator: np.random.Generator) -> np.ndarray:
    """A client's batches: (S, B) indices into its n examples, -1 where the last batch of an epoch is not full.

    Every epoch is a fresh permutation, cut into batches of B; nothing is dropped.
    """
    per_epoch = -(-n // work.batch_size)
    steps = work.steps or (work.epochs or 1) * per_epoch
    out = np.full((-(-steps // per_epoch), per_epoch * work.batch_size), -1)
    for epoch in out:
        epoch[:n] = generator.permutation(n)
    return out.reshape(-1, work.batch_size)[:steps]


def trainer(
    task: Task, work: LocalWork, *, seed: int, round: int, clients: Sequence[int], passes: Passes
) -> Callable[..., Trained]:
    """Bind `train(start)` to a cohort, its data and its random streams; start: (P,) for all, or (K, P)."""
    plans = [plan(task.examples(k), work, rng(seed, "batches", round, k)) for k in clients]
    keys = torch.tensor([entropy(seed, "dropout", round, k) % 2**62 for k in clients])
    longest_first = sorted(range(len(clients)), key=lambda i: (-len(plans[i]), i))

    def train(start: Adapter) -> Trained:
        K, P = len(clients), start.flat.shape[-1]
        y = start.flat.expand(K, P).clone()
        loss, tokens, norm = (torch.zeros(K, dtype=torch.float64) for _ in range(3))
        done = 0
        while done < K:
            rows = torch.tensor(longest_first[done : done + passes.next(K - done)])
            one = _Pass(task, work, [plans[i] for i in rows], torch.tensor(clients)[rows], keys[rows])
            try:
                y[rows] = one.run(y[rows])
            except (RuntimeError, MemoryError) as e:
                if not _out_of_memory(e):
                    raise
                passes.halve(e)
                continue
            loss[rows], tokens[rows], norm[rows] = one.loss, one.tokens, one.norm
            done += len(rows)
        steps = torch.tensor([len(p) for p in plans])
        return Trained(
            Adapter(start.layout, y), _weights(task, work, clients), steps, tokens.long(), loss / tokens, norm / steps
        )

    return train


def _weights(task: Task, work: LocalWork, clients: Sequence[int]) -> Tensor:
    """n_k: the size of the client's data set by the one weighting rule of the run."""
    if work.weighting == "uniform":
        return torch.ones(len(clients), dtype=torch.float64)
    size = task.tokens if work.weighting == "tokens" else task.examples
    return torch.tensor([float(size(k)) for k in clients], dtype=torch.float64)


def _out_of_memory(e: Exception) -> bool:
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(e)


class _Pass:
    """One trip of k clients, longest plan first, through all their steps."""

    def __init__(self, task: Task, work: LocalWork, plans: list[np.ndarray], clients: Tensor, keys: Tensor) -> None:
        self.task, self.work, self.clients, self.keys = task, work, clients, keys
        self.lengths = [len(p) for p in plans]
        longest = max(self.lengths)
        padded = [np.pad(p, ((0, longest - len(p)), (0, 0)), constant_values=-1) for p in plans]
        self.rows = torch.from_numpy(np.stack(padded))  # (k, S, B)
        self.loss, self.tokens, self.norm = (torch.zeros(len(plans), dtype=torch.float64) for _ in range(3))

    def run(self, start: Tensor) -> Tensor:
        """(k, P) -> (k, P): every client's parameters after its last step."""
        y = start.clone()
        optimizer = None
        at_work = [sum(n > s for n in self.lengths) for s in range(max(self.lengths))]  # clients in step s
        for k, steps in groupby(range(len(at_work)), key=at_work.__getitem__):
            leaf = y[:k].detach()  # a view: the optimiser writes into y
            optimizer = _optimizer(self.work, leaf, optimizer)
            for step in steps:
                leaf.grad = self._gradient(leaf, step)
                optimizer.step()
        return y

    def _gradient(self, leaf: Tensor, step: int) -> Tensor:
        """Raw gradient (k, P) of step `step`, each client clipped by its own norm."""
        k = len(leaf)
        rows = self.rows[:k, step]
        real = rows >= 0
        width = int(real.any(0).sum())  # a column that no client uses is not computed
        batch = Batch(rows[:, :width].clamp(min=0), real[:, :width])
        loss, gradient, tokens = self.task.grad(leaf, self.clients[:k], batch, self.keys[:k] + step)
        self.loss[:k] += loss.cpu() * tokens.cpu()
        self.tokens[:k] += tokens.cpu()
        norm = gradient.norm(dim=1)
        self.norm[:k] += norm.cpu()
        if self.work.max_grad_norm is not None:
            gradient.mul_((self.work.max_grad_norm / (norm + 1e-6)).clamp(max=1)[:, None])  # as clip_grad_norm_ has it
        return gradient


def _optimizer(work: LocalWork, leaf: Tensor, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    """The client optimiser on the rows still at work, with the state that those rows had."""
    after: torch.optim.Optimizer
    if work.optimizer == "sgd":
        after = torch.optim.SGD([leaf], lr=work.lr)
    else:
        after = torch.optim.AdamW([leaf], lr=work.lr, weight_decay=0.0, fused=leaf.device.type in ("cpu", "cuda"))
    if before is not None:
        for state in before.state.values():
            after.state[leaf] = {name: v[: len(leaf)] if v.ndim else v for name, v in state.items()}
    return after
