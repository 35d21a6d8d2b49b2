"""Prompts that a model answers, with the true answers: what a conversation says before its last response, and that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedfault.errors import UserError
from fedfault.seeds import rng
from fedfault.text.conversing import ChatTemplate, encode_conversations
from fedfault.text.responses import Responses
from fedfault.text.tokens import encode_texts
from fedfault.types.corpus import ASSISTANT, USER, Conversation, Turn

PROBE = Conversation((Turn(USER, "Question"), Turn(ASSISTANT, "Answer")), "a probe of the chat template")


class Choices(NamedTuple):
    """Questions with a few possible answers: a row for every possible answer behind its prompt."""

    rows: Responses  # of which the answers count, and what ends them
    questions: Sequence[int]  # of each row, the place of its question
    right: Sequence[bool]  # of each row, whether it has the true answer


class Sampling(NamedTuple):
    """How answers are drawn: the draws are given, so that no answer depends on which others are made beside it."""

    temperature: float  # above 0
    top_p: float  # of probability, from the likeliest token on; the rest is never drawn
    draws: Tensor  # (n, length) float64 in [0, 1): a number for every token of every answer


@dataclass(frozen=True)
class Questions:
    """The prompts of n conversations as tokens, open for an answer; see `count_answers`."""

    prompts: Sequence[Sequence[int]]
    texts: Sequence[str]  # what the last turn before the answer says
    answers: Sequence[str]  # the true ones
    places: Mapping[str, Sequence[int]]  # score name -> which of them it has
    stops: frozenset[int]  # tokens that end an answer
    length: int  # tokens of an answer at most
    pattern: str | None = None  # see `measures.answers.extract_answer`
    choices: Choices | None = None  # of the questions that have some
    sampling: Sampling | None = None  # None: the likeliest tokens


def ask_questions(
    template: ChatTemplate,
    sets: Mapping[str, Sequence[Conversation]],
    length: int,
    pattern: str | None,
    most: int,
    choices: Sequence[Sequence[str]] = (),
) -> Questions:
    """Make the questions of evaluation sets; those whose prompt has more than `most` tokens are left out.

    choices: groups of possible answers, see `list_choices`.
    """
    asked = [(name, c) for name, own in sets.items() for c in own]
    ids = encode_texts(template.tokenizer, [template.render(c, len(c.turns) - 1, open=True) for _, c in asked])
    kept = [(name, c, row.tolist()) for (name, c), row in zip(asked, ids, strict=True) if len(row) <= most]
    places: dict[str, list[int]] = {}
    for place, (name, _, _) in enumerate(kept):
        places.setdefault(name, []).append(place)
    return Questions(
        prompts=[row for *_, row in kept],
        texts=["\n".join(filter(None, c.turns[-2][1:])) for _, c, _ in kept],
        answers=[c.turns[-1].text for _, c, _ in kept],
        places=places,
        stops=find_stops(template),
        length=length,
        pattern=pattern,
        choices=list_choices(template, [c for _, c, _ in kept], choices, most + length) if choices else None,
    )


def ask_phrases(tokenizer: Any, phrases: Sequence[tuple[str, str]], separator: int, name: str) -> Questions:
    """Make questions of running text: prompts, each after a separator, and the words that should follow, of one score."""
    prompts = encode_texts(tokenizer, [prompt for prompt, _ in phrases])
    whole = encode_texts(tokenizer, [f"{prompt} {answer}" for prompt, answer in phrases])
    longer = [len(both) - len(row) for both, row in zip(whole, prompts, strict=True)]
    return Questions(
        prompts=[[separator, *row.tolist()] for row in prompts],
        texts=[prompt for prompt, _ in phrases],
        answers=[answer for _, answer in phrases],
        places={name: range(len(phrases))},
        stops=frozenset({separator}),
        length=max(1, *longer),
    )


def sample_answers(q: Questions, temperature: float, top_p: float, seed: int) -> Questions:
    """The same questions, whose answers are drawn in the place of the likeliest: by the same draws whenever they are asked.

    A question has its draws by its set and its place there, so that more questions change no other one's. A temperature of 0
    leaves the likeliest tokens.
    """
    if not temperature:
        return q
    draws = np.empty((len(q.prompts), q.length))
    for name, places in q.places.items():
        for i, place in enumerate(places):
            draws[place] = rng(seed, "answers", name, i).random(q.length)
    return replace(q, sampling=Sampling(temperature, top_p, torch.from_numpy(draws)))


def list_choices(
    template: ChatTemplate, asked: Sequence[Conversation], groups: Sequence[Sequence[str]], most: int
) -> Choices | None:
    """List the possible answers of the questions whose true one is in a group: all of that group.

    Left out are questions one of whose answers does not fit into `most` tokens; None if none is left.
    """
    group_of = {" ".join(answer.split()): group for group in groups for answer in group}
    places, variants, right = [], [], []
    for place, c in enumerate(asked):
        true = " ".join(c.turns[-1].text.split())
        for answer in group_of.get(true, ()):
            variants.append(replace(c, turns=(*c.turns[:-1], Turn(ASSISTANT, answer))))
            places.append(place)
            right.append(" ".join(answer.split()) == true)
    rows = encode_conversations(template, variants, "completion")
    long = {place for place, row in zip(places, rows, strict=True) if len(row.ids) > most}
    kept = [i for i, place in enumerate(places) if place not in long]
    if not kept:
        return None
    found = Responses.from_rows([rows[i] for i in kept], max(len(rows[i].ids) for i in kept))
    return Choices(found, [places[i] for i in kept], [right[i] for i in kept])


def find_stops(template: ChatTemplate) -> frozenset[int]:
    """Find the tokens that end a response: the end of the sequence, and the special token that the template writes there.

    Of a template that refuses a lone question the end of the sequence alone.
    """
    special = _list_special(template.tokenizer)
    ids = _encode_behind(template, _write_behind(template) or "")[:1]
    return frozenset({int(template.tokenizer.eos_token_id), *(i for i in ids if i in special)})


def explain_no_end(template: ChatTemplate) -> str:
    """Say that what a template writes behind a response is no token at which answers end; empty where it is."""
    behind = _write_behind(template)
    if behind is None or _list_special(template.tokenizer) & {*_encode_behind(template, behind)}:
        return ""
    what = f"{behind!r}, which is no token that ends a sequence," if behind else "nothing"
    return (
        f"the chat template {template.name} writes {what} behind a response, so that the model does not learn where its "
        "answers end; write eos_token there, in a Jinja file of your own (model.chat_template)"
    )


def _list_special(tokenizer: Any) -> set[int]:
    """List the special tokens of a tokenizer: those that have a name, and those that its file marks as special."""
    marked = getattr(tokenizer, "added_tokens_decoder", {}).items()
    named = getattr(tokenizer, "all_special_ids", ())
    return {int(i) for i in (tokenizer.eos_token_id, *named, *(i for i, token in marked if token.special))}


def _encode_behind(template: ChatTemplate, behind: str) -> list[int]:
    (ids,) = encode_texts(template.tokenizer, [behind])
    return [*map(int, ids)]


def _write_behind(template: ChatTemplate) -> str | None:
    """Write what a template has behind a response; None where it refuses a lone question, or changes its answer."""
    try:
        _, answer, behind = template.render(PROBE).rpartition(PROBE.turns[1].text)
    except UserError:
        return None
    return behind if answer else None
