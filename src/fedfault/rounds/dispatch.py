"""Asks the simulated hardware who trains in a round, with which rank and how far, and tells it what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fedfault.algebra import mask
from fedfault.hardware.clock import Line
from fedfault.hardware.plan import (
    Hardware,
    HardwareMemory,
    MessageSizes,
    RoundPlan,
    estimate_times,
    make_plan,
    observe_round,
)
from fedfault.rounds.exchange import Cohort, count_bytes_down, full_rank, select_rows, split_bytes_by_rank
from fedfault.rounds.federation import Federation
from fedfault.scheduling import Floats, Ints
from fedfault.types.algorithm import Message, State, Trained
from fedfault.types.task import Step


def plan_round(fed: Federation, state: State, down: Message) -> RoundPlan:
    """Plan the round after `state`: who trains, with which rank, how far each gets, and how long that takes.

    down: what the server sends. The upload is taken to be as large as the last round's, or as the download at first.
    """
    t, hw = state.round + 1, fed.hardware
    clients = np.array(_draw_cohort(fed, state), dtype=np.int64)
    limits = np.array(state.ranks) if hw is None else limit_ranks(hw, state)
    if hw is None or not len(clients):
        return RoundPlan(clients, limits[clients], np.ones(len(clients)))
    wire = weigh_messages(fed, hw, state, clients.tolist(), down)
    plans = state.plans if "clock" in state.plans or not hw.measured else _measure_first_step(fed, hw, state)
    made = make_plan(hw, plans, t, fed.seed, clients, limits[clients], wire)
    waited = find_start(hw, state) - hw.read_clock(plans)
    return made.wait_first(waited) if waited > 0 else made


def _draw_cohort(fed: Federation, state: State) -> list[int]:
    """Draw who is asked in the round after `state`, by what the selection needs to know."""
    now = 0.0 if fed.hardware is None else find_start(fed.hardware, state)
    return fed.cohort(state.round + 1, state.plans.get("selection", {}), _foresee_seconds(fed, state), now)


def find_start(hw: Hardware, state: State) -> float:
    """Seconds since the run began at which the round after `state` begins: when somebody is there who can train."""
    return hw.wait(hw.read_clock(state.plans), hw.list_able(limit_ranks(hw, state)))


def limit_ranks(hw: Hardware, state: State) -> Ints:
    """The largest rank that each client may train, (N,): layers that are trained in full have none to limit."""
    ranks: Ints = np.array(state.ranks)
    return ranks if full_rank(state.adapter.layout) else np.full(len(ranks), hw.r_max)


def _foresee_seconds(fed: Federation, state: State) -> Floats | None:
    """Seconds that every client's next round is expected to take, (N,), where the selection asks."""
    if fed.hardware is None or "seconds" not in fed.selection.needs:
        return None
    a, b = foresee_times(fed, fed.hardware, state)
    seconds: Floats = a + b * np.array(state.ranks)
    return seconds


def remember_losses(
    fed: Federation, plans: HardwareMemory, t: int, asked: Ints, told: Mapping[int, float]
) -> HardwareMemory:
    """The plans with who was asked in round t, and which training losses were reported, where the selection needs it.

    `loss`, `last` and `asked` have a number for each of the N clients: the loss that it reported, the round of that, and
    the round in which it was asked last, all 0 before. Who did not answer has `asked` above `last`.
    asked: ids of all who were drawn, whether or not the model reached them
    told: by id; a loss that is not finite is none
    """
    if "loss" not in fed.selection.needs:
        return plans
    known, none = plans.get("selection", {}), [0.0] * fed.total_clients
    loss, last = list(known.get("loss", none)), list(known.get("last", none))
    drawn = list(known.get("asked", last))  # checkpoints before `asked` have those who reported
    for k in asked.tolist():
        drawn[k] = float(t)
        if math.isfinite(told.get(k, math.nan)):
            loss[k], last[k] = told[k], float(t)
    return {**plans, "selection": {"loss": loss, "last": last, "asked": drawn}}


def weigh_messages(fed: Federation, hw: Hardware, state: State, clients: list[int], down: Message) -> MessageSizes:
    """Weigh what the server sends these clients, and what they will send: as much as last time, or what they will train."""
    whole = Cohort.of(clients, state, fed.aggregation, dict.fromkeys(clients, hw.r_max))
    down = select_rows(down, whole.rows)
    trained = split_bytes_by_rank(select_rows(down, 0), whole, state.adapter.layout)
    upload = state.plans.get("wire", {}).get("up", trained)
    present = replace(state, seen=(state.round,) * len(state.seen))  # as if all had been there in the last round
    (fixed,), (per_rank,) = _split_bytes_down(fed, present, clients[:1], down)
    sent_fixed, sent_per_rank = _split_bytes_down(fed, state, clients, down)
    missed = Line(sent_fixed - fixed, sent_per_rank - per_rank)
    return MessageSizes(Line(float(fixed), float(per_rank)), Line(*upload), missed)


def _split_bytes_down(fed: Federation, state: State, clients: list[int], down: Message) -> tuple[Floats, Floats]:
    """Split what each of these clients downloads, (n,), into bytes that do not depend on its rank and those of each unit."""
    most = full_rank(state.adapter.layout)

    def count(rank: int) -> Floats:
        cohort = Cohort.of(clients, state, fed.aggregation, dict.fromkeys(clients, rank))
        return np.array(count_bytes_down(cohort, down, state, fed.aggregation), dtype=float)

    none = count(0)
    return none, (count(most) - none) / max(most, 1)


def foresee_times(fed: Federation, hw: Hardware, state: State) -> tuple[Floats, Floats]:
    """Seconds a and b of every client, (N,), with which its next round of rank r takes a + b r, as the server expects it."""
    wire = weigh_messages(fed, hw, state, list(range(fed.total_clients)), fed.algorithm.broadcast(state))
    return estimate_times(hw, state.plans, state.round + 1, wire)


def _measure_first_step(fed: Federation, hw: Hardware, state: State) -> HardwareMemory:
    """The plans with the time of one step of client 0, the second of two: no round has been measured yet."""
    rows = torch.arange(min(fed.work.part_size, fed.task.examples(0)))[None]
    step, seconds = Step(torch.tensor([0]), rows, torch.ones_like(rows, dtype=torch.bool)), 0.0
    for _ in range(2):
        started = time.perf_counter()
        _, gradient, _ = fed.task.grad(state.adapter.flat[None], step)
        gradient[0, 0].item()  # waits for a device that is still at work
        seconds = time.perf_counter() - started
    seconds *= fed.work.parts
    return hw.rescale_clock(state.plans, seconds, float(hw.tokens[0] / hw.steps[0]), hw.r_max)


def learn_from_round(
    fed: Federation, state: State, made: RoundPlan, cohort: Cohort, up: Message, local: Trained, seconds: float
) -> HardwareMemory:
    """Update what scheduler and clock remember after a round; training it took so many seconds here."""
    hw, plans = fed.hardware, state.plans
    if hw is None:
        return plans
    ranks = cohort.ranks.numpy()
    tokens = hw.tokens[cohort.clients] * made.effort[made.training]
    plans = hw.rescale_clock(plans, seconds, float(tokens.sum()), float((ranks * tokens).sum() / tokens.sum()))
    plans = {**plans, "wire": {"up": list(split_bytes_by_rank(select_rows(up, 0), cohort, fed.task.layout))}}
    return observe_round(hw, plans, made, _measure_gains(fed, state, cohort, local) if hw.scheduler.needs_gain else {})


def _measure_gains(
    fed: Federation, state: State, cohort: Cohort, local: Trained
) -> dict[int, tuple[float, float | None]]:
    """Measure by how much each client's own held-out loss fell, in nats a token, and by how much with one rank less.

    From the whole model that the server had: against a model cut to the client's rank, who is cut most gains most. Clients
    whose loss is not a number are absent.
    """
    task, y = fed.task, local.adapter.flat
    before = task.held_out(state.adapter.flat.expand(len(y), -1), cohort.rows)
    gain = (before - task.held_out(y, cohort.rows)).tolist()
    below: list[float | None] = [None] * len(gain)
    if fed.hardware is not None and fed.hardware.scheduler.needs_gain_below:
        one_less = mask(task.layout, cohort.ranks - 1).to(y.device)
        below = (before - task.held_out(y.where(one_less, 0.0), cohort.rows)).tolist()
    found = zip(cohort.clients, gain, below, strict=True)
    return {k: (g, h) for k, g, h in found if math.isfinite(g) and (h is None or math.isfinite(h))}
