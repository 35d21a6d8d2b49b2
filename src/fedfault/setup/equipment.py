"""From a checked configuration to the simulated hardware: tiers, deadline, clock and rank scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.hardware import clock, traces
from fedfault.hardware.clock import Fleet, Line, Tier
from fedfault.hardware.plan import Hardware
from fedfault.registry import build
from fedfault.rounds.dispatch import foresee_times
from fedfault.rounds.engine import begin
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, count_steps
from fedfault.scheduling import Ints, Scheduler, Situation
from fedfault.storage import expand_home
from fedfault.tasks.base import BackboneTask, CohortTask

COPIES = 4  # of every trained number that a client holds: itself, its gradient, two moments of AdamW
MB = 1e6
DIURNAL = "diurnal"  # clock.trace: made-up days and nights


def build_scheduler(exp: Experiment) -> Scheduler:
    """The rank scheduler of an experiment."""
    chosen = exp.federation.scheduler
    built: Scheduler = build("scheduler", chosen.name, **chosen.options)
    return built


def check_equipment(exp: Experiment) -> None:
    """`UserError` for tiers, ranks and traces that do not fit the federation, before anything is loaded."""
    lora, n, chosen = exp.model.lora, exp.federation.cohort_size, build_scheduler(exp)
    if exp.tiers:
        clock.check_tiers(_read_tiers(exp), exp.federation.total_clients)
    asked = exp.federation.scheduler.options
    for name in ("rank", "ranks"):
        most = max(np.atleast_1d(asked.get(name) or 0).tolist())
        if most > lora.r_max:
            raise UserError(f"federation.scheduler.{name} has {most}, but model.lora.r_max is {lora.r_max}")
    clock.check_ranks(lora.r_min, lora.r_max, chosen.r_bar, n)
    if chosen.r_bar is not None and exp.model.trainable != "lora":
        raise UserError(
            f"federation.scheduler={exp.federation.scheduler.name} assigns LoRA ranks, but model.trainable="
            f"{exp.model.trainable} has none; leave the scheduler out"
        )
    if exp.federation.centralised and (is_simulated(exp) or has_unequal_ranks(exp)):
        raise UserError(
            "federation.centralised=true has one client with all data and no simulated hardware; leave out tiers, deadline, "
            "clock.trace and schedulers that give clients different ranks"
        )
    if exp.clock.trace != DIURNAL and exp.clock.day != 86400:
        raise UserError("clock.day is of clock.trace=diurnal, which is not set; leave it out, or set the trace")
    _read_trace(exp)
    if (why := explain_full_rank(exp)) and (chosen.r_bar is not None or any(asked.get(n) for n in ("rank", "ranks"))):
        raise UserError(
            f"federation.scheduler={exp.federation.scheduler.name} gives clients other ranks than all of it: {why}; leave "
            "the scheduler's ranks out"
        )
    if exp.model.lora.rank_pattern and is_simulated(exp):
        raise UserError(
            "model.lora.rank_pattern gives modules ranks of their own, but tiers, deadline and clock.trace count slices of "
            "one rank; leave one of them out"
        )
    if takes_from_base(exp) and (rounded := [t.name for t in exp.tiers if t.quantization not in (None, "none")]):
        raise UserError(
            f"tiers: {rounded[0]} trains on a quantised base, but model.lora.init={exp.model.lora.init} leaves the rest of "
            "every weight to the base, which would be rounded anew; use init=uniform"
        )


def takes_from_base(exp: Experiment) -> bool:
    """Whether LoRA's factors start as a part of the base's weights, of which the rest is frozen."""
    return exp.model.lora.init in ("pissa", "olora")


def explain_full_rank(exp: Experiment) -> str:
    """Say as a clause why every client has to train all slices of its adapter; empty where it need not."""
    lora = exp.model.lora
    if takes_from_base(exp):
        return (
            f"with model.lora.init={lora.init} a slice holds a part of the base, which who lacks the slice would lack"
        )
    return "with model.lora.rank_pattern the modules have ranks of their own" if lora.rank_pattern else ""


def list_precisions(exp: Experiment) -> list[str]:
    """List how the copy of the backbone is quantised that each client trains on, (N,)."""
    own: str = exp.model.quantization
    each: list[str] = [tier.quantization or own for tier in exp.tiers for _ in range(tier.count)]
    return each or [own] * exp.federation.total_clients


def is_simulated(exp: Experiment) -> bool:
    """Whether there is anything to simulate: tiers, a deadline, a trace, asynchrony, or a scheduler that assigns ranks."""
    limits = (exp.deadline.limit, exp.clock.trace, build_scheduler(exp).r_bar, exp.federation.asynchronous)
    return bool(exp.tiers) or any(limit is not None for limit in limits)


def has_unequal_ranks(exp: Experiment) -> bool:
    """Whether clients may train with different ranks."""
    return build_scheduler(exp).r_bar is not None or len(set(exp.federation.scheduler.options.get("ranks") or ())) > 1


def build_hardware(exp: Experiment, task: BackboneTask, work: LocalWork) -> Hardware:
    """The hardware that an experiment describes.

    Raises `UserError` if no client has the memory for the smallest rank.
    """
    N, lora = exp.federation.total_clients, exp.model.lora
    fleet = Fleet.of(_read_tiers(exp) or [Tier("all", N)], N)
    rounds = np.array([count_steps(task.examples(k), work) for k in range(N)], dtype=float)  # (N, 2)
    per_rank = sum(d_in + d_out for _, d_in, d_out in (site.shape for site in task.layout.lora))
    copies = [task.select_copy(k) for k in range(N)]
    full = COPIES * 4 * sum(site.size for site in task.layout.sites if site.kind == "full")
    batch = exp.training.batch_size * copies[0].rows_each * exp.model.max_length
    fixed = np.array([copy.frozen_bytes() + full + copy.held_bytes() * batch for copy in copies])
    hw = Hardware(
        fleet=fleet,
        scheduler=build_scheduler(exp),
        steps=rounds[:, 0].astype(np.int64),
        tokens=rounds[:, 1] * np.array([task.read(k) for k in range(N)]),
        token_seconds=_weigh_token(copies[0], per_rank, exp.clock.flops),
        memory_mb=Line(fixed / MB, COPIES * 4 * per_rank / MB),
        r_min=lora.r_min,
        r_max=lora.r_max,
        deadline=exp.deadline.limit,
        policy=exp.deadline.straggler_policy,
        measured=exp.clock.mode == "measured",
        trace=_read_trace(exp),
    )
    clock.check_memory(fleet, hw.memory_mb, lora.r_min)
    return hw


def _weigh_token(task: CohortTask, per_rank: int, flops: float) -> Line:
    """The seconds of training on a token: all copies of the backbone have the same layers."""
    frozen, full, recomputed = task.frozen_weights(), task.full_weights(), task.recomputed_weights()
    again = task.first_looks * (frozen + full) + recomputed
    looks = task.first_looks + (recomputed > 0)
    return clock.token_cost(frozen, per_rank, flops, full=full, again=again, adapters_again=looks)


def check_deadline(fed: Federation) -> None:
    """`UserError` if no client of a new run can meet the deadline with the smallest rank, by the model of time."""
    hw = fed.hardware
    if hw is not None and hw.deadline is not None and not hw.measured:
        clock.check_deadline(hw.fleet, *foresee_times(fed, hw, begin(fed)), hw.r_min, hw.deadline)


def find_rank_limits(exp: Experiment, hw: Hardware | None) -> tuple[int, ...]:
    """The largest rank that each client ever trains, (N,); nothing where that is r_max for all."""
    N, most = exp.federation.total_clients, exp.model.lora.r_max
    caps: Ints = np.full(N, most) if hw is None else np.minimum(hw.caps, most).clip(0)
    chosen = build_scheduler(exp)
    if chosen.r_bar is None and exp.model.trainable == "lora":
        low, nothing = np.full(N, exp.model.lora.r_min), np.zeros(N)
        situation = Situation(1, exp.seed, np.arange(N), low, caps, 0, nothing, nothing)
        caps = np.array(chosen.assign(chosen.init(N), situation).ranks)
    ranks: list[int] = caps.tolist()
    return () if set(ranks) == {most} else tuple(ranks)


def _read_trace(exp: Experiment) -> traces.Trace | traces.Diurnal | None:
    """Read who comes and goes."""
    n, wanted = exp.federation.total_clients, exp.clock.trace
    if wanted is None:
        return None
    if wanted == DIURNAL:
        return traces.Diurnal(n, exp.clock.day, exp.seed)
    return traces.read_trace(expand_home(wanted, "clock.trace"), n)


def _read_tiers(exp: Experiment) -> list[Tier]:
    names: list[dict[str, Any]] = [tier.model_dump(exclude={"quantization"}) for tier in exp.tiers]
    return [Tier(**values) for values in names]
