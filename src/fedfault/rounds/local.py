"""The local work of clients: how long it is, in which batches, how many clients go through the model at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedfault.errors import UserError, read_first_line
from fedfault.saying import Say, say_nothing
from fedfault.types.task import Trainable


@dataclass(frozen=True)
class LocalWork:
    """The local work of a client in a round; its length is in epochs over its data or in optimiser steps."""

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 8  # examples of a step
    parts: int = 1  # that a step goes through the model in, one after another
    lr: float = 5e-4  # of all numbers but LoRA's B
    lr_ratio: float = 1.0  # of B's learning rate to it
    optimizer: str = "adamw"
    max_grad_norm: float | None = None
    weighting: str = "tokens"
    weight_decay: float = 0.0  # of AdamW, decoupled
    betas: tuple[float, float] = (0.9, 0.999)

    @property
    def part_size(self) -> int:
        """Examples of a client that go through the model at once."""
        return self.batch_size // self.parts

    def cut_columns(self, width: int) -> list[slice]:
        """Cut a batch of so many columns into the parts in which it goes through the model."""
        size = self.part_size if self.parts > 1 else max(1, width)
        return [slice(at, at + size) for at in range(0, width, size)]


@dataclass
class Passes:
    """How many clients go through the model at once; halved when memory runs out, which is an event of the round."""

    size: int
    events: list[str] = field(default_factory=list)
    need: str = ""  # what a pass of one client takes, for the message when that is too much
    halved: bool = False
    tell: Say = say_nothing  # is told which clients are at work, and on which step

    def next(self, left: int) -> int:
        """Clients of the next pass when `left` remain: as few passes as fit, all about as large."""
        return -(-left // -(-left // self.size))

    def halve(self, error: Exception) -> None:
        """Half as many clients a pass; `UserError` when it is one already."""
        if self.size == 1:
            raise UserError(
                f"out of memory with one client in a pass{self.need and f', which {self.need}'}; lower training.batch_size, "
                f"model.max_length or model.lora.r_max ({read_first_line(error)})"
            ) from error
        self.size, self.halved = self.size // 2, True
        self.events.append(f"out of memory: {self.size} clients in a pass from now on")


def count_steps(n: int, work: LocalWork) -> tuple[int, float]:
    """Optimiser steps of a client with n examples in a round, and how many times it goes through them.

    >>> count_steps(10, LocalWork(epochs=2, batch_size=4)), count_steps(10, LocalWork(steps=9, batch_size=4))
    ((6, 2.0), (9, 3.0))
    """
    per_epoch = -(-n // work.batch_size)
    steps = work.steps or (work.epochs or 1) * per_epoch
    return steps, steps / per_epoch


def plan_batches(n: int, work: LocalWork, generator: np.random.Generator) -> np.ndarray:
    """A client's batches: (S, B) indices into its n examples, -1 where the last batch of an epoch is not full.

    Every epoch is a fresh permutation, cut into batches of B; nothing is dropped.
    """
    per_epoch, (steps, _) = -(-n // work.batch_size), count_steps(n, work)
    out = np.full((-(-steps // per_epoch), per_epoch * work.batch_size), -1)
    for epoch in out:
        epoch[:n] = generator.permutation(n)
    return out.reshape(-1, work.batch_size)[:steps]


def cut_batches(batches: np.ndarray, share: float) -> np.ndarray:
    """The first ceil(share * S) of a client's S batches (S, B), for a client that gets no further.

    Raises `UserError` for a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"effort {share} of a client; a share of its steps is above 0 and at most 1, and a client that gets nothing "
            "done is left out of the cohort"
        )
    return batches[: max(1, math.ceil(round(share * len(batches), 6)))]  # 11/20 of 100 is 55, not 56


def weigh_clients(task: Trainable, weighting: str, clients: Sequence[int]) -> Tensor:
    """n_k: the size of a client's data set by the one weighting rule of the run, (K,); 0 for a client without data."""
    size = task.tokens if weighting == "tokens" else task.examples
    sizes = torch.tensor([float(size(k)) for k in clients], dtype=torch.float64)
    return sizes.sign() if weighting == "uniform" else sizes
