"""How long the passes of a task are: by the free memory of its device, or as a cache has it; shorter when it runs out."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.memory import COPIES, MARGIN, RECORDED, WORKING, PassCost, count_stored_bytes, find_free_bytes
from fedfault.errors import UserError, is_out_of_memory, read_first_line
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Room
from fedfault.types.task import Step

Found = TypeVar("Found")

# What a training pass on a CPU may hold in activations: 10,000 tokens of micro, 500 of SmolLM2-135M
ACTIVATION_BYTES = 2**30
EVALUATION_TOKENS = 2048  # in a forward pass without gradients: more would only leave the CPU's cache
MOST_EVALUATION_TOKENS = 65_536  # on a device with memory for more: it has been busy for long


class FittedTask(ABC):
    """The rows of a task, those of all clients first, and how many of them go through the model at once."""

    ids: Tensor  # (N, T) all rows, as the model reads them
    mask: Tensor  # (N, T) bool: positions that count
    lengths: Tensor  # (N,) tokens of every row that the model reads, without padding
    grouped: bool = False  # whether rows of a batch are as long as they are, see `grouping`
    rows_each: int = 1  # rows of a training example
    first_looks: int = 0  # forward passes of a step without a gradient, before the one with it

    def __init__(self, model: CohortModel, counts: list[int], seed: int) -> None:
        """counts: rows of each client; seed: of the model before training, where that is not the same for all."""
        self.model, self.counts, self.seed = model, counts, seed
        self.first = torch.tensor([0, *counts]).cumsum(0)[:-1]  # row of each client's first one
        self.room: Room | None = None
        self.free: int | None = None

    @abstractmethod
    def init(self, seed: int) -> Adapter:
        """Make the untrained adapter, (P,)."""

    @abstractmethod
    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Trainable`."""

    def held_bytes(self) -> int:
        """Estimate the bytes that a token leaves behind for the backward pass, from the model's shape."""
        c = self.model.model.config
        width, inner = c.hidden_size, getattr(c, "intermediate_size", None) or 4 * c.hidden_size
        size: int = next(self.model.model.parameters()).element_size()
        block, layers = 16 * width + 4 * inner, c.num_hidden_layers
        held = layers * width + block if self.model.recomputed else layers * block
        return int(held * size)

    def plan_passes(self) -> None:
        """Let the free memory of the device say how long passes are, where it is known. Once, when all rows are there."""
        self.free = find_free_bytes(self.model.device)
        if self.free is None or not any(self.counts):
            return
        cost, T, free = self.pass_cost, self.mask.shape[1], int(MARGIN * self.free)
        # Without gradients a layer's tensors are there at a time, and not those of all layers
        row = WORKING * cost.largest + cost.row // self.model.model.config.num_hidden_layers
        evaluated = min(MOST_EVALUATION_TOKENS, T * ((free - cost.fixed) // row))
        self.room = Room(T * max(1, cost.count_clients(free, 1)), max(T, evaluated))
        self.model.recordings.most = int(RECORDED * self.free) // (row // T + self.model.logit_bytes())

    @functools.cached_property
    def pass_cost(self) -> PassCost:
        """What a training pass takes, measured on the longest row of one client. A number in the cache costs nothing."""
        lengths = self.lengths[: sum(self.counts)]
        longest = int(lengths.argmax())
        client = int(torch.searchsorted(self.first, longest, right=True)) - 1
        step = Step(
            torch.tensor([client]),
            (longest - self.first[client][None, None]) // self.rows_each,
            torch.ones(1, 1, dtype=torch.bool),
        )
        flat = self.init(self.seed).flat[None]
        key = torch.zeros(1, dtype=torch.int64)  # as with dropout
        stored, largest = count_stored_bytes(self.model.model, lambda: self.grad(flat, replace(step, key=key)))
        return PassCost(self.model.head_bytes(), stored + WORKING * largest, COPIES * flat.nbytes, largest)

    def tokens_per_pass(self) -> int:
        """Compute how many tokens a training pass may take: by the device's memory, else by the model's shape."""
        return ACTIVATION_BYTES // self.held_bytes() if self.room is None else self.room.training

    def evaluation_tokens(self) -> int:
        """How many tokens a pass without gradients may take."""
        return EVALUATION_TOKENS if self.room is None else self.room.evaluation

    def clients_per_pass(self, batch_size: int) -> int:
        """See `BackboneTask`. In groups one row of each has to fit: `group_columns` adds more as far as they do."""
        rows = 1 if self.grouped else batch_size
        if self.free is not None and self.room is not None:
            return self.count_clients_in_memory(self.free, rows)
        return max(1, self.tokens_per_pass() // (rows * self.mask.shape[1]))

    def estimate_pass(self, clients: int, batch_size: int) -> int:
        """See `BackboneTask`: of groups of columns, which are there one at a time, the largest that may be."""
        if self.grouped:
            rows = max(clients, min(clients * batch_size, self.tokens_per_pass() // self.mask.shape[1]))
            batch_size = -(-rows // clients)
        return self.pass_cost.estimate(clients, batch_size)

    def count_clients_in_memory(self, free: int, batch_size: int) -> int:
        """Count the clients with so many of the longest rows each that fit into `free` bytes, less a margin.

        Raises `UserError` if one does not fit even without the margin.
        """
        cost = self.pass_cost
        if not cost.count_clients(free, batch_size):
            raise UserError(
                f"a training step of one client, {batch_size} x {self.mask.shape[1]:,} tokens, takes about "
                f"{cost.estimate(1, batch_size) / 1e9:,.1f} GB on {self.model.device}, where {free / 1e9:,.1f} GB are free; "
                "lower training.batch_size, model.max_length or model.lora.r_max, or choose a smaller model.name"
            )
        return max(1, cost.count_clients(int(MARGIN * free), batch_size))

    def fit_evaluation(self, run: Callable[..., Found], *given: Any) -> Found:
        """Return what `run(*given)` gives; when memory runs out it runs again with half as many tokens in a pass.

        Raises `UserError` when a pass has one row and there is not enough memory still.
        """
        while True:
            try:
                return run(*given)
            except (RuntimeError, MemoryError) as e:
                if self.room is None or not is_out_of_memory(e):
                    raise
                if self.room.evaluation <= self.mask.shape[1]:
                    raise UserError(
                        f"out of memory while one row of {self.mask.shape[1]:,} tokens is evaluated ({read_first_line(e)}); "
                        "lower model.max_length, or choose a smaller model.name"
                    ) from e
                self.room = self.room._replace(evaluation=self.room.evaluation // 2)
                self.model.recordings.forget()
