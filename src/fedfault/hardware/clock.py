"""Simulated time: hardware tiers, how long a client's round takes, and which clients a deadline cuts short or drops.

    t_i(r) = download_i(r) + compute_i(r) + upload_i(r) = a_i + b_i r
    compute_i = seconds at speed 1 / compute_factor_i;   download_i, upload_i = bytes * 8 / (mbps_i * 10^6)

The seconds at speed 1 come from `Load.wall` where the clock is a model, and were taken while the client trained where it is
`measured`. Everything here is a pure function of its arguments: no function reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError
from fedfault.scheduling import Floats, Ints

Bools = NDArray[np.bool_]
Policy = Literal["drop", "wait", "use_partial"]

IN_TIME = 1 + 1e-9  # a client planned to the last second of a deadline meets it


@dataclass(frozen=True)
class Tier:
    """A hardware profile and how many clients have it; None: no limit."""

    name: str
    count: int
    compute_factor: float = 1.0  # speed; 0.5 takes twice as long
    memory_mb: float | None = None
    bandwidth_up_mbps: float | None = None  # megabits a second
    bandwidth_down_mbps: float | None = None


@dataclass(frozen=True)
class Fleet:
    """The hardware of clients, (n,) each; infinite where there is no limit."""

    tier: tuple[str, ...]
    compute_factor: Floats
    memory_mb: Floats
    up_mbps: Floats
    down_mbps: Floats

    @classmethod
    def of(cls, tiers: Sequence[Tier], num_clients: int) -> Fleet:
        """Clients 0, 1, ... have the first tier until its count is used up, then the next. `UserError` by `check_tiers`."""
        check_tiers(tiers, num_clients)
        each = [tier for tier in tiers for _ in range(tier.count)]
        return cls(
            tuple(tier.name for tier in each),
            np.array([tier.compute_factor for tier in each]),
            _read_limits([tier.memory_mb for tier in each]),
            _read_limits([tier.bandwidth_up_mbps for tier in each]),
            _read_limits([tier.bandwidth_down_mbps for tier in each]),
        )

    def select_clients(self, clients: Ints, bandwidth_mbps: Floats | None = None) -> Fleet:
        """The hardware of some clients, with a bandwidth of the moment for both directions, (n,), NaN for the tier's own."""
        own = np.full(len(clients), np.nan) if bandwidth_mbps is None else bandwidth_mbps
        return Fleet(
            tuple(self.tier[i] for i in clients.tolist()),
            self.compute_factor[clients],
            self.memory_mb[clients],
            np.where(np.isnan(own), self.up_mbps[clients], own),
            np.where(np.isnan(own), self.down_mbps[clients], own),
        )


def _read_limits(values: Sequence[float | None]) -> Floats:
    return np.array([np.inf if value is None else value for value in values])


class Line(NamedTuple):
    """A cost that grows with the rank: fixed + per_rank * r; both may differ between clients, (n,)."""

    fixed: float | Floats
    per_rank: float | Floats

    def at(self, ranks: Ints | Floats) -> Floats:
        """Return the load with these ranks."""
        return np.asarray(self.fixed + self.per_rank * ranks, dtype=float)


@dataclass(frozen=True)
class Load:
    """The work that a round asks of n clients: modelled time follows from it, and estimates of time start there."""

    tokens: Floats  # (n,) target tokens that each trains on
    token_seconds: Line  # of one token at speed 1
    down: Line  # bytes; heads and whatever else does not depend on the rank are in `fixed`
    up: Line

    def wall(self, ranks: Ints | Floats) -> Floats:
        """Seconds of local training at speed 1, (n,)."""
        return self.tokens * self.token_seconds.at(ranks)


def token_cost(
    frozen: float, per_rank: float, flops: float, *, full: float = 0, again: float = 0, adapters_again: int = 0
) -> Line:
    """Seconds of training on one token at `flops` operations a second.

    Forward and the gradient of the input are 2 operations each for every frozen weight; an adapter has `per_rank` numbers
    for a unit of rank (the sum of d_in + d_out over its sites) and needs their own gradient too: 6. So do weights that are
    trained in full. A further forward pass, without a gradient or to compute a block again, is 2 operations: of `again`
    weights, and of all adapters so many times. Attention scores are left out; they are small for short texts.

    >>> line = token_cost(frozen=128 * 128, per_rank=128 + 128, flops=1e9)
    >>> round(8 * line.per_rank / line.fixed, 4)  # LoRA of rank 8 on one square layer of 128, to the layer
    0.1875
    """
    return Line((4 * frozen + 6 * full + 2 * again) / flops, (6 + 2 * adapters_again) * per_rank / flops)


class Times(NamedTuple):
    """The seconds of each client by their use, (n,) each."""

    down: Floats
    compute: Floats
    up: Floats

    @property
    def total(self) -> Floats:
        """The seconds of the whole round."""
        return self.down + self.compute + self.up


def simulate_times(fleet: Fleet, wall: Floats, bytes_down: Floats, bytes_up: Floats) -> Times:
    """Simulated seconds of clients that would train for `wall` seconds at speed 1 and move so many bytes."""
    return Times(
        bytes_down * 8e-6 / fleet.down_mbps, np.asarray(wall / fleet.compute_factor), bytes_up * 8e-6 / fleet.up_mbps
    )


def compute_model_times(fleet: Fleet, load: Load, ranks: Ints | Floats) -> Times:
    """`simulate_times` from the model alone: deterministic."""
    return simulate_times(fleet, load.wall(ranks), load.down.at(ranks), load.up.at(ranks))


def compute_model_lines(fleet: Fleet, load: Load) -> tuple[Floats, Floats]:
    """a and b, (n,) each, of t_i(r) = a_i + b_i r: exactly the total of `compute_model_times`."""
    n = len(fleet.tier)
    a = compute_model_times(fleet, load, np.zeros(n)).total
    slopes = Load(
        load.tokens, Line(0, load.token_seconds.per_rank), Line(0, load.down.per_rank), Line(0, load.up.per_rank)
    )
    return a, compute_model_times(fleet, slopes, np.ones(n)).total


def rank_caps(fleet: Fleet, memory_mb: Line, r_max: int) -> Ints:
    """The largest rank <= r_max with which each client's memory is not exceeded, (n,); -1 where not even rank 0 fits.

    >>> fleet = Fleet.of([Tier("small", 1, memory_mb=100), Tier("large", 1)], 2)
    >>> rank_caps(fleet, Line(fixed=70, per_rank=10), r_max=8).tolist()
    [3, 8]
    """
    left = fleet.memory_mb - memory_mb.fixed
    most = np.floor(left / memory_mb.per_rank + 1e-9) if memory_mb.per_rank > 0 else np.full(len(left), np.inf)
    return np.where(left < 0, -1, np.minimum(most, r_max)).astype(np.int64)


class Outcome(NamedTuple):
    """The outcome of a round under a deadline, (n,) each."""

    steps: Ints  # finished and counted
    seconds: Floats  # after which the server needs to wait for the client no longer
    exceeded: Bools  # not done with all its work by the deadline
    dropped: Bools  # nothing of it arrives

    @property
    def round_seconds(self) -> float:
        """The slowest client, dropped ones included; 0 if nobody trained."""
        return float(self.seconds.max(initial=0.0))

    @property
    def compliance(self) -> float:
        """Share of the clients that were done in time; 1 if nobody trained."""
        return 1.0 - float(self.exceeded.mean()) if len(self.exceeded) else 1.0


def apply_deadline(spent: Times, steps: Ints, deadline: float | None, policy: Policy) -> Outcome:
    """Compute what each client of a round gets done of its steps, under a deadline in seconds, None for none.

    wait         everybody finishes; the round takes as long as the slowest
    drop         nothing of a client that is late counts; the round then lasts to the deadline
    use_partial  a client stops in time to send what it has: floor((D - down - up) / seconds a step) steps; one that would
                 have none is dropped

    Download and upload count. Steps of a client take equally long.
    """
    total = spent.total
    if deadline is None:
        never = np.zeros(len(steps), dtype=bool)
        return Outcome(steps, total, never, never)
    exceeded: Bools = total > deadline * IN_TIME
    if policy == "wait":
        return Outcome(steps, total, exceeded, np.zeros(len(steps), dtype=bool))
    done = np.where(exceeded, 0, steps) if policy == "drop" else _count_steps_in_time(spent, steps, deadline, exceeded)
    dropped: Bools = exceeded & (done == 0)
    partial = spent.down + spent.compute * done / np.maximum(steps, 1) + spent.up
    seconds = np.where(exceeded, partial, total)
    return Outcome(done, np.where(dropped, deadline, seconds), exceeded, dropped)


def _count_steps_in_time(spent: Times, steps: Ints, deadline: float, exceeded: Bools) -> Ints:
    left = deadline - spent.down - spent.up
    share = left / np.where(spent.compute > 0, spent.compute, np.inf)  # of its work; no work at all is the wires' fault
    some = np.floor(np.clip(share, 0, 1) * steps * IN_TIME).astype(np.int64)
    most: Ints = np.where(exceeded, np.minimum(some, np.maximum(steps - 1, 0)), steps)
    return most


def check_tiers(tiers: Sequence[Tier], num_clients: int) -> None:
    """`UserError` if the tiers do not describe the clients."""
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise UserError(f"tiers: two have the same name ({', '.join(names)}); give every tier its own")
    for tier in tiers:
        if tier.count < 0:
            raise UserError(f"tiers: {tier.name} has count {tier.count}; a count is 0 or more")
        for what in ("compute_factor", "memory_mb", "bandwidth_up_mbps", "bandwidth_down_mbps"):
            value = getattr(tier, what)
            if value is not None and not 0 < value < np.inf:
                no_limit = "" if what == "compute_factor" else ", or leave it out for no limit"
                raise UserError(f"tiers: {tier.name} has {what} {value}; give a number above 0{no_limit}")
    total = sum(tier.count for tier in tiers)
    if total != num_clients:
        counts = " + ".join(f"{tier.count} {tier.name}" for tier in tiers) or "no tier"
        raise UserError(
            f"tiers: {counts} make {total} clients, but federation.total_clients is {num_clients}; "
            "change the counts or the number of clients so that they agree"
        )


def check_ranks(r_min: int, r_max: int, r_bar: float | None, num_clients: int) -> None:
    """`UserError` if no rank is allowed, or if the budget of a round of `num_clients` is outside what they can be given."""
    if r_min < 1 or r_min > r_max:
        raise UserError(f"model.lora: r_min {r_min} and r_max {r_max}; ranks need 1 <= r_min <= r_max")
    if r_bar is None:
        return
    budget, least, most = r_bar * num_clients, num_clients * r_min, num_clients * r_max
    if not least <= budget <= most:
        side = f"below {num_clients} * r_min = {least}" if budget < least else f"above {num_clients} * r_max = {most}"
        raise UserError(
            f"federation.scheduler.r_bar {r_bar:g}: the budget of a round, {budget:g}, is {side}; "
            f"r_bar is the mean rank, from r_min {r_min} to r_max {r_max}"
        )


def check_memory(fleet: Fleet, memory_mb: Line, r_min: int) -> None:
    """`UserError` if no client has the memory to train with the smallest rank."""
    needed = memory_mb.at(np.full(len(fleet.tier), r_min))
    if (fleet.memory_mb < needed).all():
        best = int((fleet.memory_mb - needed).argmax())
        raise UserError(
            f"tiers: training with rank {r_min} takes {needed[best]:.0f} MB, and the best tier, {fleet.tier[best]}, has "
            f"{fleet.memory_mb[best]:.0f} MB; what works: more memory_mb, a smaller batch or model, quantization"
        )


def check_deadline(fleet: Fleet, a: Floats, b: Floats, r_min: int, deadline: float) -> None:
    """`UserError` if no client can meet the deadline with the smallest rank, taking a + b r seconds, (n,)."""
    needs = a + b * r_min
    if (needs > deadline * IN_TIME).all():
        best = int(needs.argmin())
        raise UserError(
            f"deadline.seconds {deadline:g}: nobody can meet it; the fastest client, {best} ({fleet.tier[best]}), needs "
            f"{needs[best]:.3g} s with rank {r_min}; what works: a later deadline, less local work (training.local_steps), "
            "faster tiers"
        )
