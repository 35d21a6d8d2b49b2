"""Assertions that a federation really federates, on in every round of every run. A violation stops the run.

Reference implementations have lost aggregates to misspelt names, loaded nothing through a forgiving loader, frozen nothing,
shared one head between all clients. Each check is an exact comparison that costs far less than a training step:

    EntryCheck         the first gradient of every client is taken at what the server sent, to the bit
    CheckedTrain       anchors stay where training started; no client shares memory with the start or with another client;
                       some client has a gradient that is not exactly zero, unless its loss is
    check_sent         nothing the server sent was changed; what comes back has its sites, none missing and none more
    check_frozen       frozen numbers do not move, neither on the clients nor on the server
    check_base         local training leaves the frozen weights alone
    find_bad_updates   an update that is not finite is left out and its client named, or the run stops
    check_aggregation  equal ranks give the weighted mean; only an aggregation that says so adds to the frozen weights
    check_state        the algorithm's own invariant, such as SCAFFOLD's c = weighted mean of all c_i
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedfault.algebra import mask, mean
from fedfault.errors import UserError
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import (
    PLAIN,
    Aggregation,
    Algorithm,
    ExtraTerms,
    Message,
    Pooled,
    Pull,
    State,
    Train,
    Trained,
    Uploads,
)
from fedfault.types.delegating import DelegatingTrainable
from fedfault.types.task import Step, Task, Trainable

# Trained numbers begin at or below 1, as weights of a model do, and move by about the learning rate a step
EXPLODED = 1e3


class IntegrityError(UserError):
    """The federation does not do what it says: which client, which site, which numbers."""


class EntryCheck(DelegatingTrainable):
    """Looks at the parameters with which each client enters the model for the first time."""

    def __init__(self, inner: Trainable) -> None:
        super().__init__(inner)
        self._sent: Mapping[str, Adapter] = {}
        self.waiting: dict[int, int] = {}  # client -> its row: those that have not entered yet

    def expect(self, sent: Mapping[str, Adapter], clients: Sequence[int]) -> None:
        """Require from now on that each client enters with one of these, (P,) or its row of (K, P)."""
        self._sent, self.waiting = sent, {k: row for row, k in enumerate(clients)}

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Trainable`."""
        if self.waiting:
            self.look(step.clients.tolist(), params)
        return super().grad(params, step)

    def look(self, clients: Sequence[int], params: Tensor) -> None:
        """Check the parameters (k, P) of those clients that have not entered yet; other ids are passed over."""
        if clients == list(self.waiting):  # all of them at once, as is usual
            rows = torch.tensor(list(self.waiting.values()), device=params.device)
            if any(_is_equal(params, _select_rows(a.flat, rows)) for a in self._sent.values()):
                self.waiting = {}
                return
        for k, own in zip(clients, params, strict=True):
            if k in self.waiting:
                self._check(k, own, self.waiting[k])
                del self.waiting[k]

    def _check(self, client: int, own: Tensor, row: int) -> None:
        rows = {name: _select_row(a.flat, row) for name, a in self._sent.items()}
        if not any(_is_equal(own, x) for x in rows.values()):
            apart = "; ".join(f"{name!r}: {_describe_gap(self.layout, own, x)}" for name, x in rows.items())
            raise IntegrityError(f"client {client} does not start from what the server sent ({apart or 'no model'})")


class CheckedTrain:
    """A `Train` that checks where clients start, and that nothing moves but what is trained.

    Clients start from what the server sent, or from a model that they have kept, handed over as it is in their `memory`.
    """

    def __init__(
        self,
        train: Train,
        entry: EntryCheck,
        received: Message,
        clients: Sequence[int],
        memory: Mapping[str, Adapter] | None = None,
    ) -> None:
        self._train, self.weight, self._entry = train, train.weight, entry
        self.clients, self.layout, self.memory = clients, entry.layout, memory or {}
        self.received = {name: a for name, a in received.items() if isinstance(a, Adapter)}
        self.copies = {name: a.flat.clone() for name, a in self.received.items()}

    @property
    def lr(self) -> float:
        """See `types.algorithm.Train`."""
        return self._train.lr

    def __call__(self, start: Adapter, extra: ExtraTerms = PLAIN, *, mean_grad: bool = False) -> Trained:
        """See `types.algorithm.Train`."""
        sent = {"x": self.received["x"]} if "x" in self.received else self.received
        own = {name: kept for name, kept in self.memory.items() if kept is start}
        self._entry.expect(own or sent if extra.mixture is None else self._mix(start, own or sent, extra), self.clients)
        gradient, step = (None if pull is None else AnchoredPull(pull) for pull in (extra.gradient, extra.step))
        done = self._train(start, replace(extra, gradient=gradient, step=step), mean_grad=mean_grad)
        for pull in (gradient, step):
            if pull is not None:
                pull.check(start, self.clients)
        self._check_trained(start, done)
        return done

    def gradient(self, at: Adapter) -> Adapter:
        """See `types.algorithm.Train`."""
        return self._train.gradient(at)

    def loss(self, at: Adapter) -> Tensor:
        """See `types.algorithm.Train`."""
        return self._train.loss(at)

    def _mix(self, start: Adapter, known: Mapping[str, Adapter], extra: ExtraTerms) -> Mapping[str, Adapter]:
        """Where clients enter that start from a known model, and take gradients at a mixture of it."""
        rows = torch.arange(len(self.clients), device=start.flat.device)
        flat = _select_rows(start.flat, rows)
        if extra.mixture is None or not any(_is_equal(flat, _select_rows(a.flat, rows)) for a in known.values()):
            return known
        return {name: replace(start, flat=extra.mixture(flat, rows)[0]) for name in known}

    def _check_trained(self, start: Adapter, done: Trained) -> None:
        """Every client that has steps entered the model; none shares a parameter with another one or with the start."""
        flat, K, P = done.adapter.flat, len(self.clients), start.flat.shape[-1]
        for k, row in self._entry.waiting.items():
            if (steps := int(done.num_steps[row])) > 0:
                raise IntegrityError(f"client {k} reports {steps} steps, but its parameters never entered the model")
        if flat.shape != (K, P):
            raise IntegrityError(f"local training gave numbers of shape {tuple(flat.shape)}, not ({K}, {P})")
        if K > 1 and flat.stride(0) < P:
            raise IntegrityError(
                f"clients {self.clients[0]} and {self.clients[1]} share trained parameters: their rows of {P} numbers "
                f"lie {flat.stride(0)} apart in memory"
            )
        if flat.untyped_storage().data_ptr() == start.flat.untyped_storage().data_ptr():
            raise IntegrityError(f"clients {_list_names(self.clients)} trained in the memory of what they started from")
        worked = done.num_steps > 0
        if bool(done.loss[worked].any()) and not bool(done.grad_norm[worked].any()):  # a loss of zero is learned
            if (largest := float(start.flat.abs().max())) > EXPLODED:
                raise IntegrityError(
                    f"training has exploded: trained numbers have grown to {largest:.1e}, at which every gradient is zero "
                    f"and nothing is learned; lower training.lr"
                )
            raise IntegrityError(
                f"every gradient was exactly zero in {int(done.num_steps.sum())} steps of clients "
                f"{_list_names(self.clients)}: nothing is learned. Check that the loss depends on the trained numbers, and "
                "that quantised layers were not repacked for inference (with model.quantization=none there are none)"
            )


class AnchoredPull:
    """A `Pull` that remembers the anchor of its last call: in the last step x must still be where training started."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._last: tuple[Tensor, Tensor] | None = None  # x (k, P) and the rows of its clients

    def __call__(self, y: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """See `types.algorithm.Pull`."""
        self._last = (x, rows)
        return self._pull(y, x, rows)

    def check(self, start: Adapter, clients: Sequence[int]) -> None:
        """Raises `IntegrityError` with the client whose anchor is no longer at the start, (P,) or (K, P)."""
        if self._last is None or _is_equal(self._last[0], _select_rows(start.flat, self._last[1])):
            return
        for x, row in zip(*self._last, strict=True):
            if not _is_equal(x, own := _select_row(start.flat, int(row))):
                raise IntegrityError(
                    f"the anchor of client {clients[int(row)]} moved while it trained, as if it were aliased to the "
                    f"parameters: {_describe_gap(start.layout, x, own)}"
                )


def check_sent(watched: CheckedTrain, up: Message, home: Mapping[str, Adapter], memory: Mapping[str, Adapter]) -> None:
    """Clients leave what the server sent alone, send its sites back, a row each, and keep the memory that they had."""
    for name, before in watched.copies.items():
        now = watched.received[name]
        if not _is_equal(now.flat, before):
            raise IntegrityError(
                f"clients changed {name!r} itself, which the server sent: {_describe_gap(now.layout, now.flat, before)}"
            )
    had, kept = ({name: tuple(a.flat.shape) for name, a in m.items()} for m in (memory, home))
    if kept != had:
        raise IntegrityError(f"clients keep {kept or 'nothing'}, but what they had was {had or 'nothing'}")
    expected = (len(watched.clients), watched.layout.size)
    for name, a in up.items():
        if isinstance(a, Adapter):
            check_layouts(name, a.layout, watched.layout)
            if a.flat.shape != expected:
                raise IntegrityError(f"{name!r} as sent has shape {tuple(a.flat.shape)}, not {expected}")


def check_layouts(name: str, theirs: Layout, ours: Layout) -> None:
    """Check that all sites match, and that there is one to match."""
    if theirs != ours or not ours.sites:
        has, wants = {s.name: s for s in theirs.sites}, {s.name: s for s in ours.sites}
        matched = [n for n in wants if has.get(n) == wants[n]]
        raise IntegrityError(
            f"{name!r} as sent does not fit the server: {len(matched)} of {len(wants)} sites match, missing "
            f"{_list_names(n for n in wants if n not in has)}, unknown "
            f"{_list_names(n for n in has if n not in wants)}; LoRA scaling {theirs.scaling:.3g}, the server's is "
            f"{ours.scaling:.3g}"
        )


def check_frozen(layout: Layout, before: Tensor, after: Tensor, free: Tensor | None, who: Sequence[str]) -> None:
    """Numbers that are not free, (P,) or (K, P), stay as they were: before (P,) or (K, P), after (K, P)."""
    if free is None:
        return
    moved = _find_differences(after, before) & ~free.to(after.device)
    if bool(moved.any()):
        row = int(moved.any(1).nonzero()[0])
        was = _select_row(before, row)
        apart = _describe_gap(layout, after[row].where(moved[row], was), was)
        raise IntegrityError(f"{who[row]} changed frozen numbers: {apart}")


def check_base(task: Task, before: Mapping[str, int], clients: Sequence[int]) -> None:
    """Local training leaves the frozen weights alone."""
    now = task.checksums()
    if changed := [name for name in before if now[name] != before[name]]:
        raise IntegrityError(
            f"{len(changed)} of {len(before)} frozen weights changed while clients {_list_names(clients)} trained, first "
            f"{changed[0]} (checksum {before[changed[0]]} before, {now[changed[0]]} after)"
        )


def check_aggregation(aggregation: Aggregation) -> Aggregation:
    """Return the aggregation with a check of what it says of itself: `is_mean`, and the trait `folds`."""

    def combine(got: Uploads) -> Pooled:
        pooled = aggregation.combine(got)
        if pooled.fold and "folds" not in aggregation.traits:
            raise IntegrityError(
                f"an aggregation without trait 'folds' adds to frozen weight {_list_names(pooled.fold)}"
            )
        for site in (s for s in got.before.layout.lora if s.name in pooled.fold):
            A, B = pooled.fold[site.name]
            if (shape := (len(B), A.shape[1])) != (expected := (site.shape[2], site.shape[1])):
                raise IntegrityError(f"the aggregation adds {shape} numbers to frozen weight {site.name} of {expected}")
        if aggregation.is_mean and bool((got.ranks == got.ranks[0]).all()):
            owned = mask(got.before.layout, got.ranks[:1])[0].to(got.sent.flat.device)
            found, mine = (a.flat.where(owned, 0.0) for a in (pooled.adapter, mean(got.sent, got.weight)))
            if not _is_equal(found, mine):
                apart = _describe_gap(got.before.layout, found, mine)
                raise IntegrityError(f"ranks are equal, but the aggregation is not the weighted mean: {apart}")
        return pooled

    return replace(aggregation, combine=combine)


def check_state(algorithm: Algorithm, state: State) -> None:
    """The algorithm's own invariant, such as SCAFFOLD's c = sum of all clients' weighted c_i."""
    if sentence := algorithm.wrong(state):
        raise IntegrityError(sentence)


def find_bad_updates(
    up: Message, home: Mapping[str, Adapter], clients: Sequence[int], policy: str
) -> tuple[list[bool], list[str]]:
    """Which clients sent and keep finite numbers, and a sentence for the record on those that do not.

    Raises `IntegrityError` if the policy is to stop.
    """
    rows = [v.flat if isinstance(v, Adapter) else v for v in (*up.values(), *home.values())]
    good = torch.stack([_find_finite_rows(r).cpu() for r in rows]).all(0)
    bad = [k for k, ok in zip(clients, good.tolist(), strict=True) if not ok]
    if not bad:
        return good.tolist(), []
    if policy == "stop":
        row = clients.index(bad[0])
        raise IntegrityError(
            f"parameters not finite after local training: client {_list_names(bad)}; lower training.lr, or "
            f"federation.bad_updates=drop ({_describe_not_finite({**home, **up}, row)})"
        )
    left = "" if len(bad) < len(clients) else ", so that the round changes nothing"
    who = f"client {_list_names(bad)}{left}"
    return good.tolist(), [f"parameters not finite after local training, left out of the average: {who}"]


def _find_finite_rows(rows: Tensor) -> Tensor:
    """Find which of the rows (K, ...) are finite, (K,) bool; a finite sum says so in one pass over all of them."""
    if bool(rows.sum().isfinite()):
        return torch.ones(len(rows), dtype=torch.bool)
    return rows.isfinite().reshape(len(rows), -1).all(1)


def _describe_not_finite(message: Message, row: int) -> str:
    """Describe in words which part of a client's row is not finite."""
    found = []
    for name, value in message.items():
        own = (value.flat if isinstance(value, Adapter) else value)[row]
        if places := own.isfinite().logical_not().flatten().nonzero().flatten().tolist():
            sites = value.layout.sites if isinstance(value, Adapter) else ()
            where = [f", from site {s.name} on" for s in sites if s.offset <= places[0] < s.offset + s.size]
            found.append(f"{len(places)} of {own.numel()} numbers of {name!r}{where[0] if where else ''}")
    return "; ".join(found)


def _select_row(flat: Tensor, row: int) -> Tensor:
    return flat if flat.ndim == 1 else flat[row]


def _select_rows(flat: Tensor, rows: Tensor) -> Tensor:
    return flat.expand(len(rows), -1) if flat.ndim == 1 else flat[rows]


def _find_differences(a: Tensor, b: Tensor) -> Tensor:
    """Find where two tensors differ, NaN being equal to NaN: a diverged model is not a model that was not loaded."""
    return (a != b) & ~(a.isnan() & b.isnan())


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or not bool(_find_differences(a, b).any())


def _describe_gap(layout: Layout, a: Tensor, b: Tensor) -> str:
    """Describe in words how two adapters (P,) or (K, P) differ."""
    gap = (a - b).abs().nan_to_num(nan=torch.inf).where(_find_differences(a, b), 0.0)
    worst = max(layout.sites, key=lambda s: float(gap[..., s.offset : s.offset + s.size].max()))
    count = f"{int((gap > 0).sum())} of {gap.numel()} numbers"
    return f"{count} differ, by up to {float(gap.max()):.3g}, most at site {worst.name}"


def _list_names(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
