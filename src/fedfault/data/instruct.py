"""From a corpus of conversations to each client's examples, and to the sets that the global model is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedfault.config.schema import Experiment
from fedfault.data.split import (
    CLIENT_SHARE,
    Split,
    bytes_per_token,
    choose_training_documents,
    deal_out,
    draw_positions,
    name_sets,
)
from fedfault.errors import UserError
from fedfault.text.conversing import ChatTemplate, EncodedConversation, encode_conversations
from fedfault.text.preferring import encode_preferences
from fedfault.text.responses import Responses
from fedfault.text.tokens import Tokens
from fedfault.types.corpus import Corpus, Document


def check_conversations(exp: Experiment, corpus: Corpus) -> None:
    """Raise `UserError` unless the corpus holds what `data.task_type` learns: conversations or plain text."""
    spoken, task = bool(corpus.conversations), exp.data.task_type
    preferred = sum(bool(c.rejected) for c in corpus.conversations.values())
    if task == "preference" and (not spoken or preferred < len(corpus.conversations)):
        raise UserError(
            f"data.task_type=preference needs prompts with two responses, which {corpus.name} has not; give a table with "
            "the columns prompt, chosen and rejected (data.dataset=text data.path=FILE or hf://datasets/ORG/NAME), or "
            "name its columns with data.columns"
        )
    if task == "instruction" and preferred:
        raise UserError(
            f"{corpus.source} holds preferences, which data.task_type=preference learns; for the chosen responses alone set "
            "data.columns={prompt: prompt, completion: chosen}, or {messages: chosen} where these hold the prompt too"
        )
    if task == "instruction" and not spoken:
        raise UserError(
            f"data.task_type=instruction needs conversations, and {corpus.name} has plain text; give a table with the "
            "columns prompt and completion, instruction and output, messages, or question and answer (data.dataset=text "
            "data.path=FILE or hf://datasets/ORG/NAME), or name its columns with data.columns"
        )
    if exp.data.task_type == "causal_lm" and spoken and exp.data.dataset.name == "text":
        learns = "preference learns which is the better" if preferred else "instruction learns their responses"
        raise UserError(
            f"{corpus.source} holds {'preferences' if preferred else 'conversations'}: data.task_type={learns}, and "
            "data.text_columns reads columns as plain text"
        )


def split_into_responses(
    exp: Experiment, corpus: Corpus, template: ChatTemplate, separator: int, *, control: bool = False
) -> Split[Responses]:
    """Deal conversations out as `deal_out` does and make examples of them, of `model.max_length` tokens at most.

    A conversation that is cut before the first token that counts has nothing to learn: it is left out, and counted.
    Evaluation sets are drawn at random: as many conversations as have the tokens of evaluation.max_blocks blocks a topic, of
    a client's own a quarter of that.

    Raises `UserError` when the partition is impossible or changes texts, and when no response is left.
    """
    most, room = exp.model.max_length, exp.evaluation.max_blocks * exp.model.max_length
    whole_corpus, corpus = corpus, replace(corpus, train=tuple(choose_training_documents(exp, corpus)))
    train = _encode_side(exp, corpus, "training", corpus.train, template)
    validation = _encode_side(exp, corpus, "validation", corpus.validation, template)
    d = deal_out(exp, replace(corpus, train=train.documents, validation=validation.documents), control=control)
    if d.deal.texts:
        raise UserError(
            f"data.partition={exp.data.partition.name} changes texts, and a conversation whose words are changed has no "
            "turns any more; choose another partition for data.task_type=instruction"
        )
    encoded = {document.text: own for document, own in zip(train.documents, train.rows, strict=True)}
    padding = getattr(template.tokenizer, "pad_token_id", None) or 0
    whole = _Table.of([encoded[document.text] for document in d.documents], most, padding)
    held = _Table.of(validation.rows, most, padding)
    kept_back = [
        back[draw_positions(whole.lengths[back], room // CLIENT_SHARE, exp.seed, "client", k)] if len(back) else None
        for k, (_, back) in enumerate(d.parts)
    ]
    of_topic, mixture = _weigh_topics(held, validation.documents)
    chosen = {t: rows[draw_positions(held.lengths[rows], room, exp.seed, "topic", t)] for t, rows in of_topic.items()}
    held_out = [None if own is None else whole[own] for own in kept_back]
    drawn = {t: held[rows] for t, rows in chosen.items()}
    text_bytes = {}
    if whole.width == 1:
        text_bytes = bytes_per_token(name_sets(drawn, held_out), template.tokenizer, separator)
        text_bytes["validation"] = sum(share * text_bytes[f"topic/{t}"] for t, share in mixture.items())
    rows = [ids[:n] for ids, n in zip(whole.rows.ids.numpy(), whole.rows.lengths.tolist(), strict=True)]
    return Split(
        corpus=whole_corpus,
        documents=d.documents,
        deal=d.deal,
        tokens=Tokens.from_documents(rows[:: whole.width]),
        topics=d.topics,
        labels=d.labels,
        train=[whole[mine] for mine, _ in d.parts],
        held_out=held_out,
        validation=drawn,
        mixture=mixture,
        bytes_per_token=text_bytes,
        examples=whole.rows[:: whole.width],
        cut=train.cut + validation.cut,
        conversations=name_sets(
            {t: [corpus.conversations[validation.documents[i].text] for i in own] for t, own in chosen.items()},
            [own if own is None else [corpus.conversations[d.documents[i].text] for i in own] for own in kept_back],
        ),
        unanswered=train.unanswered + validation.unanswered,
    )


Encoded = tuple[EncodedConversation, ...]  # the rows of a document: one, or those of both responses to a prompt


@dataclass(frozen=True)
class _Table:
    """Rows of tokens, `width` of each document one behind the other."""

    rows: Responses
    width: int

    @classmethod
    def of(cls, encoded: Sequence[Encoded], most: int, padding: int) -> _Table:
        return cls(Responses.from_rows([row for own in encoded for row in own], most, padding), len(encoded[0]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every document, (n,)."""
        lengths: NDArray[np.int64] = self.rows.lengths.numpy().reshape(-1, self.width).sum(1)
        return lengths

    def __getitem__(self, documents: NDArray[np.int64]) -> Responses:
        """The rows of some documents."""
        return self.rows[(documents[:, None] * self.width + np.arange(self.width)).reshape(-1)]


@dataclass(frozen=True)
class _Side:
    """What the training or the validation side has to learn from, as text and as rows, (n,) each."""

    documents: tuple[Document, ...]
    rows: list[Encoded]
    cut: int  # of them, that are longer than `model.max_length`
    unanswered: int  # that are left out, as no token that counts is left of them


def _encode_side(
    exp: Experiment, corpus: Corpus, name: str, documents: Sequence[Document], template: ChatTemplate
) -> _Side:
    """Encode a side of the corpus. Raises `UserError` where no response of it begins before `model.max_length`."""
    most, every = exp.model.max_length, _encode(exp, corpus, documents, template)
    kept = [i for i, own in enumerate(every) if all(any(row.mask[1:most]) for row in own)]
    if not kept:
        first = (max(row.mask.index(True) if True in row.mask else most for row in own) for own in every)
        shortest = min(first, default=most) + 1
        raise UserError(
            f"model.max_length={exp.model.max_length} cuts the response of all {len(every):,} {name} conversations of "
            f"{corpus.name} away; the first response needs {shortest} at least, so raise it"
        )
    rows = [every[i] for i in kept]
    cut = sum(any(len(row.ids) > most for row in own) for own in rows)
    return _Side(tuple(documents[i] for i in kept), rows, cut, len(every) - len(kept))


def _weigh_topics(held: _Table, documents: Sequence[Document]) -> tuple[dict[str, NDArray[np.int64]], dict[str, float]]:
    """Find the documents of every topic, and its share of all targets: tokens that count, or pairs."""
    topic = np.array([document.topic for document in documents])
    of_topic = {t: np.flatnonzero(topic == t) for t in sorted(set(topic.tolist()))}
    sizes = {t: len(rows) if held.width == 2 else held[rows].num_tokens for t, rows in of_topic.items()}
    return of_topic, {t: size / sum(sizes.values()) for t, size in sizes.items()}


def _encode(
    exp: Experiment, corpus: Corpus, documents: Sequence[Document], template: ChatTemplate
) -> Sequence[Encoded]:
    conversations = [corpus.conversations[document.text] for document in documents]
    if exp.data.task_type == "preference":
        return encode_preferences(template, conversations)
    return [(row,) for row in encode_conversations(template, conversations, exp.training.loss_on)]
