"""Assertions that a federation really federates, checked in every round. A violation stops the run.

Reference implementations have lost aggregates to misspelt names, loaded nothing through a forgiving loader, frozen nothing,
shared one head between all clients. Each check here is an exact comparison that costs far less than a training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedfault.errors import UserError
from fedfault.types import Adapter, Aggregation, Algorithm, Contrast, Layout, Message, Pull, State, Task, Train, Trained


class IntegrityError(UserError):
    """The federation does not do what it says: which client, which site, which numbers."""


class Watched:
    """A `Train` that checks where clients start and that training leaves what the server sent alone."""

    def __init__(self, train: Train, received: Message, clients: Sequence[int]) -> None:
        self._train, self.weight, self.lr, self._clients = train, train.weight, train.lr, clients
        self._sent = {name: a for name, a in received.items() if isinstance(a, Adapter)}
        self._copies = {name: a.flat.clone() for name, a in self._sent.items()}

    def __call__(
        self,
        start: Adapter,
        *,
        extra_grad: Pull | None = None,
        extra_step: Pull | None = None,
        extra_loss: Contrast | None = None,
        mean_grad: bool = False,
    ) -> Trained:
        """See `types.Train`."""
        self._loaded(start)
        done = self._train(
            start, extra_grad=extra_grad, extra_step=extra_step, extra_loss=extra_loss, mean_grad=mean_grad
        )
        self._apart(start, done.adapter)
        return done

    def gradient(self, at: Adapter) -> Adapter:
        """See `types.Train`."""
        return self._train.gradient(at)

    def loss(self, at: Adapter) -> Tensor:
        """See `types.Train`."""
        return self._train.loss(at)

    def _loaded(self, start: Adapter) -> None:
        """Every client starts from something that the server sent to it, to the bit."""
        for row, client in enumerate(self._clients):
            mine = _row(start.flat, row)
            gaps = {name: _row(a.flat, row) - mine for name, a in self._sent.items() if a.layout == start.layout}
            if not any(_same(gap) for gap in gaps.values()):
                sizes = ", ".join(f"{name} by {float(gap.abs().max()):.3g}" for name, gap in gaps.items())
                raise IntegrityError(
                    f"client {client} does not start from what the server sent (differs from {sizes or 'no adapter at all'}"
                    f"{_worst_site(start.layout, next(iter(gaps.values()))) if gaps else ''})"
                )

    def _apart(self, start: Adapter, trained: Adapter) -> None:
        """What the server sent, the start and the result are different memory, and so are the clients' rows."""
        for name, before in self._copies.items():
            if not _equal(self._sent[name].flat, before):
                raise IntegrityError(
                    f"local training changed {name!r}, which the server sent: it is aliased, not copied"
                )
        flat = trained.flat
        if flat.ndim != 2 or len(flat) != len(self._clients):
            raise IntegrityError(f"trained adapters of shape {tuple(flat.shape)} for {len(self._clients)} clients")
        if len(flat) > 1 and flat.stride(0) < flat.shape[1]:
            raise IntegrityError("clients share trained parameters: rows of the cohort overlap in memory")
        if flat.untyped_storage().data_ptr() == start.flat.untyped_storage().data_ptr():
            raise IntegrityError("the trained adapters live in the memory of the start: the anchor is aliased")


def _row(flat: Tensor, row: int) -> Tensor:
    return flat if flat.ndim == 1 else flat[row]


def _same(gap: Tensor) -> bool:
    return bool((gap == 0).all()) or bool(gap.isnan().any())  # a diverged model is not a model that was not loaded


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _worst_site(layout: Layout, gap: Tensor) -> str:
    if not layout.sites:
        return ""
    sizes = {s.name: float(gap[s.offset : s.offset + s.size].abs().max()) for s in layout.sites}
    return f", most at site {max(sizes, key=lambda name: sizes[name])}"


def check_frozen(start: Tensor, trained: Adapter, trainable: Tensor | None, clients: Sequence[int]) -> None:
    """Numbers that are not trainable, (P,) or (K, P), are what they were at the start, to the bit."""
    if trainable is None:
        return
    moved = (trained.flat != start) & ~trainable.to(trained.flat.device) & ~trained.flat.isnan()
    if bool(moved.any()):
        row = int(moved.any(1).nonzero()[0])
        gap = (trained.flat[row] - _row(start, row)) * moved[row]
        raise IntegrityError(
            f"client {clients[row]} changed {int(moved[row].sum())} frozen numbers, by up to {float(gap.abs().max()):.3g}"
            f"{_worst_site(trained.layout, gap)}"
        )


def check_base(task: Task, before: int, clients: Sequence[int]) -> None:
    """Local training leaves the frozen weights alone."""
    if (now := task.checksum()) != before:
        raise IntegrityError(
            f"the frozen weights changed while clients {', '.join(map(str, clients))} trained "
            f"(checksum {before:x} before, {now:x} after)"
        )


def check_message(up: Message, layout: Layout, num_clients: int) -> None:
    """Every adapter that was sent has the server's sites, none missing and none more, and a row for every client."""
    sent = {name: a for name, a in up.items() if isinstance(a, Adapter)}
    names = [s.name for s in layout.sites]
    for name, a in sent.items():
        theirs = [s.name for s in a.layout.sites]
        if a.layout != layout:
            missing, more = sorted(set(names) - set(theirs)), sorted(set(theirs) - set(names))
            raise IntegrityError(
                f"{name!r} as sent does not fit the server: {len(set(names) & set(theirs))} of {len(names)} sites match, "
                f"missing {missing or 'none'}, unknown {more or 'none'}"
            )
        if a.flat.shape != (num_clients, layout.size):
            raise IntegrityError(f"{name!r} has shape {tuple(a.flat.shape)}, not ({num_clients}, {layout.size})")


def check_mean(aggregation: Aggregation, sent: Adapter, weight: Tensor, ranks: Tensor, pooled: Adapter) -> None:
    """With equal ranks, an aggregation that is a mean gives the weighted mean of the factors, to the bit."""
    from fedfault.algebra import mean

    if aggregation.is_mean and bool((ranks == ranks[0]).all()):
        gap = mean(sent, weight).flat - pooled.flat
        if not _same(gap):
            raise IntegrityError(
                f"equal ranks, but the aggregation is off the weighted mean by {float(gap.abs().max()):.3g}"
                f"{_worst_site(sent.layout, gap)}"
            )


def check_state(algorithm: Algorithm, state: State) -> None:
    """The algorithm's own invariant, such as SCAFFOLD's c = sum of all clients' weighted c_i."""
    if sentence := algorithm.wrong(state):
        raise IntegrityError(sentence)


def finite_rows(up: Message, clients: Sequence[int], policy: str) -> tuple[list[bool], list[str]]:
    """Which clients sent finite numbers, and a sentence for the record on those that did not.

    Raises `UserError` if the policy is to stop.
    """
    good = torch.ones(len(clients), dtype=torch.bool)
    for value in up.values():
        flat = value.flat if isinstance(value, Adapter) else value
        if isinstance(flat, Tensor) and flat.ndim and len(flat) == len(clients):
            good &= (
                flat.detach().isfinite().flatten(1).all(1).cpu() if flat.ndim > 1 else flat.detach().isfinite().cpu()
            )
    bad = [k for k, ok in zip(clients, good.tolist(), strict=True) if not ok]
    if not bad:
        return good.tolist(), []
    who = f"client {', '.join(map(str, bad))}"
    if policy == "stop":
        raise UserError(
            f"parameters not finite after local training: {who}; lower training.lr, or federation.bad_updates=drop"
        )
    left = "" if len(bad) < len(clients) else ", so that the round changes nothing"
    return good.tolist(), [f"parameters not finite after local training, left out of the average: {who}{left}"]


def selected(message: Mapping[str, Any], good: Sequence[bool], num_clients: int) -> dict[str, Any]:
    """The rows of the good clients of a message stacked over the cohort."""
    if all(good):
        return dict(message)
    keep = torch.tensor(good)
    out: dict[str, Any] = {}
    for name, value in message.items():
        if isinstance(value, Adapter):
            out[name] = Adapter(value.layout, value.flat[keep.to(value.flat.device)])
        elif isinstance(value, Tensor) and value.ndim and len(value) == num_clients:
            out[name] = value[keep.to(value.device)]
        else:
            out[name] = value
    return out
