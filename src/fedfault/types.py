"""The nouns. Nothing here imports torch, so that records, detectors and reports work without it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from fedfault.records import Score

if TYPE_CHECKING:
    from torch import Tensor

    from fedfault.scheduling import Memory


@dataclass(frozen=True)
class Site:
    """One trainable place in the model: a LoRA pair on a module, or one parameter trained in full.

    A `lora` site has shape (r, d_in, d_out); its numbers are A (r, d_in), then B (d_out, r).
    A `full` site has the shape of its parameter.
    """

    name: str
    kind: Literal["lora", "full"]
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def parts(self) -> tuple[int, ...]:
        """How many numbers each of its tensors holds: A and B, or the one parameter."""
        if self.kind == "full":
            return (math.prod(self.shape),)
        r, d_in, d_out = self.shape
        return (r * d_in, d_out * r)

    @property
    def size(self) -> int:
        """How many numbers the site holds."""
        return sum(self.parts)


class Pair(NamedTuple):
    """The two LoRA factors of a site; the weight update is scaling * B @ A."""

    A: Tensor  # (..., r, d_in)
    B: Tensor  # (..., d_out, r)


@dataclass(frozen=True)
class Layout:
    """Where every trainable tensor sits in the flat row of P numbers, and the one LoRA scaling that all clients share.

    >>> Layout.of([Site("q", "lora", (2, 3, 5)), Site("norm", "full", (4,))], scaling=2.0).size
    20
    """

    sites: tuple[Site, ...]
    scaling: float = 1.0

    @classmethod
    def of(cls, sites: Iterable[Site], scaling: float = 1.0) -> Layout:
        """Lay the sites out one behind the other."""
        placed, offset = [], 0
        for s in sites:
            placed.append(dataclasses.replace(s, offset=offset))
            offset += s.size
        return cls(tuple(placed), scaling)

    @property
    def size(self) -> int:
        """P, the length of the row."""
        return sum(s.size for s in self.sites)

    @property
    def lora(self) -> tuple[Site, ...]:
        """The LoRA sites."""
        return tuple(s for s in self.sites if s.kind == "lora")

    def part(self, flat: Tensor, site: Site) -> Tensor:
        """The numbers of a full site as a view: flat (..., P) -> (..., *shape)."""
        part: Tensor = flat[..., site.offset : site.offset + site.size].unflatten(-1, site.shape)
        return part

    def pair(self, flat: Tensor, site: Site) -> Pair:
        """The factors of a LoRA site as views: flat (..., P) -> A (..., r, d_in), B (..., d_out, r)."""
        r, d_in, d_out = site.shape
        a, b = flat[..., site.offset : site.offset + site.size].split(site.parts, dim=-1)
        return Pair(a.unflatten(-1, (r, d_in)), b.unflatten(-1, (d_out, r)))


@dataclass(frozen=True)
class Adapter:
    """A value: all trainable numbers of one model, flat (P,), or of a cohort of K clients, flat (K, P).

    `+ - *` act on the numbers; a (P,) adapter broadcasts over a cohort.
    """

    layout: Layout
    flat: Tensor

    def __add__(self, other: Adapter) -> Adapter:
        return Adapter(self.layout, self.flat + other.flat)

    def __sub__(self, other: Adapter) -> Adapter:
        return Adapter(self.layout, self.flat - other.flat)

    def __mul__(self, c: float) -> Adapter:
        return Adapter(self.layout, self.flat * c)

    __rmul__ = __mul__

    def delta(self, site: Site) -> Tensor:
        """The weight update scaling * B @ A of a LoRA site: (..., d_out, d_in)."""
        pair = self.layout.pair(self.flat, site)
        return self.layout.scaling * (pair.B @ pair.A)


# What crosses the network, by name: adapters and scalars, one row a client. The engine weighs it.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """Everything that outlives a round: a checkpoint is this and nothing else."""

    adapter: Adapter
    round: int = 0
    memory: Mapping[str, Adapter] = field(default_factory=dict)  # the server's own variables
    clients: Mapping[str, Adapter] = field(default_factory=dict)  # what clients keep at home: flat (N, P), a row each
    weights: tuple[float, ...] = ()  # (N,) the one weighting rule, for all clients
    ranks: tuple[int, ...] = ()  # (N,) the largest LoRA rank that each client trains; a scheduler may assign less
    seen: tuple[int, ...] = ()  # (N,) the round in which each client last took part, 0 for never
    base: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # LoRA site -> (d_out, d_in) added to the frozen weight so far
    folds: tuple[int, ...] = ()  # (round,) bytes of what each round added to the frozen weights
    last: Adapter | None = None  # the server's adapter before the last round
    clients_per_pass: int | None = None  # set when memory ran out, so that a resumed run takes the same passes
    plans: Mapping[str, Memory] = field(default_factory=dict)  # what the rank scheduler and the clock remember


@dataclass(frozen=True)
class Trained:
    """What local training of a cohort of K clients returns; rows are in the order of the cohort."""

    adapter: Adapter  # (K, P)
    weight: Tensor  # (K,) the client's weight in every average: tokens, samples or one, by federation.weighting
    num_steps: Tensor  # (K,) optimiser steps
    num_tokens: Tensor  # (K,) target tokens trained on
    loss: Tensor  # (K,) token-weighted mean training loss over the round's steps
    grad_norm: Tensor  # (K,) mean norm of the raw gradient before clipping
    mean_grad: Tensor | None = (
        None  # (K, P) mean over the steps of the clipped gradient, before anything is added to it
    )
    drift: Tensor | None = None  # (K,) mean over the steps of |y - x|^2, in the numbers of the adapter


# (y (k, P), x (k, P), rows (k,)) -> (k, P): y are the parameters of the clients still at work, x where they started, rows
# their places in the cohort. What comes back is added to the gradient, or to the direction of the optimiser's step.
Pull = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
# (z (k, B, d), see, rows (k,)) -> (k,): a further loss of each client on the representations z of its batch, zero for
# padding; see(params (k, P)) gives what other parameters make of the same batch, without gradient and dropout
Contrast = Callable[["Tensor", Callable[["Tensor"], "Tensor"], "Tensor"], "Tensor"]


ExtraLoss = Callable[["Tensor", Callable[["Tensor"], "Tensor"]], "Tensor"]  # the same with the rows known


class Train(Protocol):
    """Local training, bound to a cohort of K clients, its data and its random streams: the one place that mutates."""

    weight: Tensor  # (K,) see `Trained.weight`
    lr: float  # of this round

    def __call__(
        self,
        start: Adapter,
        *,
        extra_grad: Pull | None = None,
        extra_step: Pull | None = None,
        extra_loss: Contrast | None = None,
        mean_grad: bool = False,
    ) -> Trained:
        """Train from `start`, (P,) for all or (K, P).

        extra_grad is added to the clipped gradient, before the optimiser; extra_step is a direction: after every step
        y <- y - lr * extra_step(y, x, rows). Frozen numbers stay whatever is added.
        """

    def gradient(self, at: Adapter) -> Adapter:
        """Every client's gradient over all its examples, clipped, without dropout: (P,) or (K, P) -> (K, P)."""

    def loss(self, at: Adapter) -> Tensor:
        """Every client's mean loss on its first examples, the same ones in every round: (P,) or (K, P) -> (K,)."""


Average = Callable[[Adapter, "Tensor"], Adapter]  # (adapters (K, P), weight (K,)) -> (P,), by federation.aggregation


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
    personal: (state) -> the model that each client uses, (N, P), where that is not the server's
    models: (state) -> the models of the server by name, each (P,), where clients use several; the adapter is their mean
    wrong: (state) -> a sentence if an invariant of the algorithm does not hold
    refuses: what an aggregation may not do to be combined with this algorithm, with the reason (see `TRAITS`); and
        "unequal ranks", if clients have to train the same numbers
    """

    client: Callable[[Message, Mapping[str, Adapter], Train], tuple[Message, Mapping[str, Adapter]]]
    server: Callable[[State, Message, Average], State]
    broadcast: Callable[[State], Message] = _send_adapter
    init: Callable[[Adapter], Mapping[str, Adapter]] = _no_memory
    init_client: Callable[[Adapter], Mapping[str, Adapter]] = _no_memory
    personal: Callable[[State], Adapter | None] = _no_personal
    models: Callable[[State], Mapping[str, Adapter]] = _one_model
    wrong: Callable[[State], str | None] = _nothing_wrong
    refuses: Mapping[str, str] = field(default_factory=dict)


TRAITS = {
    "refactors": "gives the numbers of the adapter another meaning in every round",
    "folds": "adds to the frozen weights",
    "alternates": "trains one factor in odd and the other in even rounds",
    "private": "leaves a factor with each client",
    "reweighs": "has weights of its own",
    "prunes": "lowers the ranks of clients while the run goes on",
}


class Uploads(NamedTuple):
    """What an aggregation sees of a round."""

    before: Adapter  # (P,) the server's adapter, which the round started from
    sent: Adapter  # (K, P) the clients' adapters; slices beyond a client's rank are zero
    weight: Tensor  # (K,)
    ranks: Tensor  # (K,) int64
    round: int
    seed: int


class Pooled(NamedTuple):
    """What an aggregation makes of it."""

    adapter: Adapter  # (P,)
    fold: Mapping[
        str, Pair
    ] = {}  # LoRA site -> B (d_out, R) and A (R, d_in) whose product is added to the frozen weight
    weight: Tensor | None = None  # (K,) the weights that it took; None for those of the clients


def _everything(layout: Layout, round: int) -> Tensor | None:
    return None


def _nothing(layout: Layout) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Aggregation:
    """How adapters become one, orthogonal to the algorithm.

    combine: (uploads) -> pooled
    trained: (layout, round) -> (P,) bool, what is trained and sent in a round; None for all of it
    private: (layout) -> (P,) bool, what never leaves a client; None for nothing
    known: (layout) -> (P,) bool, what clients draw from the seed instead of receiving it; None for nothing
    penalty: (layout, y (k, P), ranks (k,)) -> (k, P), a gradient that every client adds to its own
    new_ranks: (layout, received (K, P), trained (K, P), ranks (K,)) -> ranks (K,), at most what they were
    traits: keys of `TRAITS`
    is_mean: with equal ranks it gives the weighted mean of the factors, bit for bit
    """

    combine: Callable[[Uploads], Pooled]
    trained: Callable[[Layout, int], Tensor | None] = _everything
    private: Callable[[Layout], Tensor | None] = _nothing
    known: Callable[[Layout], Tensor | None] = _nothing
    penalty: Callable[[Layout, Tensor, Tensor], Tensor] | None = None
    new_ranks: Callable[[Layout, Tensor, Tensor, Tensor], Tensor] | None = None
    traits: frozenset[str] = frozenset()
    is_mean: bool = False


class Batch(NamedTuple):
    """One step's work for the first K clients of a pass, K x B rows; rows of weight zero are padding."""

    rows: Tensor  # (K, B) which of the task's training examples
    real: Tensor  # (K, B) bool


class States(NamedTuple):
    """Hidden states of k models on the same blocks."""

    layers: Sequence[Tensor]  # after the embedding and after every block: (k, blocks, T, d) each
    mask: Tensor  # (blocks, T) bool: positions that predict a target


class Continuations(NamedTuple):
    """What a model makes of the first halves of n held-out blocks."""

    ids: Tensor  # (n, length) generated
    texts: Sequence[str]  # the same as text
    references: Sequence[str]  # the true second halves


class Task(Protocol):
    """What is learned. The language-model task and the tests' quadratic task implement the same protocol."""

    layout: Layout

    def examples(self, client: int) -> int:
        """How many training examples the client has."""

    def tokens(self, client: int) -> int:
        """How many target tokens they hold."""

    def read(self, client: int) -> int:
        """How many tokens of them the model reads."""

    def init(self, seed: int) -> Adapter:
        """The server's first adapter, (P,)."""

    def grad(
        self,
        params: Tensor,
        clients: Tensor,
        batch: Batch,
        key: Tensor | None,
        extra_loss: ExtraLoss | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per-client mean loss (K,), its gradient (K, P) and the target tokens it is a mean over (K,).

        params: (K, P); clients: (K,) ids; key: (K,) int64, the random stream of this step's dropout for each client, None
        without dropout; extra_loss: (z (K, B, d), see) -> (K,) is differentiated too, but not part of the loss returned.
        Inside `torch.no_grad()` the gradient is zero and costs nothing.
        """

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Scores of one model (P,) on every evaluation set, by name; `client/ID` of personal (N, P) where that is given."""

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """Mean loss of each row of params (K, P) on what that client keeps back from training, always the same examples.

        clients: (K,) ids. NaN for a client that keeps nothing back. (K,) float64.
        """

    def states(self, params: Tensor | None, blocks: int) -> States | None:
        """Hidden states on the first of a fixed set of held-out blocks, under each row of params (k, P).

        None for params: of the model before training, k = 1, nothing folded in. None where there are no hidden states.
        """

    def attention(self, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """Attention weights on the same blocks, by layer: (k * blocks, heads, T, T). None where the model gives none."""

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """The greedy ones of at most that many fixed held-out blocks by the model (P,). None where there is no text."""

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """Make the frozen weights the original ones plus `base`, LoRA site -> (d_out, d_in)."""

    def checksums(self) -> Mapping[str, int]:
        """A number for each frozen weight, by name, that changes when a bit of it does."""


@dataclass(frozen=True)
class Moment:
    """What a probe may look at once a round is over; nothing in it may be changed."""

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


@dataclass(frozen=True)
class Readings:
    """What a probe found; what is not defined is absent."""

    probes: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, Sequence[float]] = field(default_factory=dict)  # name -> a number for each client, (K,)
    matrices: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)  # name -> (K, K)


@dataclass(frozen=True)
class Probe:
    """A measurement of the finished round: tensors in, floats out.

    take: (moment) -> readings
    sparse: it costs forward passes, and is taken only in rounds that are evaluated
    gradients: it needs `Moment.halves`
    """

    take: Callable[[Moment], Readings]
    sparse: bool = False
    gradients: bool = False


class Document(NamedTuple):
    """One text, the topic, register, style or label that it belongs to, and the group that it came from."""

    text: str
    topic: str
    group: str = ""  # its author, site or genre; empty where the source does not say


@dataclass(frozen=True)
class Labels:
    """What a corpus with labels says of them beyond the topics of its documents."""

    names: tuple[str, ...] = ()  # of the classes 0, 1, ...; none where the topics in alphabetical order are the classes
    positive: str | None = None  # the class whose F1 the task is measured by; None: the mean over the classes
    scores: Mapping[str, float] = field(default_factory=dict)  # text -> score, for regression
    first: Mapping[str, int] = field(default_factory=dict)  # text of two sentences -> characters of the first one


@dataclass(frozen=True)
class Corpus:
    """A data set as a user meets it: documents with a topic each, split into train and validation."""

    name: str
    train: tuple[Document, ...]
    validation: tuple[Document, ...]  # shares no text with train
    source: str  # where the text came from, as precisely as can be said (package and version, Hub id, folder)
    fingerprint: str  # hash of all texts and topics: two runs with the same fingerprint saw the same data
    entropy: Mapping[str, float] | None = (
        None  # of a known generator: nats a character that no model can beat, by topic
    )
    labels: Labels | None = None  # None: the topics are all there is


@dataclass(frozen=True)
class Deal:
    """What a partitioner did with n documents and N clients, and what a reader should know about it."""

    clients: list[Any]  # one sorted int array of positions a client: disjoint, together range(n)
    attempts: int = 1  # draws until every client had min_samples
    acceptance: float | None = None  # share of draws in which that holds; None where every draw does
    texts: Mapping[int, str] = field(default_factory=dict)  # position -> what became of a changed text
    removed: list[int] | None = None  # words taken out of each client's texts; None where texts are never changed
    notes: tuple[str, ...] = ()  # sentences: which convention, what a setting could not do


# (documents, num_clients, generator) -> deal
Partition = Callable[[Sequence[Document], int, Any], Deal]
