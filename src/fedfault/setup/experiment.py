"""The one place where the parts meet: a checked configuration becomes a federation that is ready to run."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from fedfault.backbones.checks import check_tokens, count_positions, state_width
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone, Say, load_backbone, say_nothing
from fedfault.backbones.quantised import count_parameters
from fedfault.backbones.sample import sample_texts
from fedfault.backbones.scorer import LAST, Scorer
from fedfault.backbones.sites import Targets, check_rank, lora_targets, match_patterns, partial_targets
from fedfault.config.schema import Component, Experiment
from fedfault.data import labelled
from fedfault.data.heterogeneity import load_or_measure
from fedfault.data.instruct import check_conversations, split_into_responses
from fedfault.data.poisoning import ask_for_phrases, check_attacks, find_hostile
from fedfault.data.split import (
    CLIENT_SHARE,
    Split,
    bytes_per_token,
    is_same_corpus,
    load_corpus,
    pack_and_draw,
    split_into_blocks,
)
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, count_steps
from fedfault.rounds.replay import Record, record_graph, refuse_to_record
from fedfault.scheduling import Selection
from fedfault.seeds import torch_rng
from fedfault.setup import asynchrony, equipment, privacy
from fedfault.storage import cache_dir, keep, recall
from fedfault.tasks.base import BackboneTask, CohortTask
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask, Rows
from fedfault.tasks.mixed import MixedTask
from fedfault.tasks.preference import Objective, PreferenceTask
from fedfault.text.conversing import ChatTemplate, choose_template, describe_template
from fedfault.text.decoding import make_decoder
from fedfault.text.examples import Examples
from fedfault.text.packing import Blocks, pack_blocks
from fedfault.text.questions import Questions, ask_phrases, ask_questions
from fedfault.text.responses import Responses
from fedfault.text.tokens import encode_texts
from fedfault.types.algorithm import TRAITS, Aggregation, Algorithm
from fedfault.types.corpus import Corpus

BACKDOOR = "backdoor"  # the score that says how often a trigger works
RECORDS: dict[str, Record] = {"cuda": record_graph}  # type of device -> how a step is recorded there


@dataclass(frozen=True)
class Prepared:
    """An experiment with its model and data in memory."""

    config: Experiment
    backbone: Backbone
    model: CohortModel
    split: Split[Any]
    task: BackboneTask
    federation: Federation
    data_elsewhere: bool = False  # clients have data of their own: the split says nothing of it
    template: ChatTemplate | None = None  # that conversations are written by
    spread: Callable[[Prepared], Prepared] = lambda p: p  # lets its federation train where this one's does

    def heterogeneity(self, say: Say = say_nothing) -> dict[str, Any]:
        """The realised heterogeneity of the split: `Heterogeneity.to_json`, from the cache where it is known."""
        exp = self.config
        settings = (
            exp.data.model_dump(),
            exp.model.model_dump(),
            exp.federation.total_clients,
            exp.training.loss_on,
            self.backbone.fingerprint,
        )
        key = (settings, self.backbone.precision)
        return load_or_measure(self.split, self.model, exp.seed, self.backbone.separator, key, say)

    def with_settings(self, exp: Experiment) -> Prepared:
        """The same model and data with other settings of the federation."""
        return self.spread(replace(self, config=exp, federation=_build_on_split(exp, self.task, self.split)))

    @property
    def parameters(self) -> int:
        """Numbers in the frozen backbone."""
        return count_parameters(self.backbone.model)


def prepare(
    exp: Experiment, say: Say = say_nothing, *, like: Prepared | None = None, control: bool = False
) -> Prepared:
    """Load model and data, deal the data out, open the model up for a cohort.

    `say` is told in a line what is going on. `like` lends its backbone and corpus, if the experiments have the same. A
    `control` has IID clients of the same sizes. Raises `UserError` for everything that the user can mend.
    """
    check_parts(exp)
    say(f"corpus {exp.data.dataset.name}")
    corpus = like.split.corpus if like is not None and is_same_corpus(like.config, exp) else load_corpus(exp)
    for line in corpus.tally.describe():
        say(line)
    check_conversations(exp, corpus)
    outputs = labelled.count_outputs(exp, corpus)
    say(f"backbone {exp.model.name}")
    if like is not None and _is_same_model(like, exp, outputs):
        backbone, model = like.backbone, like.model
        model.fold({})
    else:
        backbone = _load_backbone(exp, exp.model.quantization, say, headless=outputs is not None)
        model = open_model(exp, backbone, outputs)
        for note in model.kernels.notes:
            say(note)
    say("tokens")
    made = PREPARE[exp.data.task_type](exp, corpus, backbone, model, say, control)
    for line in made.split.describe_losses():
        say(line)
    return made


def _is_same_model(like: Prepared, exp: Experiment, outputs: int | None) -> bool:
    """Tell whether an opened backbone is the one that an experiment needs, with as many outputs."""
    own = None if like.model.scorer is None else like.model.scorer.outputs
    same = (like.config.model, like.config.device, own) == (exp.model, exp.device, outputs)
    return same and like.config.training.gradient_checkpointing == exp.training.gradient_checkpointing


def _prepare_labels(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """A classification or a regression."""
    separator = backbone.separator if backbone.pooling == LAST else None
    dealt = labelled.split_into_examples(exp, corpus, backbone.tokenizer, separator, control=control)
    sets = {f"topic/{t}": e for t, e in dealt.validation.items()}
    sets |= {f"client/{k}": e for k, e in enumerate(dealt.held_out) if e is not None}
    sets |= {} if dealt.backdoor is None else {BACKDOOR: dealt.backdoor}
    _check_tokens(exp, backbone, [*dealt.train, *sets.values()])
    positive, cache_mb = labelled.find_positive_class(exp, corpus), exp.training.activation_cache_mb
    clients = [Examples.concatenate(dealt.train)] if exp.federation.centralised else dealt.train

    def task(model: CohortModel) -> CohortTask:
        return ClassificationTask(model, clients, sets, seed=exp.seed, positive=positive, cache_mb=cache_mb)

    copies = _make_copies(exp, model, task, say)
    return Prepared(exp, backbone, model, dealt, copies, _build_on_split(exp, copies, dealt))


def _prepare_next_tokens(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """Language modelling."""
    dealt = split_into_blocks(exp, corpus, backbone.tokenizer, backbone.separator, control=control)
    if n := sum(backbone.separator in row for row in dealt.tokens):
        say(f"documents that spell out the token which stands between documents, and so count as several: {n}")
    phrases = ask_for_phrases(exp, [d.text for d in corpus.validation])[: exp.evaluation.max_blocks]
    asked = ask_phrases(backbone.tokenizer, phrases, backbone.separator, BACKDOOR) if phrases else None
    return _prepare_language(exp, backbone, model, say, dealt, _load_general(exp, backbone, model, say), asked)


def _prepare_responses(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """The responses of conversations."""
    template = choose_template(exp.model.chat_template, backbone.tokenizer, exp.model.name)
    say(describe_template(template, exp.model.chat_template, exp.model.name))
    dealt = split_into_responses(exp, corpus, template, backbone.separator, control=control)
    general = _load_general(exp, backbone, model, say)
    rows = None if general is None else Responses.from_blocks(general)
    asked = _ask_questions(exp, backbone, template, dealt, say) if exp.evaluation.generate else None
    return replace(_prepare_language(exp, backbone, model, say, dealt, rows, asked), template=template)


def _prepare_preferences(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """Which of two responses is the better one."""
    template = choose_template(exp.model.chat_template, backbone.tokenizer, exp.model.name)
    say(describe_template(template, exp.model.chat_template, exp.model.name))
    dealt = split_into_responses(exp, corpus, template, backbone.separator, control=control)
    general = _load_general(exp, backbone, model, say)
    rows = None if general is None else Responses.from_blocks(general)
    return replace(_prepare_language(exp, backbone, model, say, dealt, rows), template=template)


def _make_preference_task(
    exp: Experiment,
    backbone: Backbone,
    model: CohortModel,
    clients: Sequence[Any],
    sets: dict[str, Any],
    mixture: dict[str, float],
    say: Say,
) -> PreferenceTask:
    """The task on pairs, whose reference is computed once for a model and its rows and then kept in the cache."""
    p = exp.training.preference
    objective = Objective(p.loss, p.beta, p.label_smoothing)
    about: list[Any] = [backbone.fingerprint, backbone.precision, torch.__version__]
    if equipment.takes_from_base(exp):  # the same function, rounded in another way
        about.append(exp.model.lora.model_dump())
    parts = hashlib.sha256(repr(tuple(about)).encode())
    for rows in (*clients, *sets.values()):
        for part in (rows.ids, rows.mask):
            parts.update(part.contiguous().numpy().tobytes())
    file = cache_dir() / "references" / f"{parts.hexdigest()[:32]}.safetensors"

    def recall_or_compute(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if (kept := recall(file)) is not None:
            return load_tensors(kept)["nll"]
        say(f"the base's likelihoods of {sum(map(len, (*clients, *sets.values()))):,} texts, once")
        nll = compute()
        keep(file, save({"nll": nll}))
        return nll

    cache_mb = exp.training.activation_cache_mb
    return PreferenceTask(model, clients, sets, mixture, objective, cache_mb=cache_mb, recall=recall_or_compute)


def _ask_questions(
    exp: Experiment, backbone: Backbone, template: ChatTemplate, dealt: Split[Any], say: Say
) -> Questions:
    """Choose the prompts that models answer, and say how many are too long for the model's positions."""
    n, length = exp.evaluation.generate, exp.evaluation.max_new_tokens
    sets = {
        name: own[: n if name.startswith("topic/") else max(1, n // CLIENT_SHARE)]
        for name, own in dealt.conversations.items()
    }
    most = (count_positions(backbone.model) or 2**31) - length
    asked = ask_questions(template, sets, length, exp.evaluation.answer_pattern, most, exp.evaluation.choices)
    if lost := sum(map(len, sets.values())) - len(asked.prompts):
        say(f"{lost} prompts are not answered: with {length} tokens of an answer they have no room in {exp.model.name}")
    return asked


def _prepare_language(
    exp: Experiment,
    backbone: Backbone,
    model: CohortModel,
    say: Say,
    dealt: Split[Any],
    general: Rows | None,
    asked: Questions | None = None,
) -> Prepared:
    """The language-model task on the rows of a split."""
    sets = {f"topic/{t}": b for t, b in dealt.validation.items()}
    sets |= {f"client/{k}": b for k, b in enumerate(dealt.held_out) if b is not None}
    if general is not None:
        sets["general"] = general
        sizes = bytes_per_token({"general": general}, backbone.tokenizer, backbone.separator)
        dealt = replace(dealt, bytes_per_token={**dealt.bytes_per_token, **sizes})
    if asked is not None and BACKDOOR in asked.places:
        texts = [f"{prompt} {answer}" for prompt, answer in zip(asked.texts, asked.answers, strict=True)]
        sets[BACKDOOR] = pack_blocks(encode_texts(backbone.tokenizer, texts), exp.model.max_length, backbone.separator)
    _check_tokens(exp, backbone, [*dealt.train, *sets.values()])
    mixture = {f"topic/{t}": share for t, share in dealt.mixture.items()}
    cache_mb, decode = exp.training.activation_cache_mb, make_decoder(backbone.tokenizer)
    clients = [type(dealt.train[0]).concatenate(dealt.train)] if exp.federation.centralised else dealt.train

    def task(model: CohortModel) -> CohortTask:
        if exp.data.task_type == "preference":
            return _make_preference_task(exp, backbone, model, clients, sets, mixture, say)
        return LanguageTask(model, clients, sets, mixture, cache_mb=cache_mb, decode=decode, questions=asked)

    copies = _make_copies(exp, model, task, say)
    return Prepared(exp, backbone, model, dealt, copies, _build_on_split(exp, copies, dealt))


PREPARE = {  # data.task_type -> what prepares it
    "causal_lm": _prepare_next_tokens,
    "instruction": _prepare_responses,
    "preference": _prepare_preferences,
    "classification": _prepare_labels,
    "regression": _prepare_labels,
}


def _make_copies(
    exp: Experiment, model: CohortModel, task: Callable[[CohortModel], CohortTask], say: Say
) -> BackboneTask:
    """The task on the server's model, with further copies of the backbone where tiers are quantised in other ways."""
    each, own = equipment.list_precisions(exp), str(exp.model.quantization)
    copies = {own: task(model)}
    outputs = None if model.scorer is None else model.scorer.outputs
    for kind in sorted(set(each) - {own}):
        say(f"backbone {exp.model.name}, quantization {kind}")
        copies[kind] = task(open_model(exp, _load_backbone(exp, kind, say, headless=outputs is not None), outputs))
    return MixedTask(copies, each, own) if len(copies) > 1 else copies[own]


def _load_backbone(exp: Experiment, quantization: str, say: Say, *, headless: bool) -> Backbone:
    place = {"precision": exp.model.precision, "device": exp.device, "quantization": quantization}
    return load_backbone(exp.model.name, **place, say=say, headless=headless, length=exp.model.max_length)


def open_model(exp: Experiment, backbone: Backbone, outputs: int | None = None) -> CohortModel:
    """The backbone with the configured sites made trainable for K clients, and with a head of so many outputs."""
    m, scorer = exp.model, None
    if outputs is not None and backbone.pooling is not None:
        scorer = Scorer(backbone.pooling, state_width(backbone.model), outputs)
    if m.trainable == "lora":
        targets = lora_targets(backbone.model, m.lora.target_modules)
        own = _read_patterns(exp, targets)
        check_rank(backbone.model, targets, max([m.lora.r_max, *(rank for rank, _ in own.values())]))
    else:
        targets, own = partial_targets(backbone.model, m.partial.last_blocks, m.partial.modules), {}
    r, dropout = m.lora.r_max, m.lora.dropout
    alpha = _stabilise(exp, m.lora.alpha, r)
    return CohortModel(
        backbone.model,
        targets,
        r=r,
        alpha=alpha,
        dropout=dropout,
        scorer=scorer,
        recompute=exp.training.gradient_checkpointing,
        own=own,
        start=m.lora.init,
    )


def _read_patterns(exp: Experiment, targets: Targets) -> dict[str, tuple[int, float]]:
    """Rank and alpha of the LoRA sites that have others than the rest, by name."""
    lora = exp.model.lora
    ranks = match_patterns(targets, lora.rank_pattern, "rank_pattern")
    alphas = match_patterns(targets, lora.alpha_pattern, "alpha_pattern")
    pairs = {
        n: (ranks.get(n, lora.r_max), alphas.get(n, lora.alpha)) for n in targets.lora if n in ranks or n in alphas
    }
    return {name: (r, _stabilise(exp, alpha, r)) for name, (r, alpha) in pairs.items()}


def _stabilise(exp: Experiment, alpha: float, r: int) -> float:
    """The alpha that over r is the configured scaling."""
    return alpha if exp.model.lora.scaling == "alpha/r" else alpha * math.sqrt(r)


def _build_on_split(exp: Experiment, task: BackboneTask, dealt: Split[Any]) -> Federation:
    """The federation around a task on this split: of its clients, or of the one who has all their data."""
    fed = build_federation(exp, task)
    return centralise(fed, [len(own) for own in dealt.train]) if exp.federation.centralised else fed


def centralise(fed: Federation, sizes: Sequence[int]) -> Federation:
    """Replace the clients by one with the data and the budget of all: it shows what a federation gives up.

    The optimiser steps that the cohorts of all rounds would take together are spread evenly over the rounds, rounded up.
    Batch size, learning rate and warm-up stay, and the optimiser starts anew in every round as the clients' does. The
    task of `fed` has one client with the examples of all, and still the evaluation sets of each.
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
    _check_pairs(exp, algorithm, aggregation)
    ranks = equipment.limit_ranks(exp, hardware)
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


def check_parts(exp: Experiment) -> None:
    """`UserError` for parts that cannot be combined and for hardware that does not fit, before anything is loaded."""
    equipment.check_equipment(exp)
    _check_score(exp)
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
    _check_tolerance(exp, aggregation)
    privacy.check_privacy(exp, algorithm, aggregation)
    _check_pairs(exp, algorithm, aggregation)


def _check_selection(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse a selection that averages cannot make up for, or that selects by numbers which nobody reports."""
    f = exp.federation
    chosen: Selection = build("selection", f.selection.name, **f.selection.options)
    for trait in sorted(chosen.traits):
        why = f"{f.algorithm.name} cannot stand that: {w}" if (w := algorithm.refuses.get(trait)) else ""
        if trait == "draws by size" and "reweighs" in aggregation.traits:
            why = f"{f.aggregation.name} has weights of its own"
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
    if reported and (f.centralised or f.cohort_size == f.total_clients):
        taken = (
            "one client has all data" if f.centralised else f"all {f.total_clients} clients take part in every round"
        )
        raise UserError(
            f"federation.selection={f.selection.name} has nothing to select, as {taken}; set federation.clients_per_round "
            "to fewer, or use selection=uniform"
        )


def _check_tolerance(exp: Experiment, aggregation: Aggregation) -> None:
    """Refuse more hostile clients in every round than a robust aggregation says that it tolerates."""
    f, hostile = exp.federation, {k for attack in check_attacks(exp) for k in attack.clients}
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


def _check_pairs(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse a pair that clashes: the one of the run, and the one that an alarm leads to."""
    check_pair(exp, algorithm, aggregation)
    if exp.federation.on_failure == "cluster":
        then = exp.federation.model_copy(update={"algorithm": Component(name="clustered")})
        check_pair(exp.model_copy(update={"federation": then}), build("algorithm", "clustered"), aggregation)


def check_pair(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse an aggregation that does what the algorithm cannot stand, with the reason."""
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
    if equipment.has_unequal_ranks(exp) and (why := algorithm.refusal("unequal ranks")):
        raise UserError(
            f"federation.algorithm={exp.federation.algorithm.name} needs one LoRA rank for all clients, because {why}; "
            "use federation.scheduler=fixed with one rank"
        )
    chosen = exp.federation.scheduler.name
    if "prunes" in aggregation.traits and equipment.build_scheduler(exp).r_bar is not None:
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} lowers the ranks of its clients itself, so that "
            f"federation.scheduler={chosen} cannot assign them; use the scheduler fixed, or gamma=1"
        )
    if exp.model.trainable != "lora" and (aggregation.traits or not aggregation.is_mean):
        raise UserError(
            f"federation.aggregation={exp.federation.aggregation.name} is about LoRA factors, but model.trainable="
            f"{exp.model.trainable} has none; use fedit, which averages all that is trained"
        )


def _check_tokens(exp: Experiment, backbone: Backbone, sets: Iterable[Rows | Examples]) -> None:
    """Raise `UserError` if a token of the data has no embedding."""
    check_tokens(exp.model.name, backbone.model, backbone.tokenizer, (own.ids for own in sets))


def _load_general(exp: Experiment, backbone: Backbone, model: CohortModel, say: Say) -> Blocks | None:
    """The set that forgetting of general English is measured on; None when it is switched off."""
    wanted, n, T = exp.evaluation.general, exp.evaluation.general_blocks, exp.model.max_length
    if wanted == "none":
        return None
    if wanted == "base_samples":
        ids = _sample_base(backbone, model, n, T, say)
        return Blocks(ids, torch.full((n,), T))
    if wanted == "wikitext":
        corpus = build("corpus", "wikitext")
    elif Path(wanted).exists():
        corpus = build("corpus", "wikitext" if _is_wikitext(Path(wanted)) else "text", path=wanted)
    else:
        raise UserError(
            f"evaluation.general={wanted!r}: give base_samples, wikitext, none, or a folder or file of text"
        )
    texts = [d.text for d in (*corpus.validation, *corpus.train)]
    return pack_and_draw(texts, backbone.tokenizer, T, backbone.separator, n, exp.seed)


def _is_wikitext(path: Path) -> bool:
    return path.is_dir() and ((path / "test.txt").is_file() or (path / "wiki.test.raw").is_file())


def _sample_base(backbone: Backbone, model: CohortModel, n: int, T: int, say: Say) -> torch.Tensor:
    """Samples of the base, drawn once for a model and size and then kept in the cache: the same for all runs."""
    key = f"{backbone.fingerprint}-{backbone.precision}-{n}x{T}-torch{torch.__version__}"
    file = cache_dir() / "samples" / f"{key}.safetensors"
    if (kept := recall(file)) is not None:
        return load_tensors(kept)["ids"]
    say(f"{n} samples of {T} tokens from the base model")
    with model.slots.bind(model.init(0).flat[None]):
        ids = sample_texts(backbone.model, n, T, backbone.separator, torch_rng(0, "base_samples"))
    keep(file, save({"ids": ids}))
    return ids
