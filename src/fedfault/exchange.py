"""What crosses between the server and the clients of a round: where they start, what they send, what it weighs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfault.algebra import mask, mean
from fedfault.types import Adapter, Aggregation, Layout, Message, Pair, State, Uploads
from fedfault.wire import fold_size, pack

OWN = "own"  # the client memory that holds what an aggregation leaves at home


def full_rank(layout: Layout) -> int:
    """The largest LoRA rank of a layout; 0 where it has no LoRA site."""
    return max((s.shape[0] for s in layout.sites if s.kind == "lora"), default=0)


@dataclass(frozen=True)
class Cohort:
    """The K clients of a round and which of the P numbers are theirs."""

    clients: list[int]
    ranks: Tensor  # (K,)
    active: Tensor | None  # (K, P) bool: what their ranks leave of the adapter; None for all of it
    trained: Tensor | None  # (P,) bool: what is trained in this round; None for everything
    private: Tensor | None  # (P,) bool: what stays at home; None for nothing

    @classmethod
    def of(cls, clients: list[int], state: State, aggregation: Aggregation) -> Cohort:
        """The cohort of the round after `state`."""
        layout = state.adapter.layout
        ranks = torch.tensor([state.ranks[k] for k in clients])
        active = None if bool((ranks >= full_rank(layout)).all()) else mask(layout, ranks)
        return cls(clients, ranks, active, aggregation.trained(layout, state.round + 1), aggregation.private(layout))

    @property
    def rows(self) -> Tensor:
        """The clients as an index."""
        return torch.tensor(self.clients)

    @property
    def trainable(self) -> Tensor | None:
        """(K, P) or (P,) bool: what local training may change; None for everything."""
        return _both(self.trained, self.active)

    def start(self, x: Adapter, state: State) -> Adapter:
        """Where each client starts: the server's adapter (P,) with what it kept at home, cut to its rank."""
        if self.private is None:
            return self.cut(x)
        flat = torch.where(self.private.to(x.flat.device), state.clients[OWN].flat[self.rows], x.flat)
        return self.cut(replace(x, flat=flat))

    def cut(self, x: Adapter) -> Adapter:
        """(P,) or (K, P), with zeros in the slices beyond each client's rank."""
        return x if self.active is None else replace(x, flat=x.flat * self.active.to(x.flat))

    def sent(self, row: int) -> Tensor | None:
        """(P,) bool: what a client sends; None for everything."""
        public = None if self.private is None else ~self.private
        return _both(_both(self.trained, public), None if self.active is None else self.active[row])


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def bytes_up(cohort: Cohort, up: Message) -> list[int]:
    """Payload of every client, (K,)."""
    return [len(pack(up, i, cohort.sent(i))) for i in range(len(cohort.clients))]


def bytes_down(cohort: Cohort, down: Message, state: State, aggregation: Aggregation) -> list[int]:
    """Payload to every client, (K,): what changed on the server since the client last took part.

    That is what was trained in the rounds since then, whole adapters at first, and what those rounds added to the frozen
    weights: their factors, or the whole matrices where that is less.
    """
    layout, known = state.adapter.layout, {}
    itemsize = state.adapter.flat.element_size()
    whole = sum(w.numel() for w in state.base.values()) * itemsize
    out = []
    for i, k in enumerate(cohort.clients):
        key = (int(cohort.ranks[i]), state.seen[k])
        if key not in known:
            missed = range(max(state.seen[k], 1), state.round + 1)
            changed = [aggregation.trained(layout, t) for t in missed or [state.round + 1]]
            keep = (
                None if any(c is None for c in changed) else torch.stack([c for c in changed if c is not None]).any(0)
            )
            public = None if cohort.private is None else ~cohort.private
            keep = _both(_both(keep, public), None if cohort.active is None else cohort.active[i])
            known[key] = len(pack(down, keep=keep)) + min(sum(state.folds[state.seen[k] :]), whole)
        out.append(known[key])
    return out


def average_of(
    aggregation: Aggregation, cohort: Cohort, state: State, good: Tensor, seed: int, folds: list[Mapping[str, Pair]]
) -> Callable[[Adapter, Tensor], Adapter]:
    """The `Average` that an algorithm's server calls: adapters (K', P) of the good clients -> (P,).

    Numbers that were not trained in this round, or that never leave the clients, stay as the server has them. What goes
    to the frozen weights is appended to `folds`.
    """
    kept = _both(cohort.trained, None if cohort.private is None else ~cohort.private)

    def average(x: Adapter, weight: Tensor) -> Adapter:
        pooled = aggregation.combine(Uploads(state.adapter, x, weight, cohort.ranks[good], state.round + 1, seed))
        folds.append(pooled.fold)
        flat = pooled.adapter.flat
        if kept is not None:
            flat = torch.where(kept.to(flat.device), flat, state.adapter.flat)
        return replace(x, flat=flat)

    return average


def folded(state: State, fold: Mapping[str, Pair]) -> State:
    """The state with one round's products added to what the frozen weights got so far."""
    base = dict(state.base)
    for name, pair in fold.items():
        change = (pair.B.double() @ pair.A.double()).to(pair.B)
        base[name] = base[name] + change if name in base else change
    return replace(state, base=base, folds=(*state.folds, fold_size(fold)))


def personal(state: State, private: Tensor | None) -> Adapter | None:
    """The model of every client, (N, P), where each has kept a part; None where all have the server's."""
    if private is None:
        return None
    own = state.clients[OWN].flat
    return Adapter(state.adapter.layout, torch.where(private.to(own.device), own, state.adapter.flat))


def with_mean_of_private(state: State, private: Tensor | None) -> State:
    """What clients keep never reaches a server; for the scores of one global model its mean takes the place."""
    if private is None:
        return state
    pooled = mean(state.clients[OWN], torch.tensor(state.weights, dtype=torch.float64))
    flat = torch.where(private.to(pooled.flat.device), pooled.flat, state.adapter.flat)
    return replace(state, adapter=replace(pooled, flat=flat))


def remembered(state: State, cohort: Cohort, home: Mapping[str, Adapter], good: Sequence[bool]) -> State:
    """The state with what the good clients keep, and when they took part."""
    rows = cohort.rows[torch.tensor(good)]
    clients = dict(state.clients)
    for name, kept in home.items():
        flat = clients[name].flat.clone()
        flat[rows] = kept.flat[torch.tensor(good)].to(flat)
        clients[name] = replace(kept, flat=flat)
    seen = list(state.seen)
    for k in rows.tolist():
        seen[k] = state.round + 1
    return replace(state, clients=clients, seen=tuple(seen))
