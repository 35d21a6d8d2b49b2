"""The protocol of what is learned (`Task`), one optimiser step of a cohort, and what probes may look at afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fedfault.records import Score
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import ExtraLoss, Pooled, Room, State, Trained, Uploads

Groups = tuple[tuple[int, int], ...]  # of a step's columns: how many, and how many tokens wide, short rows first

PART = 2**40  # how far apart the dropout streams of a step's columns are where it is cut: steps and layers are nearer


@dataclass(frozen=True)
class Step:
    """One optimiser step of K clients: the K x B examples that their gradients are taken on."""

    clients: Tensor  # (K,) ids
    rows: Tensor  # (K, B) positions among the client's own training examples
    real: Tensor  # (K, B) bool; False for padding, which counts for nothing
    key: Tensor | None = None  # (K,) int64: the random stream of each client's dropout; None without dropout
    extra_loss: ExtraLoss | None = None  # is differentiated too, but is no part of the loss that is returned
    host: Step | None = None  # the same step in the CPU's memory, where it was planned, if it is on another device
    groups: tuple[Groups, ...] = ()  # of each part it is taken in; none: rows are grouped by what this step has

    def to(self, device: torch.device) -> Step:
        """The step on a device, with the one it was planned as: who plans by it need not wait for the device."""
        if self.clients.device == device:
            return self
        key = None if self.key is None else self.key.to(device)
        host = self if self.host is None and self.clients.device.type == "cpu" else self.host
        clients, rows, real = (x.to(device) for x in (self.clients, self.rows, self.real))
        return replace(self, clients=clients, rows=rows, real=real, key=key, host=host)

    def cut(self, columns: slice, number: int = 0) -> Step:
        """The part of a step, by its number, that has these columns, with dropout that no other part has."""
        key = None if self.key is None else self.key + columns.start * PART
        host = None if self.host is None else self.host.cut(columns)
        rows, real, groups = self.rows[:, columns], self.real[:, columns], self.groups[number : number + 1]
        return replace(self, rows=rows, real=real, key=key, host=host, groups=groups)

    @property
    def on_host(self) -> Step:
        """The step in the CPU's memory."""
        return self.host or self.to(torch.device("cpu"))


class States(NamedTuple):
    """Hidden states of k models on the same blocks."""

    layers: Sequence[Tensor]  # after the embedding and after every block: (k, blocks, T, d) each
    mask: Tensor  # (blocks, T) bool: positions that predict a target


class TextLosses(NamedTuple):
    """The losses of texts of one client under one model, per target of each text."""

    members: np.ndarray  # (n,) of texts that it trains on
    others: np.ndarray  # (m,) of what it keeps back; m may be 0


class SecretLosses(NamedTuple):
    """The summed losses of made-up secrets under one model, all of one law."""

    planted: np.ndarray  # (k,) of k clients, in whose texts they stand
    decoys: np.ndarray  # (k,) that nobody has
    others: np.ndarray  # (m,) that nobody has either


class Served(NamedTuple):
    """A model as it is scored: the server's, (P,), and those that clients use in its place, (N, P), where they do."""

    adapter: Adapter
    personal: Adapter | None = None


class Continuations(NamedTuple):
    """The texts with which a model continues the first halves of n held-out blocks, or answers n prompts."""

    ids: Sequence[Sequence[int]]  # generated, by text: answers end where they end
    texts: Sequence[str]  # the same as text
    references: Sequence[str]  # the true second halves, or answers
    prompts: Sequence[str] = ()  # what was asked, where it was


class Trainable(Protocol):
    """The part of a task that local training needs."""

    @property
    def layout(self) -> Layout:
        """The layout of one client's trainable numbers in a row of P."""

    def examples(self, client: int) -> int:
        """Count the training examples of the client."""

    def tokens(self, client: int) -> int:
        """Count the target tokens of the client's training examples."""

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Per-client mean loss (K,), its gradient (K, P) and the target tokens it is a mean over (K,), at params (K, P).

        All three are on the device of params, where the step may be already; see `Step.to`.
        Inside `torch.no_grad()` the gradient is zero and costs nothing.
        """

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """Plan groups into which the rows of each of these steps (K, B) fit; none where all rows are as long."""


class Task(Trainable, Protocol):
    """The thing that is learned. The language-model task and the tests' quadratic task implement the same protocol."""

    room: Room | None  # how long passes are where the memory of a device says it; None where every start has the same

    def read(self, client: int) -> int:
        """Count the tokens of the client's training examples that the model reads."""

    def init(self, seed: int) -> Adapter:
        """Make the server's first adapter, (P,)."""

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Score one model (P,) on every evaluation set, by name; `client/ID` of personal (N, P) where that is given."""

    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        """Score several models as `evaluate` does one, all with the frozen weights as they are now folded."""

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """Compute the mean loss of each row of params (K, P) on what that client keeps back from training.

        clients: (K,) ids. (K,) float64, from the same examples every time; NaN for a client that keeps nothing back.
        """

    def text_losses(
        self, models: Sequence[Tensor] | None, clients: Sequence[int], most: int
    ) -> Sequence[TextLosses] | None:
        """Compute what texts of each client, at most so many of its training, lose under the model (P,) in its place.

        None for the models: that before training, nothing folded in, for all. None where there are no single texts.
        """

    def take_events(self) -> list[str]:
        """Take out what there is to say in a round's events of passes since they were last taken out."""

    def secret_losses(
        self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]
    ) -> Sequence[SecretLosses] | None:
        """Compute what made-up secrets lose under each model (P,), as it is folded: those of the clients in its place.

        None where no secrets were planted.
        """

    def states(self, params: Tensor | None, blocks: int) -> States | None:
        """Compute hidden states on the first of a fixed set of held-out blocks, under each row of params (k, P).

        None for params: of the model before training, k = 1, nothing folded in. None where there are no hidden states.
        """

    def attention(self, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """Compute attention weights on the same blocks, by layer: (k * blocks, heads, T, T). None without any."""

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """Continue at most that many fixed held-out blocks greedily by the model (P,). None where there is no text."""

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """Make the frozen weights the original ones plus `base`, LoRA site -> (d_out, d_in)."""

    def checksums(self) -> Mapping[str, int]:
        """Compute a number for each frozen weight, by name, that changes when a bit of it does."""


class Ablation(NamedTuple):
    """The model that a round would have made of some of its updates."""

    served: Served
    base: Mapping[str, Tensor]  # LoRA site -> (d_out, d_in) that is added to the frozen weight


@dataclass(frozen=True)
class FinishedRound:
    """The finished round as a probe may look at it; a probe changes nothing in it."""

    round: int
    seed: int
    task: Task
    before: State  # the server's state that the round started from
    after: State
    clients: Sequence[int]  # (K,) the cohort, by id
    start: Tensor  # (K, P) where each client started
    trained: Trained
    averages: Sequence[tuple[Uploads, Pooled]]  # what the aggregation was given and made of it
    halves: tuple[Tensor, Tensor] | None  # (K, P) each: gradients at the start on two disjoint draws of every client
    private: bool  # whether a part of every client's adapter stays with it
    good: Sequence[bool] = ()  # (K,) whose updates were finite, so that the server took them
    scores: Mapping[str, Score] = field(default_factory=dict)  # of the model after the round; none if it was not scored
    # (K,) bool, whose updates are taken -> the model of these alone; None where nobody may know
    ablate: Callable[[Sequence[bool]], Ablation] | None = None
    least: int = 1  # updates that the aggregation needs to be what it says


@contextmanager
def fold_for_uploads(m: FinishedRound) -> Iterator[list[Tensor]]:
    """Give the task, within the block, the frozen weights that the clients trained on; yields their models, (P,) each."""
    if m.after.base:
        m.task.fold(m.before.base)
    try:
        yield list(m.trained.adapter.flat)
    finally:
        if m.after.base:
            m.task.fold(m.after.base)


@dataclass(frozen=True)
class Measurements:
    """The numbers that a probe found in a round, by name; one that is not defined is absent."""

    probes: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, Sequence[float]] = field(default_factory=dict)  # name -> a number for each client, (K,)
    matrices: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)  # name -> (K, K)


@dataclass(frozen=True)
class Probe:
    """A measurement of the finished round: tensors in, floats out.

    measure: (finished round) -> measurements
    sparse: it costs forward passes, and is measured only in rounds that are evaluated
    gradients: it needs `FinishedRound.halves`
    of_machine: it measures the machine, so that two runs of one seed may differ in it
    public: it looks at the server's model and at texts that are no client's, and at nothing that clients hold or send
    provenance: what the manifest says of how it measures, by name, where numbers compare only if that is the same
    """

    measure: Callable[[FinishedRound], Measurements]
    sparse: bool = False
    gradients: bool = False
    of_machine: bool = False
    public: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)
