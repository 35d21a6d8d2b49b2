"""Unequal hardware in a round: which rank each client is given, how long its work takes, and who is late.

    drawn clients --scheduler--> ranks --clock--> seconds --deadline--> who trains, and how many of its steps

Plain numbers throughout: nothing here imports torch or reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfault.hardware import timing
from fedfault.hardware.clock import (
    Fleet,
    Line,
    Load,
    Outcome,
    Policy,
    Times,
    apply_deadline,
    compute_model_lines,
    rank_caps,
    simulate_times,
)
from fedfault.hardware.flight import Flight
from fedfault.hardware.traces import Diurnal, Trace
from fedfault.records import Fate, Turn
from fedfault.registry import build
from fedfault.scheduling import Floats, Ints, Memory, Report, Scheduler, Situation

# What outlives a round, by whose it is: the scheduler, the estimates of time, the clock
HardwareMemory = Mapping[str, Memory]


class MessageSizes(NamedTuple):
    """Bytes of a client's payload: as they depend on its rank, both ways, and what else it has missed so far."""

    down: Line  # of who was there in the last round
    up: Line
    missed: Line  # (n,) both


@dataclass(frozen=True)
class Hardware:
    """What the N clients run on, and who decides which ranks they train; the sections tiers, deadline and clock."""

    fleet: Fleet
    scheduler: Scheduler
    steps: Ints  # (N,) local steps of a round
    tokens: Floats  # (N,) tokens that the model reads in them
    token_seconds: Line  # of one token at speed 1, by the model of time
    memory_mb: Line  # that training takes on each of the N clients
    r_min: int
    r_max: int
    deadline: float | None = None  # seconds
    policy: Policy = "wait"
    measured: bool = False  # `token_seconds` is scaled by what training takes here
    trace: Trace | Diurnal | None = None

    @property
    def caps(self) -> Ints:
        """The largest rank that each client has the memory for, (N,); below r_min if none."""
        return rank_caps(self.fleet, self.memory_mb, self.r_max)

    def init_memory(self) -> HardwareMemory:
        """Make the memory before the first round."""
        n = len(self.steps)
        return {"scheduler": self.scheduler.init(n), "timing": timing.init_sums(n)}

    def available(self, round: int, now: float) -> NDArray[np.bool_]:
        """Tell which clients can take part in a round, or from so many seconds after the start of the run, (N,)."""
        return np.ones(len(self.steps), dtype=bool) if self.trace is None else self.trace.available(round, now)

    def list_able(self, limits: Ints) -> NDArray[np.bool_]:
        """Tell which clients can train when they are there, (N,). limits: (N,) the largest rank that each may train."""
        return np.minimum(self.caps, limits) >= self.r_min

    def wait(self, now: float, able: NDArray[np.bool_]) -> float:
        """The first moment from `now` on at which a client that can train is there, where the trace is one of time.

        Else `now`. able: (N,) who can train. Where others alone are there, no round would move time on.
        """
        return self.trace.wait(now, able) if isinstance(self.trace, Diurnal) else now

    def read_clock(self, plans: HardwareMemory) -> float:
        """Simulated seconds since the run began."""
        return float(plans.get("now", {}).get("seconds", [0.0])[0])

    def fleet_in_round(self, round: int, clients: Ints) -> Fleet:
        """The hardware of these clients with the bandwidth that they have in a round."""
        mbps = None if self.trace is None else self.trace.bandwidth(round)[clients]
        return self.fleet.select_clients(clients, mbps)

    def load(self, plans: HardwareMemory, clients: Ints, wire: MessageSizes) -> Load:
        """Compute what a round asks of these clients, with the seconds of a token as they were last measured."""
        fixed, per_rank = self.token_seconds
        scale = plans.get("clock", {}).get("scale", [1.0])[0]
        return Load(self.tokens[clients], Line(fixed * scale, per_rank * scale), wire.down, wire.up)

    def rescale_clock(self, plans: HardwareMemory, seconds: float, tokens: float, rank: float) -> HardwareMemory:
        """Return the memory with the clock set by a measurement: training on so many tokens took so many seconds here.

        rank: the mean one, by tokens. All seconds of a token are scaled alike, so that the model of time gives this
        measurement; a clock that is not `measured` stays as it is.
        """
        if not self.measured or tokens <= 0:
            return plans
        fixed, per_rank = self.token_seconds
        return {**plans, "clock": {"scale": [float(seconds / (tokens * (fixed + per_rank * rank)))]}}


@dataclass(frozen=True)
class RoundPlan:
    """The plan of a round for the n clients that were drawn for it, in their order, and what becomes of it."""

    clients: Ints  # (n,)
    ranks: Ints  # (n,) 0 for a client that is left out
    effort: Floats  # (n,) share of the local steps that is done and counts; 0 for a client that does not train
    turns: tuple[Turn, ...] = ()
    slope: Floats = field(default_factory=lambda: np.zeros(0))  # (n,) seconds that a further rank takes
    readings: Mapping[str, float] = field(default_factory=dict)  # of the round
    events: tuple[str, ...] = ()
    unreached: frozenset[int] = frozenset()  # ids of the clients to whom nothing could be sent
    versions: tuple[int, ...] = ()  # (n,) of asynchronous clients: the round whose model each started from
    away: tuple[Flight, ...] = ()  # asynchronous clients that are still at work when the round ends

    @property
    def sent(self) -> list[int]:
        """Ids of the clients that the model is sent to: all but those that are left out or not reached."""
        away = self.unreached | {turn.client for turn in self.turns if turn.fate == "excluded"}
        return [k for k in self.clients.tolist() if k not in away]

    @property
    def training(self) -> list[int]:
        """Places of the clients whose work counts."""
        found: list[int] = np.flatnonzero(self.effort > 0).tolist()
        return found

    def wait_first(self, seconds: float) -> RoundPlan:
        """The plan with a server that waited so long until anybody was there."""
        longer = self.readings.get("round_seconds", 0.0) + seconds
        return replace(self, readings={**self.readings, "round_seconds": longer})

    def keep_arrived(self, arrived: Sequence[int], unreached: frozenset[int] = frozenset()) -> RoundPlan:
        """The plan with the work of these clients alone: what else was to come has not, and is dropped too.

        unreached: those of the lost to whom nothing was sent.
        """
        lost = set(self.clients[self.training].tolist()) - set(arrived)
        if not lost:
            return self
        turns = [replace(turn, fate="dropped", share=0.0) if turn.client in lost else turn for turn in self.turns]
        turns = [replace(turn, bytes_down=0) if turn.client in unreached else turn for turn in turns]
        effort = self.effort * np.isin(self.clients, arrived)
        return replace(self, effort=effort, turns=tuple(turns), unreached=unreached)


def make_plan(
    hw: Hardware, plans: HardwareMemory, round: int, seed: int, clients: Ints, limits: Ints, wire: MessageSizes
) -> RoundPlan:
    """Ranks, times and fates of the clients (n,) that were drawn. limits: (n,) the largest rank that each may train."""
    fleet, load = hw.fleet_in_round(round, clients), hw.load(plans, clients, wire)
    missed, missed_slope = (bytes * 8e-6 / fleet.down_mbps for bytes in wire.missed)
    a, b = estimate_times(hw, plans, round, wire)
    low, high = np.full(len(clients), hw.r_min), np.minimum(hw.caps[clients], limits)
    budget = hw.scheduler.budget(len(clients))
    s = Situation(round, seed, clients, low, high, budget, a[clients] + missed, b[clients] + missed_slope, hw.deadline)
    given = hw.scheduler.assign(plans["scheduler"], s)
    ranks = np.array(given.ranks, dtype=np.int64)
    spent, bytes_down, memory = simulate_work(hw, plans, round, clients, ranks, wire)
    done = apply_deadline(_select_times(spent, ranks > 0), hw.steps[clients][ranks > 0], hw.deadline, hw.policy)
    fates = _judge_fates(hw, ranks, done)
    effort = np.zeros(len(clients))
    effort[ranks > 0] = done.steps / hw.steps[clients][ranks > 0]
    true_a, slope = compute_model_lines(fleet, load)
    slope = slope + missed_slope
    best = find_shortest_round(replace(s, a=true_a + missed, b=slope, high=hw.caps[clients]), ranks)
    turns = []
    for i, fate in enumerate(fates):
        turn = Turn(int(clients[i]), fleet.tier[i], int(ranks[i]), fate)
        if fate != "excluded":
            parts, share = [float(part[i]) for part in spent], float(effort[i])
            down, compute, up = _split_seconds(fate, parts, share, hw.deadline)
            turn = replace(turn, down=down, compute=compute, up=up, needed=sum(parts), share=share)
            turn = replace(turn, bytes_down=int(np.rint(bytes_down[i])), memory_mb=float(memory[i]))
        turns.append(turn)
    return RoundPlan(
        clients, ranks, effort, tuple(turns), slope, _summarise_round(ranks, spent, done, best), given.events
    )


class Work(NamedTuple):
    """The course of the whole work of n clients, (n,) each."""

    spent: Times
    bytes_down: Floats
    memory_mb: Floats


def simulate_work(
    hw: Hardware, plans: HardwareMemory, round: int, clients: Ints, ranks: Ints, wire: MessageSizes
) -> Work:
    """Simulate what all of a round's work takes these clients (n,) with their ranks: seconds, download and memory."""
    fleet, load = hw.fleet_in_round(round, clients), hw.load(plans, clients, wire)
    bytes_down = load.down.at(ranks) + wire.missed.at(ranks)
    spent = simulate_times(fleet, load.wall(ranks), bytes_down, load.up.at(ranks))
    every = np.zeros(len(hw.steps))
    every[clients] = ranks
    return Work(spent, bytes_down, hw.memory_mb.at(every)[clients])


def observe_round(
    hw: Hardware, plans: HardwareMemory, made: RoundPlan, gains: Mapping[int, tuple[float, float | None]]
) -> HardwareMemory:
    """Update the memory after a round. gains: client -> gain in nats a token, and that with one rank less."""
    reports = []
    for turn, slope in zip(made.turns, made.slope, strict=True):
        if turn.fate != "excluded":
            gain, gain_below = gains.get(turn.client, (None, None))
            tokens, late = int(hw.tokens[turn.client]), turn.fate != "done"
            below = None if gain_below is None else turn.needed - float(slope)
            reports.append(Report(turn.client, turn.rank, turn.needed, tokens, late, gain, gain_below, below))
    now = hw.read_clock(plans) + made.readings.get("round_seconds", 0.0)
    return {
        **plans,
        "now": {"seconds": [now]},
        "scheduler": hw.scheduler.observe(plans["scheduler"], reports),
        "timing": timing.observe(plans["timing"], reports),
    }


def find_shortest_round(s: Situation, ranks: Ints) -> float:
    """Seconds of the shortest round in which the same clients have ranks of the same sum; 0 if nobody has any."""
    part = np.flatnonzero(ranks > 0)
    if not len(part):
        return 0.0
    high = np.maximum(s.high, ranks)[part]
    own = Situation(s.round, s.seed, s.clients[part], s.low[part], high, int(ranks.sum()), s.a[part], s.b[part])
    best = build("scheduler", "exact").assign({}, own)
    return float(own.seconds(best.ranks).max())


def estimate_times(hw: Hardware, plans: HardwareMemory, round: int, wire: MessageSizes) -> tuple[Floats, Floats]:
    """a and b of all clients, (N,), as the server knows them: by their tiers, corrected by what their rounds have taken."""
    everyone = np.arange(len(hw.steps))
    a, b = compute_model_lines(hw.fleet_in_round(round, everyone), hw.load(plans, everyone, wire))
    return timing.estimate(plans["timing"], a, b, hw.r_max)


def _select_times(spent: Times, which: NDArray[np.bool_]) -> Times:
    return Times(*(part[which] for part in spent))


def _judge_fates(hw: Hardware, ranks: Ints, done: Outcome) -> list[Fate]:
    """Judge what became of each of the n clients; `done` is of those with a rank."""
    found: list[Fate] = ["excluded"] * len(ranks)
    for place, i in enumerate(np.flatnonzero(ranks > 0)):
        late: Fate = "dropped" if done.dropped[place] else "late" if hw.policy == "wait" else "partial"
        found[i] = late if done.exceeded[place] else "done"
    return found


def _split_seconds(fate: Fate, parts: list[float], share: float, deadline: float | None) -> tuple[float, float, float]:
    """Seconds of download, training and upload as far as a client got; parts: those of all of its work."""
    down, compute, up = parts
    if fate == "partial":
        return down, compute * share, up
    if fate == "dropped" and deadline is not None:  # it is at work until the server stops waiting
        down = min(down, deadline)
        compute = min(compute, deadline - down)
        up = min(up, deadline - down - compute)
    return down, compute, up


def _summarise_round(ranks: Ints, spent: Times, done: Outcome, best: float) -> dict[str, float]:
    """Summarise how long the round took, how many were in time, and how far from the shortest one it was planned."""
    taken = ranks > 0
    if not taken.any():
        return {"round_seconds": 0.0, "compliance": 1.0}
    found = {
        "round_seconds": done.round_seconds,
        "compliance": done.compliance,
        "mean_rank": float(ranks[taken].mean()),
    }
    return found | ({"regret": float(spent.total[taken].max()) / best} if best > 0 else {})
