"""The exchange between server and clients in a round: where they start, which rows and ranks they get, bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedfault.algebra import mask, mean, to_float64
from fedfault.types.adapter import Adapter, Layout, Pair
from fedfault.types.algorithm import Aggregation, Message, Pooled, State, Uploads
from fedfault.wire import fold_size, pack

OWN = "own"  # the client memory that holds what an aggregation leaves at home


def full_rank(layout: Layout) -> int:
    """Return the largest LoRA rank of a layout; 0 where it has no LoRA site."""
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
    def of(
        cls, clients: list[int], state: State, aggregation: Aggregation, assigned: Mapping[int, int] | None = None
    ) -> Cohort:
        """The cohort of the round after `state`, by client id: the order of the draw cannot change a sum.

        assigned: client -> its rank in this round; None: the largest that each trains.
        """
        clients, layout = sorted(clients), state.adapter.layout
        ranks = torch.tensor([state.ranks[k] if assigned is None else assigned[k] for k in clients], dtype=torch.int64)
        active = None if bool((ranks >= full_rank(layout)).all()) else mask(layout, ranks)
        return cls(clients, ranks, active, aggregation.trained(layout, state.round + 1), aggregation.private(layout))

    @property
    def rows(self) -> Tensor:
        """The ids of the clients as an index tensor, (K,)."""
        return torch.tensor(self.clients)

    @property
    def trainable(self) -> Tensor | None:
        """(K, P) or (P,) bool: what local training may change; None for everything."""
        return _intersect(self.trained, self.active)

    def start(self, x: Adapter, state: State) -> Adapter:
        """Return where each client starts: the server's adapter (P,) with what it kept at home, cut to its rank.

        Where clients are elsewhere, as the server sees it: what they kept is not here.
        """
        if self.private is None or OWN not in state.clients:
            return self.cut(x)
        flat = torch.where(self.private.to(x.flat.device), state.clients[OWN].flat[self.rows], x.flat)
        return self.cut(replace(x, flat=flat))

    def cut(self, x: Adapter) -> Adapter:
        """Set the slices beyond each client's rank to zero: (P,) or (K, P) -> (K, P)."""
        return x if self.active is None else replace(x, flat=x.flat.where(self.active.to(x.flat.device), 0.0))

    def cut_message(self, message: Message) -> Message:
        """Cut every adapter of a message to the clients' ranks."""
        return {name: self.cut(a) if isinstance(a, Adapter) else a for name, a in message.items()}

    def keep_untrained(self, now: Tensor, before: Tensor) -> Tensor:
        """Return what clients keep after the round, (K, P): numbers that they did not train stay as they were before."""
        return now if self.active is None else now.where(self.active.to(now.device), before)

    def with_ranks(self, layout: Layout, ranks: Tensor) -> Cohort:
        """Return the same cohort with these ranks (K,), which are at most what they were."""
        return self if torch.equal(ranks, self.ranks) else replace(self, ranks=ranks, active=mask(layout, ranks))

    def select(self, rows: Sequence[int]) -> Cohort:
        """The cohort of some of its clients, given by their positions in it, in that order."""
        kept = torch.tensor(rows, dtype=torch.int64)
        active = None if self.active is None else self.active[kept]
        return replace(self, clients=[self.clients[i] for i in rows], ranks=self.ranks[kept], active=active)

    def public_mask(self, which: Tensor | None, row: int) -> Tensor | None:
        """Return which of these numbers, (P,) bool, cross the network for the client in that row; None for all of them."""
        mine = None if self.active is None else self.active[row]
        return _intersect(_intersect(which, _invert(self.private)), mine)


def select_rows(message: Message, rows: Tensor | int) -> Message:
    """Select the rows of some clients, or of one, from a message: of adapters (N, P) and numbers (N,); the rest stays."""
    out = dict(message)
    for name, value in message.items():
        if isinstance(value, Adapter) and value.flat.ndim > 1:
            out[name] = replace(value, flat=value.flat[rows])
        elif isinstance(value, Tensor) and value.ndim:
            out[name] = value[rows]
    return out


def _intersect(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def _invert(a: Tensor | None) -> Tensor | None:
    return None if a is None else ~a


def count_bytes_up(cohort: Cohort, up: Message) -> list[int]:
    """Count the bytes that each client uploads, (K,): clients of one rank send the same numbers."""
    ranks, sizes = cohort.ranks.tolist(), dict[int, int]()
    for i, rank in enumerate(ranks):
        if rank not in sizes:
            sizes[rank] = len(pack(up, i, cohort.public_mask(cohort.trained, i)))
    return [sizes[rank] for rank in ranks]


def count_bytes_down(cohort: Cohort, down: Message, state: State, aggregation: Aggregation) -> list[int]:
    """Count the bytes that each client downloads, (K,): what changed on the server since it was last sent the model.

    That is what was trained from that round on, unless they know it from the seed, and what those rounds added to the
    frozen weights: their factors, or the whole matrices where that is less. In round 1 clients are sent what they will
    train.
    """
    last = max(state.round, 1)
    since = [max(state.seen[k], 1) for k in cohort.clients]  # who was there in a round knows what came before it
    changed = _find_changed(aggregation, state.adapter.layout, min(since), last)
    unknown = _invert(aggregation.known(state.adapter.layout))
    whole = sum(w.numel() for w in state.base.values()) * state.adapter.flat.element_size()
    out, sizes = [], {}
    for i, key in enumerate(zip(cohort.ranks.tolist(), since, strict=True)):
        if key not in sizes:
            keep = cohort.public_mask(_intersect(changed[key[1]], unknown), i)
            sizes[key] = len(pack(select_rows(down, i), keep=keep)) + min(sum(state.folds[key[1] - 1 :]), whole)
        out.append(sizes[key])
    return out


def split_bytes_by_rank(message: Message, cohort: Cohort, layout: Layout) -> tuple[float, float]:
    """Split the bytes of one client's message into those that do not depend on its rank and those of each unit of rank."""
    most = full_rank(layout)
    if not most:
        return float(len(pack(message, keep=_intersect(cohort.trained, _invert(cohort.private))))), 0.0
    ends = mask(layout, torch.tensor([0, most]))
    probe = replace(cohort, ranks=torch.tensor([0, most]), active=ends)
    none, all_of_it = (len(pack(message, keep=probe.public_mask(cohort.trained, row))) for row in (0, 1))
    return float(none), (all_of_it - none) / most


def _find_changed(aggregation: Aggregation, layout: Layout, first: int, last: int) -> dict[int, Tensor | None]:
    """Find what was trained in any of the rounds t ... last, for each t from `first` on: (P,) bool, None for everything."""
    out: dict[int, Tensor | None] = {}
    for t in range(last, first - 1, -1):
        now = find_movable(aggregation, aggregation.trained(layout, t))
        later = out.get(t + 1, now)
        out[t] = None if now is None or later is None else now | later
    return out


def make_average(
    aggregation: Aggregation,
    cohort: Cohort,
    state: State,
    good: Tensor,
    seed: int,
    averages: list[tuple[Uploads, Pooled]],
) -> Callable[[Adapter, Tensor], Adapter]:
    """Make the `Average` that an algorithm's server calls: adapters (K', P) of the good clients -> (P,).

    Numbers that nobody may move in this round (`find_movable`), that never leave the clients, or that only other clients or
    rounds train, stay as the server has them: a slice with A and B at zero would never train again. Each call is appended
    to `averages`.
    """
    x, ranks = state.adapter, cohort.ranks[good]
    ids = tuple(k for k, ok in zip(cohort.clients, good.tolist(), strict=True) if ok)
    moved = _intersect(find_movable(aggregation, cohort.trained), _invert(cohort.private))
    present = None if "refactors" in aggregation.traits else _invert(_find_waiting_slices(cohort, state, good))

    def average(sent: Adapter, weight: Tensor) -> Adapter:
        if cohort.private is not None:  # what is not sent reads as what the server has
            sent = replace(sent, flat=x.flat.where(cohort.private.to(x.flat.device), sent.flat))
        got = Uploads(x, sent, weight, ranks, state.round + 1, seed, ids)
        pooled = aggregation.combine(got)
        pooled = pooled._replace(adapter=_choose(moved, pooled.adapter, x))
        averages.append((got, pooled))
        return _choose(present, pooled.adapter, x)

    return average


def find_movable(aggregation: Aggregation, trained: Tensor | None) -> Tensor | None:
    """Find the numbers that the server may move in a round, (P,) bool: what is trained, or all where it factorises anew."""
    return None if "refactors" in aggregation.traits else trained


def _choose(which: Tensor | None, a: Adapter, b: Adapter) -> Adapter:
    """Take `a` in these numbers (P,) and `b` in the others."""
    return a if which is None else replace(a, flat=a.flat.where(which.to(a.flat.device), b.flat))


def _find_waiting_slices(cohort: Cohort, state: State, good: Tensor) -> Tensor | None:
    """Find the slices, (P,) bool, that no good client trained but that some client may still train; None for none."""
    absent, most = max(state.ranks), int(cohort.ranks[good].max())
    if absent <= most:
        return None
    theirs, ours = mask(state.adapter.layout, torch.tensor([absent, most])).unbind()
    return theirs & ~ours


def add_fold(state: State, fold: Mapping[str, Pair]) -> State:
    """Add the round's products to what the frozen weights got so far; the state's round is not counted yet."""
    base = dict(state.base)
    for name, pair in fold.items():
        change = (to_float64(pair.B) @ to_float64(pair.A)).to(pair.B)
        base[name] = base[name] + change if name in base else change
    silent = (0,) * (state.round - len(state.folds))  # rounds in which nobody sent finite numbers
    return replace(state, base=base, folds=(*state.folds, *silent, fold_size(fold)))


def collect_personal_models(state: State, private: Tensor | None) -> Adapter | None:
    """Collect the model of every client, (N, P), where each has kept a part, here; None where all have the server's."""
    if private is None or OWN not in state.clients:
        return None
    own = state.clients[OWN].flat
    return Adapter(state.adapter.layout, torch.where(private.to(own.device), own, state.adapter.flat))


def replace_private_by_mean(state: State, private: Tensor | None) -> State:
    """Put the mean of what clients keep, which never reaches a server, into the model that global scores are about.

    If it is here: where clients are elsewhere, those numbers stay as they began.
    """
    if private is None or OWN not in state.clients:
        return state
    pooled = mean(state.clients[OWN], torch.tensor(state.weights, dtype=torch.float64))
    flat = torch.where(private.to(pooled.flat.device), pooled.flat, state.adapter.flat)
    return replace(state, adapter=replace(pooled, flat=flat))


def store_client_memory(
    state: State,
    cohort: Cohort,
    home: Mapping[str, Adapter],
    good: Sequence[bool],
    whole: Collection[str] = (),
) -> State:
    """Store what the good clients of this round keep, and that it is of this round; whole: see `Algorithm`."""
    keep, clients = torch.tensor(good), dict(state.clients)
    for name, kept in home.items():
        flat = clients[name].flat.clone()
        rows = cohort.rows[keep]
        now = kept.flat.to(flat)
        flat[rows] = (now if name in whole else cohort.keep_untrained(now, flat[cohort.rows]))[keep]
        clients[name] = replace(kept, flat=flat)
    stored = list(state.stored)
    for k, ok in zip(cohort.clients, good, strict=True):
        stored[k] = state.round + 1 if ok else stored[k]
    return replace(state, clients=clients, stored=tuple(stored))


def mark_as_sent(state: State, clients: Iterable[int]) -> State:
    """Mark that these clients were sent the model in this round, also if nothing arrives from them."""
    seen = list(state.seen)
    for k in clients:
        seen[k] = state.round + 1
    return replace(state, seen=tuple(seen))


def select_good(message: Message, good: Sequence[bool]) -> Message:
    """Select the rows of the good clients from a message that is stacked over the cohort."""
    return message if all(good) else select_rows(message, torch.tensor(good))
