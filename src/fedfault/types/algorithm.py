"""Algorithms and aggregations: what crosses the network, what outlives a round, and the functions in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fedfault.types.adapter import Adapter, Layout, Pair

if TYPE_CHECKING:
    from torch import Tensor

    from fedfault.scheduling import Memory


# What crosses the network, by name: adapters and scalars, one row a client. The engine weighs it.
Message = Mapping[str, Any]


class Room(NamedTuple):
    """How many tokens fit into a pass, where the memory of a device says it."""

    training: int
    evaluation: int  # without gradients


@dataclass(frozen=True)
class State:
    """The state that outlives a round: a checkpoint is this and nothing else."""

    adapter: Adapter
    round: int = 0
    memory: Mapping[str, Adapter] = field(default_factory=dict)  # the server's own variables
    clients: Mapping[str, Adapter] = field(default_factory=dict)  # what clients keep at home: flat (N, P), a row each
    weights: tuple[float, ...] = ()  # (N,) the one weighting rule, for all clients
    ranks: tuple[int, ...] = ()  # (N,) the largest LoRA rank that each client trains; a scheduler may assign less
    seen: tuple[int, ...] = ()  # (N,) the last round whose model each client was sent, 0 for none
    stored: tuple[int, ...] = ()  # (N,) the last round whose work each client remembers, 0 for none
    # LoRA site -> (d_out, d_in) added to the frozen weight so far
    base: Mapping[str, Tensor] = field(default_factory=dict)
    folds: tuple[int, ...] = ()  # (round,) bytes of what each round added to the frozen weights
    last: Adapter | None = None  # the server's adapter before the last round
    # Set where the memory of a device chose them, or ran out, so that a resumed run takes the same passes
    clients_per_pass: int | None = None
    room: Room | None = None
    # (V, P) the models of earlier rounds that asynchronous clients at work started from, by round
    versions: Adapter | None = None
    plans: Mapping[str, Memory] = field(default_factory=dict)  # what rank scheduler, clock and selection remember


@dataclass(frozen=True)
class Trained:
    """The result of local training of a cohort of K clients; rows are in the order of the cohort."""

    adapter: Adapter  # (K, P)
    weight: Tensor  # (K,) the client's weight in every average: tokens, samples or one, by federation.weighting
    num_steps: Tensor  # (K,) optimiser steps
    num_tokens: Tensor  # (K,) target tokens trained on
    loss: Tensor  # (K,) token-weighted mean training loss over the round's steps
    grad_norm: Tensor  # (K,) mean norm of the raw gradient before clipping
    # (K, P) mean over the steps of the clipped gradient, before it is multiplied or anything is added to it
    mean_grad: Tensor | None = None
    drift: Tensor | None = None  # (K,) mean over the steps of |y - x|^2, in the numbers of the adapter


# (y (k, P), x (k, P), rows (k,)) -> (k, P): y are the parameters of the clients still at work, x where they started, rows
# their places in the cohort. What comes back is added to the gradient, or to the direction of the optimiser's step.
Pull = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class See(Protocol):
    """What other parameters make of the batch of a step, without gradient and dropout."""

    def __call__(self, params: Tensor, at: Tensor | None = None) -> Tensor:
        """Compute representations (k, B, d) under params (k, P); of the rows `at` (k,) of the pass, where not of all."""


# (z (k, B, d), see, rows (k,)) -> (k,): a further loss of each client on the representations z of its batch, zero for
# padding
Contrast = Callable[["Tensor", See, "Tensor"], "Tensor"]


ExtraLoss = Callable[["Tensor", See], "Tensor"]  # the same with the rows known

# (y (k, P), rows (k,)) -> the point (k, P) at which a step takes gradients in the place of y, and the share (k, 1) of y
Mixture = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


@dataclass(frozen=True)
class ExtraTerms:
    """The terms that an algorithm adds to the plain local training of its clients. Frozen numbers stay whatever is added.

    gradient: is added to the clipped gradient, before the optimiser
    step: a direction; after every step of the optimiser y <- y - lr * step(y, x, rows)
    loss: a further loss of each client, which is differentiated with its own and clipped with it
    mixture: gradients are taken at share * y + what does not move; clipped, they are multiplied by the share (chain rule)
    """

    gradient: Pull | None = None
    step: Pull | None = None
    loss: Contrast | None = None
    mixture: Mixture | None = None


PLAIN = ExtraTerms()


class Train(Protocol):
    """Local training, bound to a cohort of K clients, its data and its random streams: the one place that mutates."""

    weight: Tensor  # (K,) see `Trained.weight`

    @property
    def lr(self) -> float:
        """The learning rate of this round. Raises `UserError` where numbers have several."""

    def __call__(self, start: Adapter, extra: ExtraTerms = PLAIN, *, mean_grad: bool = False) -> Trained:
        """Train from `start`, (P,) for all or (K, P); `mean_grad` asks for `Trained.mean_grad`."""

    def gradient(self, at: Adapter) -> Adapter:
        """Every client's gradient over all its examples, clipped, without dropout: (P,) or (K, P) -> (K, P)."""

    def loss(self, at: Adapter) -> Tensor:
        """Every client's mean loss on its first examples, the same ones in every round: (P,) or (K, P) -> (K,)."""


Average = Callable[[Adapter, "Tensor"], Adapter]  # (adapters (K, P), weight (K,)) -> (P,), by federation.aggregation
Server = Callable[[State, Message, Average], State]

# What an aggregation, and in the last lines schedulers, draws, local steps and privacy, do that a step may not stand
TRAITS = {
    "refactors": "gives the numbers of the adapter another meaning in every round",
    "folds": "adds to the frozen weights",
    "alternates": "trains one factor in odd and the other in even rounds",
    "private": "leaves a factor with each client",
    "reweighs": "has weights of its own",
    "prunes": "lowers the ranks of clients while the run goes on",
    "robust": "takes a location of what clients send that is no weighted mean",
    "unequal ranks": "lets clients train different numbers",
    "draws by size": "draws large clients more often, which the weights of an average have to make up for",
    "asynchronous": "takes in updates that started from different models of the server",
    "draws by reports": "draws clients by what they reported, with chances that nobody knows",
    "two rates": "lets LoRA's factors learn at different rates",
    "pairs": "learns which of two responses is the better one",
    "accumulates": "takes a step's gradient from parts of its batch, weighed by their targets",
    "hides clients": "lets the server see a noisy average of clipped changes and nothing else",
    "hides examples": "lets clients see noisy gradients of clipped examples and nothing else",
}


@dataclass(frozen=True)
class Standing:
    """A server's step that says what it stands: see `stands`."""

    step: Server
    traits: frozenset[str]

    def __call__(self, state: State, got: Message, average: Average) -> State:
        """The step itself."""
        return self.step(state, got, average)


def stands(*traits: str) -> Callable[[Server], Standing]:
    """Decorator: a server's step remains right where the aggregation has these traits; it refuses all others.

    It belongs to the step and not to the algorithm, so that an algorithm with another step stands nothing until somebody
    has thought about it. Raises `ValueError` for a name that is not in `TRAITS`.

    >>> @stands("alternates", "reweighs")
    ... def server(state, got, average):
    ...     return state
    >>> sorted(server.traits)
    ['alternates', 'reweighs']
    """
    if unknown := set(traits) - set(TRAITS):
        raise ValueError(f"no trait {', '.join(sorted(unknown))}; the traits are {', '.join(TRAITS)}")
    return lambda step: Standing(step, frozenset(traits))


def _send_adapter(state: State) -> Message:
    return {"x": state.adapter}


def _no_memory(adapter: Adapter) -> Mapping[str, Adapter]:
    return {}


def _no_personal(state: State) -> Adapter | None:
    return None


def _one_model(state: State) -> Mapping[str, Adapter]:
    return {}


def _nothing_wrong(state: State) -> str | None:
    return None


@dataclass(frozen=True)
class Algorithm:
    """Pure functions in the order of a paper's pseudo-code; the engine owns the loop.

    client: (received, memory, train) -> (sent, memory); `sent["n"]` is the weight of each client, (K,)
    server: (state, got, average) -> state, with `got` stacked over the cohort: adapters (K, P), scalars (K,)
    broadcast: (state) -> message to every client; of an adapter (N, P) or numbers (N,) each gets its own row
    init: (adapter) -> server memory;  init_client: (adapter) -> one client's memory before it first takes part
    whole: names in a client's memory that are models of it: kept as it trained them, where of other numbers those beyond the
        rank that it trained with stay as they were
    personal: (state) -> the model that each client uses, (N, P), where that is not the server's
    models: (state) -> the models of the server by name, each (P,), where clients use several; the adapter is their mean
    wrong: (state) -> a sentence if an invariant of the algorithm does not hold
    refuses: trait -> the reason why the algorithm cannot be combined with what has it (see `TRAITS`). What the server's
        step does not say that it `stands` is refused without a reason too
    """

    client: Callable[[Message, Mapping[str, Adapter], Train], tuple[Message, Mapping[str, Adapter]]]
    server: Server
    broadcast: Callable[[State], Message] = _send_adapter
    init: Callable[[Adapter], Mapping[str, Adapter]] = _no_memory
    init_client: Callable[[Adapter], Mapping[str, Adapter]] = _no_memory
    whole: frozenset[str] = frozenset()
    personal: Callable[[State], Adapter | None] = _no_personal
    models: Callable[[State], Mapping[str, Adapter]] = _one_model
    wrong: Callable[[State], str | None] = _nothing_wrong
    refuses: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, trait: str) -> str | None:
        """Say as a clause why the algorithm cannot be combined with what has this trait; None if it can."""
        if trait in self.refuses:
            return self.refuses[trait]
        if isinstance(self.server, Standing) and trait in self.server.traits:
            return None
        return (
            f"the algorithm does not say that it stands this; where it does, its server's step needs @stands({trait!r})"
        )


class Uploads(NamedTuple):
    """The part of a round that an aggregation sees."""

    before: Adapter  # (P,) the server's adapter, which the round started from
    sent: Adapter  # (K, P) the clients' adapters; slices beyond a client's rank are zero
    weight: Tensor  # (K,)
    ranks: Tensor  # (K,) int64
    round: int
    seed: int
    clients: tuple[int, ...] = ()  # (K,) their ids; none: 0, 1, ...


class Pooled(NamedTuple):
    """The result of an aggregation."""

    adapter: Adapter  # (P,)
    # LoRA site -> B (d_out, R) and A (R, d_in) whose product is added to the frozen weight
    fold: Mapping[str, Pair] = {}
    weight: Tensor | None = None  # (K,) the weights that it took; None for those of the clients


def _everything(layout: Layout, round: int) -> Tensor | None:
    return None


def _nothing(layout: Layout) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Aggregation:
    """A rule by which adapters become one, orthogonal to the algorithm.

    combine: (uploads) -> pooled
    trained: (layout, round) -> (P,) bool, what is trained and sent in a round; None for all of it
    private: (layout) -> (P,) bool, what never leaves a client; None for nothing
    in_turn: in every round clients train what is private in the first half of their steps, and the rest in the second
    known: (layout) -> (P,) bool, what clients draw from the seed instead of receiving it; None for nothing
    penalty: (layout, y (k, P), ranks (k,)) -> (k, P), a gradient that every client adds to its own
    new_ranks: (layout, received (K, P), trained (K, P), ranks (K,)) -> ranks (K,), at most what they were
    traits: keys of `TRAITS`
    is_mean: with equal ranks it gives the weighted mean of the factors, bit for bit
    shrinks: why a round without any training makes the model smaller where ranks differ; empty where it changes nothing
    weighs: of a `robust` one, whether clients count by their weights in it, and not alike
    tolerates: of a `robust` one, (K) -> how many of K clients may send anything without carrying the model away
    trusted: the one client on whose honesty it rests, if there is one
    least: clients a round that it needs to be what it says
    refuses: model.lora.init -> as a clause, why adapters may not start like that
    """

    combine: Callable[[Uploads], Pooled]
    trained: Callable[[Layout, int], Tensor | None] = _everything
    private: Callable[[Layout], Tensor | None] = _nothing
    in_turn: bool = False
    known: Callable[[Layout], Tensor | None] = _nothing
    penalty: Callable[[Layout, Tensor, Tensor], Tensor] | None = None
    new_ranks: Callable[[Layout, Tensor, Tensor, Tensor], Tensor] | None = None
    traits: frozenset[str] = frozenset()
    is_mean: bool = False
    shrinks: str = ""
    weighs: bool = False
    tolerates: Callable[[int], int] | None = None
    trusted: int | None = None
    least: int = 1
    refuses: Mapping[str, str] = field(default_factory=dict)
