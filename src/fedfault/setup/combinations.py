"""Parts of a configuration that cannot be combined are refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from fedfault.config.schema import Experiment
from fedfault.config.sections.base import Component
from fedfault.data.poisoning import check_attacks
from fedfault.data.secrets import check_secrets
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.scheduling import Selection
from fedfault.setup import asynchrony, equipment, privacy
from fedfault.types.algorithm import TRAITS, Aggregation, Algorithm


def check_parts(exp: Experiment) -> None:
    """`UserError` for parts that cannot be combined and for hardware that does not fit, before anything is loaded."""
    equipment.check_equipment(exp)
    _check_score(exp)
    check_secrets(exp)
    f = exp.federation
    algorithm = build("algorithm", f.algorithm.name, **f.algorithm.options)
    aggregation = build("aggregation", f.aggregation.name, **f.aggregation.options)
    _check_selection(exp, algorithm, aggregation)
    asynchrony.check_asynchrony(exp, algorithm, aggregation)
    if f.updates_per_round < aggregation.least:
        raise UserError(
            f"federation.aggregation={f.aggregation.name} needs at least {aggregation.least} clients a round to stand a "
            f"hostile one, and a round has {f.updates_per_round}; raise federation.clients_per_round, or change its options"
        )
    if aggregation.in_turn and exp.training.local_steps == 1:
        raise UserError(
            f"federation.aggregation={f.aggregation.name} with in_turn=true trains private parts in the first half of a "
            "client's steps and the others in the second, but training.local_steps=1; give 2 at least, or leave in_turn out"
        )
    _check_personalise(exp)
    _check_tolerance(exp, algorithm, aggregation)
    privacy.check_privacy(exp, algorithm, aggregation)
    check_pairs(exp, algorithm, aggregation)


def _check_selection(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse a selection that averages cannot make up for, or that selects by numbers which nobody reports."""
    f = exp.federation
    chosen: Selection = build("selection", f.selection.name, **f.selection.options)
    for trait in sorted(chosen.traits):
        why = f"{f.algorithm.name} cannot stand that: {w}" if (w := algorithm.refuses.get(trait)) else ""
        if trait == "draws by size" and "reweighs" in aggregation.traits:
            why = f"{f.aggregation.name} has weights of its own"
        if trait == "draws by size" and "robust" in aggregation.traits and not aggregation.weighs:
            why = f"{f.aggregation.name} counts clients alike, whatever their weights"
        if why:
            raise UserError(
                f"federation.selection={f.selection.name} {TRAITS[trait]}, and {why}; use selection=uniform"
            )
    reported = chosen.needs & {"loss", "seconds"}
    if "seconds" in reported and not equipment.is_simulated(exp):
        raise UserError(
            f"federation.selection={f.selection.name} selects by the seconds of a client's round, and no time is simulated; "
            "give tiers, set its alpha to 0, or choose another selection"
        )
    by_size = "draws by size" in chosen.traits
    if (reported and f.cohort_size == f.total_clients) or ((reported or by_size) and f.centralised):
        taken = (
            "one client has all data" if f.centralised else f"all {f.total_clients} clients take part in every round"
        )
        raise UserError(
            f"federation.selection={f.selection.name} has nothing to select, as {taken}; set federation.clients_per_round "
            "to fewer, or use selection=uniform"
        )


def _check_personalise(exp: Experiment) -> None:
    """Refuse models of clients' own where there are no clients, or where theirs are to be hidden."""
    if exp.personalise is None:
        return
    if exp.federation.centralised:
        raise UserError(
            "personalise lets every client train the server's model on, but with federation.centralised=true there is one "
            "client, who has all data; leave one of them out"
        )
    if exp.privacy.unit is not None:
        raise UserError(
            "personalise writes down what every client trained on its own data, which "
            f"privacy.unit={exp.privacy.unit} is to hide; leave one of them out"
        )


def _check_tolerance(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse one client where several are needed, more hostile ones than a robust rule tolerates, or the one it trusts."""
    f, hostile = exp.federation, {k for attack in check_attacks(exp) for k in attack.clients}
    trusted = aggregation.trusted
    if f.centralised and (trusted or aggregation.least > 1):
        raise UserError(
            f"federation.aggregation={f.aggregation.name} needs more clients than one, and with federation.centralised=true "
            "client 0 has all data; use fedit, or leave it out"
        )
    if f.centralised and (algorithm.personal is not Algorithm.personal or "private" in aggregation.traits):
        raise UserError(
            f"federation.algorithm={f.algorithm.name} with federation.aggregation={f.aggregation.name} gives clients models "
            "of their own, and with federation.centralised=true client 0 has all data; use fedavg and fedit, or leave it out"
        )
    if trusted is not None and trusted >= f.total_clients:
        raise UserError(
            f"federation.aggregation={f.aggregation.name} trusts client {trusted}, and there are clients 0 to "
            f"{f.total_clients - 1}; give trusted the number of one of them"
        )
    if trusted in hostile:
        raise UserError(
            f"attacks: client {trusted} is hostile, and federation.aggregation={f.aggregation.name} trusts it: the model "
            "would be its own; give `by` other clients, or trusted an honest one"
        )
    most = aggregation.tolerates(f.updates_per_round) if aggregation.tolerates else 0
    if most and (least := len(hostile) - (f.total_clients - f.updates_per_round)) > most:
        raise UserError(
            f"attacks: {least} of the {f.updates_per_round} clients of every round are hostile at least, and "
            f"federation.aggregation={f.aggregation.name} stands {most} of so many; let fewer attack, raise "
            "clients_per_round, or choose another aggregation"
        )


def _check_score(exp: Experiment) -> None:
    """Raise `UserError` where a run is to end by a score that needs a library which is not installed."""
    if "rouge_l" in (exp.evaluation.stop_at or {}) and importlib.util.find_spec("rouge_score") is None:
        raise UserError(
            "evaluation.stop_at names rouge_l, which needs rouge-score: pip install 'fedfault[text]', or name exact_match"
        )


def check_pairs(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation, ranks: Sequence[int] = ()) -> None:
    """Refuse a pair that clashes: the one of the run, and the one that an alarm leads to; ranks: see `check_pair`."""
    check_pair(exp, algorithm, aggregation, ranks)
    if exp.federation.on_failure == "cluster":
        then = exp.federation.model_copy(update={"algorithm": Component(name="clustered")})
        check_pair(exp.model_copy(update={"federation": then}), build("algorithm", "clustered"), aggregation, ranks)


def check_pair(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation, ranks: Sequence[int] = ()) -> None:
    """Refuse an aggregation that does what the algorithm cannot stand, with the reason.

    ranks: (N,) the largest that each client's memory holds, 0 for none; nothing where it holds r_max, or is not known yet.
    """
    for trait in sorted(aggregation.traits):
        if why := algorithm.refusal(trait):
            name, method = exp.federation.algorithm.name, exp.federation.aggregation.name
            raise UserError(
                f"federation.algorithm={name} cannot be combined with federation.aggregation={method}: {method} "
                f"{TRAITS[trait]}, but {why}"
            )
    for key, trait in (("lr_ratio", "two rates"), ("gradient_accumulation", "accumulates")):
        if getattr(exp.training, key) != 1 and (why := algorithm.refuses.get(trait)):
            raise UserError(
                f"federation.algorithm={exp.federation.algorithm.name} cannot be combined with training.{key}="
                f"{getattr(exp.training, key):g}, which {TRAITS[trait]}: {why}; leave it out"
            )
    if exp.data.task_type == "preference" and (why := algorithm.refuses.get("pairs")):
        raise UserError(
            f"federation.algorithm={exp.federation.algorithm.name} cannot be combined with data.task_type=preference, which "
            f"{TRAITS['pairs']}: {why}; choose another algorithm"
        )
    if why := aggregation.refuses.get(exp.model.lora.init):
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} cannot be combined with model.lora.init="
            f"{exp.model.lora.init}: {why}; use init=uniform, or another aggregation"
        )
    by_scheduler, held = equipment.has_unequal_ranks(exp), set(ranks) - {0}
    if (by_scheduler or len(held) > 1) and (why := algorithm.refusal("unequal ranks")):
        way = (
            "use federation.scheduler=fixed with one rank"
            if by_scheduler
            else f"the memory of some tiers holds ranks up to {min(held)} only: raise tiers' memory_mb or lower "
            "model.lora.r_max"
        )
        raise UserError(
            f"federation.algorithm={exp.federation.algorithm.name} needs one LoRA rank for all clients, because {why}; {way}"
        )
    chosen = exp.federation.scheduler.name
    if "prunes" in aggregation.traits and equipment.build_scheduler(exp).r_bar is not None:
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} lowers the ranks of its clients itself, so that "
            f"federation.scheduler={chosen} cannot assign them; use the scheduler fixed, or gamma=1"
        )
    least, floor = exp.federation.aggregation.options.get("r_min", 1), exp.model.lora.r_min
    if "prunes" in aggregation.traits and equipment.is_simulated(exp) and least < floor:
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} lowers ranks down to r_min={least}, and on simulated "
            f"hardware clients below model.lora.r_min={floor} never take part again; give it r_min: {floor}"
        )
    if exp.model.trainable != "lora" and (aggregation.traits or not aggregation.is_mean):
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} is about LoRA factors, but model.trainable="
            f"{exp.model.trainable} has none; use fedit, which averages all that is trained"
        )
