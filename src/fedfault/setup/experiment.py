"""The one place where the parts meet: a checked configuration becomes a federation that is ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from fedfault.backbones.checks import check_tokens, count_positions
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone
from fedfault.backbones.quantised import count_parameters
from fedfault.backbones.scorer import LAST
from fedfault.backbones.sites import describe_left_out
from fedfault.config.schema import Experiment
from fedfault.data import labelled
from fedfault.data.heterogeneity import load_or_measure
from fedfault.data.instruct import check_conversations, split_into_responses
from fedfault.data.poisoning import ask_for_phrases
from fedfault.data.secrets import draw_secrets
from fedfault.data.split import (
    CLIENT_SHARE,
    Split,
    bytes_per_token,
    is_same_corpus,
    load_corpus,
    name_sets,
    split_into_blocks,
)
from fedfault.errors import UserError
from fedfault.rounds.federation import Federation
from fedfault.saying import Say, say_nothing
from fedfault.setup import equipment
from fedfault.setup.combinations import check_parts
from fedfault.setup.federation import build_on_split
from fedfault.setup.general import load_general
from fedfault.setup.model import load_configured_backbone, open_model
from fedfault.storage import cache_dir, keep, recall
from fedfault.tasks.base import BackboneTask, CohortTask
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask, Rows, SecretRows
from fedfault.tasks.mixed import MixedTask
from fedfault.tasks.preference import Objective, PreferenceTask
from fedfault.text.conversing import ChatTemplate, choose_template, describe_template
from fedfault.text.decoding import make_decoder
from fedfault.text.examples import Examples
from fedfault.text.packing import pack_blocks
from fedfault.text.questions import Questions, ask_phrases, ask_questions, explain_no_end, sample_answers
from fedfault.text.responses import Responses
from fedfault.text.tokens import encode_texts
from fedfault.types.corpus import Corpus

BACKDOOR = "backdoor"  # the score that says how often a trigger works


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
            [attack.model_dump() for attack in exp.attacks],  # some change texts
            self.backbone.fingerprint,
        )
        key = (settings, self.backbone.precision)
        return load_or_measure(self.split, self.model, exp.seed, self.backbone.separator, key, say)

    def with_settings(self, exp: Experiment) -> Prepared:
        """The same model and data with other settings of the federation."""
        return self.spread(replace(self, config=exp, federation=build_on_split(exp, self.task, self.split)))

    @property
    def parameters(self) -> int:
        """Numbers in the frozen backbone."""
        return count_parameters(self.backbone.model)


def prepare(
    exp: Experiment,
    say: Say = say_nothing,
    *,
    like: Prepared | None = None,
    control: bool = False,
    checked: bool = False,
) -> Prepared:
    """Load model and data, deal the data out, open the model up for a cohort.

    `say` is told in a line what is going on. `like` lends its backbone and corpus, if the experiments have the same. A
    `control` has IID clients of the same sizes. A `checked` one is a client's own part of an experiment whose parts are
    known to fit together. Raises `UserError` for everything that the user can mend.
    """
    _check_torch()
    if not checked:
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
        backbone = load_configured_backbone(exp, exp.model.quantization, say, headless=outputs is not None)
        model = open_model(exp, backbone, outputs)
        for note in (*model.kernels.notes, *describe_left_out(model.model, model.targets)):
            say(note)
    say("tokens")
    made = PREPARE[exp.data.task_type](exp, corpus, backbone, model, say, control)
    if exp.personalise is not None and all(own is None for own in made.split.held_out):
        raise UserError(
            "personalise is judged by what every client held back, and with so few documents nobody held any back; raise "
            "data.held_out or data.max_samples, or have fewer federation.total_clients"
        )
    for line in made.split.describe_losses():
        say(line)
    if exp.training.activation_cache_mb and model.targets.first_block and made.task.select_copy(0).cache is None:
        say(
            f"no activation cache: {backbone.model.config.model_type} computes something else when its frozen blocks are "
            "skipped; they are computed in every step"
        )
    return made


def _check_torch() -> None:
    """Raise `UserError` where the program around this has switched torch to something else than a run computes with."""
    if not torch.is_grad_enabled():
        raise UserError(
            "gradients are switched off here, by torch.no_grad() or torch.inference_mode(); call this outside"
        )
    if (kind := torch.get_default_dtype()) is not torch.float32:
        raise UserError(
            f"torch makes numbers of {kind} by default; call torch.set_default_dtype(torch.float32) before this"
        )
    if (device := torch.get_default_device()).type != "cpu":
        raise UserError(
            f"torch makes numbers on {device} by default; call torch.set_default_device(None) before this, and choose with "
            "`device`"
        )


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
    sets = name_sets(dealt.validation, dealt.held_out)
    sets |= {} if dealt.backdoor is None else {BACKDOOR: dealt.backdoor}
    _check_tokens(exp, backbone, [*dealt.train, *sets.values()])
    positive, cache_mb = labelled.find_positive_class(exp, corpus), exp.training.activation_cache_mb
    clients = [Examples.concatenate(dealt.train)] if exp.federation.centralised else dealt.train

    def task(_: Backbone, model: CohortModel) -> CohortTask:
        return ClassificationTask(model, clients, sets, seed=exp.seed, positive=positive, cache_mb=cache_mb)

    copies = _make_copies(exp, backbone, model, task, say)
    return Prepared(exp, backbone, model, dealt, copies, build_on_split(exp, copies, dealt))


def _prepare_next_tokens(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """Language modelling."""
    dealt = split_into_blocks(exp, corpus, backbone.tokenizer, backbone.separator, control=control)
    if n := sum(backbone.separator in row for row in dealt.tokens):
        say(f"documents that spell out the token which stands between documents, and so count as several: {n}")
    phrases = ask_for_phrases(exp, [d.text for d in corpus.validation])[: exp.evaluation.max_blocks]
    asked = ask_phrases(backbone.tokenizer, phrases, backbone.separator, BACKDOOR) if phrases else None
    general = load_general(exp, backbone, model, say)
    return _prepare_language(exp, backbone, model, say, dealt, general, asked, _encode_secrets(exp, backbone))


def _prepare_responses(
    exp: Experiment, corpus: Corpus, backbone: Backbone, model: CohortModel, say: Say, control: bool
) -> Prepared:
    """Conversations: their responses, or which of two is the better one; of the latter no answers are made."""
    template = choose_template(exp.model.chat_template, backbone.tokenizer, exp.model.name)
    say(describe_template(template, exp.model.chat_template, exp.model.name))
    if lacks := explain_no_end(template):
        say(f"note: {lacks}")
    dealt = split_into_responses(exp, corpus, template, backbone.separator, control=control)
    general = load_general(exp, backbone, model, say)
    rows = None if general is None else Responses.from_blocks(general)
    asked = _ask_questions(exp, backbone, template, dealt, say) if exp.evaluation.generate else None
    return replace(_prepare_language(exp, backbone, model, say, dealt, rows, asked), template=template)


def _make_preference_task(
    exp: Experiment,
    backbone: Backbone,
    model: CohortModel,
    clients: Sequence[Any],
    sets: dict[str, Any],
    mixture: dict[str, float],
    say: Say,
) -> PreferenceTask:
    """The task on pairs, whose reference is computed once for a model and its rows and then kept in the cache.

    backbone: the one under `model`, whose likelihoods these are: a quantised copy has its own.
    """
    p = exp.training.preference
    objective = Objective(p.loss, p.beta, p.label_smoothing)
    about: list[Any] = [backbone.fingerprint, backbone.precision, backbone.quantization, torch.__version__]
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
    return sample_answers(asked, exp.evaluation.temperature, exp.evaluation.top_p, exp.seed)


def _encode_secrets(exp: Experiment, backbone: Backbone) -> SecretRows | None:
    """Encode the secrets that were planted in clients' texts, if there are any."""
    s = draw_secrets(exp)
    if s is None:
        return None
    every = (s.planted, s.decoys, s.others)
    return SecretRows(*(Responses.from_texts(backbone.tokenizer, own, backbone.separator) for own in every))


def _prepare_language(
    exp: Experiment,
    backbone: Backbone,
    model: CohortModel,
    say: Say,
    dealt: Split[Any],
    general: Rows | None,
    asked: Questions | None = None,
    secrets: SecretRows | None = None,
) -> Prepared:
    """The language-model task on the rows of a split."""
    sets: dict[str, Any] = name_sets(dealt.validation, dealt.held_out)
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

    def task(loaded: Backbone, model: CohortModel) -> CohortTask:
        if exp.data.task_type == "preference":
            return _make_preference_task(exp, loaded, model, clients, sets, mixture, say)
        return LanguageTask(
            model, clients, sets, mixture, cache_mb=cache_mb, decode=decode, questions=asked, secrets=secrets
        )

    copies = _make_copies(exp, backbone, model, task, say)
    return Prepared(exp, backbone, model, dealt, copies, build_on_split(exp, copies, dealt))


PREPARE = {  # data.task_type -> what prepares it
    "causal_lm": _prepare_next_tokens,
    "instruction": _prepare_responses,
    "preference": _prepare_responses,
    "classification": _prepare_labels,
    "regression": _prepare_labels,
}


def _make_copies(
    exp: Experiment,
    backbone: Backbone,
    model: CohortModel,
    task: Callable[[Backbone, CohortModel], CohortTask],
    say: Say,
) -> BackboneTask:
    """The task on the server's model, with further copies of the backbone where tiers are quantised in other ways.

    task: makes one on a backbone as it was loaded and the model that was opened on it.
    """
    each, own = equipment.list_precisions(exp), str(exp.model.quantization)
    copies = {own: task(backbone, model)}
    outputs = None if model.scorer is None else model.scorer.outputs
    for kind in sorted(set(each) - {own}):
        say(f"backbone {exp.model.name}, quantization {kind}")
        other = load_configured_backbone(exp, kind, say, headless=outputs is not None)
        copies[kind] = task(other, open_model(exp, other, outputs))
    return MixedTask(copies, each, own) if len(copies) > 1 else copies[own]


def _check_tokens(exp: Experiment, backbone: Backbone, sets: Iterable[Rows | Examples]) -> None:
    """Raise `UserError` if a token of the data has no embedding."""
    check_tokens(exp.model.name, backbone.model, backbone.tokenizer, (own.ids for own in sets))
