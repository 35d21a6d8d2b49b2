"""From a corpus of conversations to each client's examples, and to the sets that the global model is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedfault.config.schema import Experiment
from fedfault.data.split import CLIENT_SHARE, Split, bytes_per_token, choose_training_documents, deal_out
from fedfault.errors import UserError
from fedfault.seeds import rng
from fedfault.text.conversing import ChatTemplate, EncodedConversation, encode_conversations
from fedfault.text.responses import Responses
from fedfault.text.tokens import Tokens
from fedfault.types.corpus import Corpus, Document

Say = Callable[[str], None]


def check_conversations(exp: Experiment, corpus: Corpus) -> None:
    """Raise `UserError` unless the corpus holds what `data.task_type` learns: conversations or plain text."""
    spoken = bool(corpus.conversations)
    if exp.data.task_type == "instruction" and not spoken:
        raise UserError(
            f"data.task_type=instruction needs conversations, and {corpus.name} has plain text; give a table with the "
            "columns prompt and completion, instruction and output, messages, or question and answer (data.dataset=text "
            "data.path=FILE or hf://datasets/ORG/NAME), or name its columns with data.columns"
        )
    if exp.data.task_type == "causal_lm" and spoken and exp.data.dataset.name == "text":
        raise UserError(
            f"{corpus.source} holds conversations: data.task_type=instruction learns their responses, and "
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
    sides = [_encode(exp, corpus, side, template) for side in (corpus.train, corpus.validation)]
    kept = [[i for i, row in enumerate(rows) if any(row.mask[1:most])] for rows in sides]
    _check_left(exp, corpus, sides, kept)
    train, validation = (
        tuple(side[i] for i in own) for side, own in zip((corpus.train, corpus.validation), kept, strict=True)
    )
    d = deal_out(exp, replace(corpus, train=train, validation=validation), control=control)
    if d.deal.texts:
        raise UserError(
            f"data.partition={exp.data.partition.name} changes texts, and a conversation whose words are changed has no "
            "turns any more; choose another partition for data.task_type=instruction"
        )
    encoded = {document.text: sides[0][i] for i, document in zip(kept[0], train, strict=True)}
    padding = getattr(template.tokenizer, "pad_token_id", None) or 0
    whole = Responses.from_rows([encoded[document.text] for document in d.documents], most, padding)
    held = Responses.from_rows([sides[1][i] for i in kept[1]], most, padding)
    kept_back = [
        back[_draw(whole[back], room // CLIENT_SHARE, exp.seed, "client", k)] if len(back) else None
        for k, (_, back) in enumerate(d.parts)
    ]
    held_out = [None if own is None else whole[own] for own in kept_back]
    topic = np.array([document.topic for document in validation])
    of_topic = {t: np.flatnonzero(topic == t) for t in sorted(set(topic.tolist()))}
    total = held.num_tokens
    mixture = {t: held[rows].num_tokens / total for t, rows in of_topic.items()}
    chosen = {t: rows[_draw(held[rows], room, exp.seed, "topic", t)] for t, rows in of_topic.items()}
    drawn = {t: held[rows] for t, rows in chosen.items()}
    spoken = {f"topic/{t}": [corpus.conversations[validation[i].text] for i in own] for t, own in chosen.items()}
    spoken |= {
        f"client/{k}": [corpus.conversations[d.documents[i].text] for i in own]
        for k, own in enumerate(kept_back)
        if own is not None
    }
    sets = {f"topic/{t}": rows for t, rows in drawn.items()}
    sets |= {f"client/{k}": rows for k, rows in enumerate(held_out) if rows is not None}
    sizes = bytes_per_token(sets, template.tokenizer, separator)
    sizes["validation"] = sum(share * sizes[f"topic/{t}"] for t, share in mixture.items())
    rows = [ids[:n] for ids, n in zip(whole.ids.numpy(), whole.lengths.tolist(), strict=True)]
    return Split(
        corpus=whole_corpus,
        documents=d.documents,
        deal=d.deal,
        tokens=Tokens.from_documents(rows),
        topics=d.topics,
        labels=d.labels,
        train=[whole[mine] for mine, _ in d.parts],
        held_out=held_out,
        validation=drawn,
        mixture=mixture,
        bytes_per_token=sizes,
        examples=whole,
        cut=sum(len(side[i].ids) > most for side, own in zip(sides, kept, strict=True) for i in own),
        conversations=spoken,
        unanswered=sum(len(side) - len(own) for side, own in zip(sides, kept, strict=True)),
    )


def _encode(
    exp: Experiment, corpus: Corpus, documents: Sequence[Document], template: ChatTemplate
) -> list[EncodedConversation]:
    conversations = [corpus.conversations[document.text] for document in documents]
    return encode_conversations(template, conversations, exp.training.loss_on)


def _check_left(
    exp: Experiment, corpus: Corpus, sides: Sequence[Sequence[EncodedConversation]], kept: Sequence[Sequence[int]]
) -> None:
    """Raise `UserError` where a side has no response that begins before `model.max_length`."""
    most = exp.model.max_length
    for name, rows, own in zip(("training", "validation"), sides, kept, strict=True):
        if not own:
            shortest = min((row.mask.index(True) for row in rows if True in row.mask), default=most) + 1
            raise UserError(
                f"model.max_length={exp.model.max_length} cuts the response of all {len(rows):,} {name} conversations of "
                f"{corpus.name} away; the first response needs {shortest} at least, so raise it"
            )


def _draw(rows: Responses, tokens: int, seed: int, *name: str | int) -> NDArray[np.int64]:
    """Draw conversations, once for the run, until they have so many tokens, one at least: their places in rising order."""
    order = rng(seed, "evaluation", *name).permutation(len(rows))
    fits = int((np.cumsum(rows.lengths.numpy()[order]) <= tokens).sum())
    return np.sort(order[: max(1, fits)])
