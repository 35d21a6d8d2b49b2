"""The federation that a configuration names, around a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedfault.backbones.replay import Record, record_graph, refuse_to_record
from fedfault.config.schema import Experiment
from fedfault.data.poisoning import find_hostile
from fedfault.data.split import Split
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, count_steps
from fedfault.setup import asynchrony, equipment, privacy
from fedfault.setup.combinations import check_pairs
from fedfault.tasks.base import BackboneTask, CohortTask
from fedfault.tasks.mixed import MixedTask
from fedfault.types.algorithm import Aggregation, Algorithm

RECORDS: dict[str, Record] = {"cuda": record_graph}  # type of device -> how a step is recorded there


def build_on_split(exp: Experiment, task: BackboneTask, dealt: Split[Any]) -> Federation:
    """The federation around a task on this split: of its clients, or of the one who has all their data."""
    fed = build_federation(exp, task)
    return centralise(fed, count_examples(task, dealt)) if exp.federation.centralised else fed


def count_examples(task: BackboneTask, dealt: Split[Any]) -> list[int]:
    """The training examples of every client of a split, (N,): a pair of responses is one, though it has two rows."""
    return [len(own) // task.select_copy(0).rows_each for own in dealt.train]


def centralise(fed: Federation, sizes: Sequence[int]) -> Federation:
    """Replace the clients by one with the data and the budget of all: it shows what a federation gives up.

    The optimiser steps that the cohorts of all rounds would take together are spread evenly over the rounds, rounded up.
    Batch size, learning rate and warm-up stay, and the optimiser starts anew in every round as the clients' does. The
    task of `fed` has one client with the examples of all, and still the evaluation sets of each.

    sizes: (N,) training examples of the clients
    """
    each = [count_steps(n, fed.work)[0] for n in sizes]
    total = sum(each[k] for t in range(1, fed.num_rounds + 1) for k in fed.cohort(t))
    work = replace(fed.work, epochs=None, steps=-(-total // fed.num_rounds))
    return replace(fed, work=work, total_clients=1, cohort_size=1, ranks=fed.ranks[:1])


def build_federation(exp: Experiment, task: BackboneTask) -> Federation:
    """The parts that a configuration names, around a task. Raises `UserError` where they cannot be combined."""
    f, t = exp.federation, exp.training
    work = LocalWork(
        epochs=t.local_epochs or (None if t.local_steps else 1),
        steps=t.local_steps,
        batch_size=t.batch_size * t.gradient_accumulation,
        parts=t.gradient_accumulation,
        lr=t.lr,
        lr_ratio=t.lr_ratio,
        optimizer=t.optimizer,
        max_grad_norm=t.max_grad_norm,
        weighting=f.weighting,
        weight_decay=t.weight_decay,
        betas=(t.betas[0], t.betas[1]),
    )
    hardware = equipment.build_hardware(exp, task, work) if equipment.is_simulated(exp) else None
    per_pass = task.clients_per_pass(t.batch_size) if t.clients_per_pass == "auto" else t.clients_per_pass
    algorithm: Algorithm = build("algorithm", f.algorithm.name, **f.algorithm.options)
    aggregation: Aggregation = build("aggregation", f.aggregation.name, **f.aggregation.options)
    ranks = equipment.find_rank_limits(exp, hardware)
    check_pairs(exp, algorithm, aggregation, ranks)
    aggregation.private(task.layout)  # parts that the model does not have are refused here, before there is a folder
    if ranks and (why := equipment.explain_full_rank(exp)):
        raise UserError(
            f"the memory of some tiers holds ranks up to {min(ranks)} only: {why}; raise tiers' memory_mb or lower "
            "model.lora.r_max"
        )
    fed = Federation(
        task=task,
        algorithm=algorithm,
        aggregation=aggregation,
        work=work,
        total_clients=f.total_clients,
        cohort_size=f.cohort_size,
        num_rounds=f.num_rounds,
        seed=exp.seed,
        selection=build("selection", f.selection.name, **f.selection.options),
        asynchronous=asynchrony.build_asynchrony(exp),
        warmup_ratio=t.warmup_ratio,
        lr_schedule=t.lr_schedule,
        min_lr=t.min_lr or 0.0,
        evaluate_every=exp.evaluation.every,
        clients_per_pass=per_pass,
        need=describe_need(task, t.batch_size),
        record=choose_record(task),
        ranks=ranks,
        hardware=hardware,
        bad_updates=f.bad_updates,
        attacks=find_hostile(exp),
        probes={name: build("probe", name) for name, wanted in exp.metrics if wanted},
    )
    equipment.check_deadline(fed)
    return privacy.hide(fed, exp)


def choose_record(task: BackboneTask) -> Record | None:
    """Choose how steps of one shape are recorded, on a device that can, or say why they are not; None on any other."""
    record = RECORDS.get(task.select_copy(0).model.device.type)
    if record is None:
        return None
    if isinstance(task, MixedTask):
        return refuse_to_record("clients train on several copies of the backbone")
    if isinstance(task, CohortTask) and task.cache is not None:
        return refuse_to_record("rows are looked up in the activation cache")
    if task.select_copy(0).model.recomputed:
        return refuse_to_record("blocks are computed again for the gradient")
    return record


def describe_need(task: BackboneTask, batch_size: int) -> str:
    """What a pass of one client takes of a device's memory, as the end of a sentence; empty where it is not known."""
    if task.free is None:
        return ""
    need, free = task.estimate_pass(1, batch_size) / 1e9, task.free / 1e9
    return f"takes about {need:,.1f} GB of the {free:,.1f} GB that were free at the start"
