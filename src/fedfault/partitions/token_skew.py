"""Clients with different words: rarer ones, fewer ones, or a vocabulary with holes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.dealing.bins import deal_by_score, describe_range, note_equal_scores
from fedfault.dealing.owners import Ints, check_request, group_positions
from fedfault.errors import UserError
from fedfault.partitions.iid import iid
from fedfault.registry import register
from fedfault.text import scores
from fedfault.text.word_classes import is_function_word
from fedfault.text.words import Bools, Words, count_words, remove_words, shorten_texts, split_words
from fedfault.types.corpus import Deal, Document, Partition

MIDDLE = (0.5, 0.9)  # of the running words: leaves out some hundred frequent types, and most of the rare ones
Changed = tuple[list[str], Ints, str]  # new texts, the number of words that each has lost (n,), a note on what was done


@register("partition")
def token_skew(
    *,
    type: Literal["frequency", "truncation", "vocabulary", "stopwords"] = "frequency",
    purity: Annotated[float, Field(ge=0, le=1)] = 1.0,
    min_words: Annotated[int, Field(ge=1)] = 8,
    max_words: Annotated[int, Field(ge=1)] | None = None,
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.3,
    affected: Annotated[float, Field(ge=0, le=1)] = 0.5,
    min_samples: int = 1,
) -> Partition:
    r"""Clients differ in their words: in how frequent they are, how many a text has, or which ones are missing.

    frequency: documents sorted by the mean log frequency of their words and dealt out with `purity`, as style_skew does.
    The others deal out at random, as iid does, and change the clients' texts:
    truncation: a client has the first words of each text only. The limits go from `min_words` to `max_words` (that of
    the longest text, if not set) in equal ratios, in random order. vocabulary: a client lacks the share `fraction` of the
    types of middle frequency, drawn for it alone. Types are sorted by the number of documents that they are in; in the
    middle are those behind the first half of all running words and before the last tenth. stopwords: the share
    `affected` of the clients lacks all function words (articles, pronouns, prepositions, auxiliaries, ...).

    A word is what `\w+(?:['’]\w+)*` matches. A missing one is taken out together with the white space before it; there is
    no placeholder, as the model's vocabulary has none. A text keeps its first word if it would lose all.

    type: what differs between clients: how frequent their words are, how long their texts, which words they lack
    purity: the share of the documents that follow the criterion; the rest is dealt out at random
    min_words: the shortest limit on a text, in words
    max_words: the longest; null: the longest text's
    fraction: the share of the vocabulary that a client lacks
    affected: the share of the clients that lack all function words
    min_samples: documents that every client gets at least

    >>> documents = [Document("The cat sat on the mat.", "topic")] * 6
    >>> deal = token_skew(type="stopwords")(documents, 3, np.random.default_rng(0))
    >>> for own in deal.clients:
    ...     print(*(deal.texts.get(i, documents[i].text) for i in own))
    cat sat mat. cat sat mat.
    cat sat mat. cat sat mat.
    The cat sat on the mat. The cat sat on the mat.
    """
    if max_words is not None and max_words < min_words:
        raise UserError(
            f"token_skew: max_words={max_words} is less than min_words={min_words}; raise it or leave it out"
        )

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        check_request(len(documents), num_clients, min_samples)
        if type == "frequency":
            score = scores.mean_log_frequency(split_words([d.text for d in documents]))
            owner = deal_by_score(score, num_clients, purity, generator)
            note = f"clients' means of log word frequency from {describe_range(score, owner)}"
            notes = note, *note_equal_scores(score, num_clients, "mean log word frequency")
            return Deal(group_positions(owner, num_clients), notes=notes)
        deal = iid(min_samples=min_samples)(documents, num_clients, generator)
        order = np.concatenate(deal.clients)
        texts = [documents[i].text for i in order]
        client = np.repeat(np.arange(num_clients), [len(own) for own in deal.clients])  # (n,) of each text
        if type == "truncation":
            left, lost, note = _truncate_texts(texts, client, min_words, max_words, generator)
        elif type == "vocabulary":
            left, lost, note = _remove_types(texts, client, fraction, generator)
        else:
            left, lost, note = _remove_function_words(texts, client, affected, generator)
        return dataclasses.replace(
            deal,
            texts={i: text for i, text, gone in zip(order.tolist(), left, lost, strict=True) if gone},
            removed=np.bincount(client, weights=lost).astype(int).tolist(),
            notes=(
                f"{note}: {lost.sum()} words less; this changes the task, not only who has what"
                if lost.any()
                else f"{note}: no word is taken out; this is an IID split",
            ),
        )

    return partition


def _truncate_texts(
    texts: list[str], client: Ints, min_words: int, max_words: int | None, generator: np.random.Generator
) -> Changed:
    counts = count_words(texts)
    longest = max(min_words, int(counts.max())) if max_words is None else max_words
    limits = np.rint(np.geomspace(min_words, longest, client[-1] + 1)).astype(np.int64)
    limit = generator.permutation(limits)[client]  # (n,)
    note = f"texts have at most {limits[0]} to {limits[-1]} words, by client"
    return shorten_texts(texts, limit), np.maximum(counts - limit, 0), note


def _remove_types(texts: list[str], client: Ints, fraction: float, generator: np.random.Generator) -> Changed:
    words = split_words(texts)
    middle = _middle_types(words)
    num_lost = round(fraction * len(middle))
    gone = np.zeros(len(words.ids), dtype=bool)
    ends = np.cumsum(np.bincount(client, weights=words.counts)).astype(np.int64).tolist()
    for own in map(slice, [0, *ends], ends):
        lost = np.zeros(len(words.types), dtype=bool)
        lost[generator.choice(middle, num_lost, replace=False, shuffle=False)] = True
        gone[own] = lost[words.ids[own]]
    return *_remove_marked(
        texts, words, gone
    ), f"each client lacks {num_lost} of {len(middle)} types of middle frequency"


def _middle_types(words: Words) -> Ints:
    """The positions, in `words.types`, of the types of middle frequency."""
    V = len(words.types)
    pairs = np.sort(words.text_of_word * V + words.ids)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # a type counts once a text; np.unique does it too, but hashes
    num_texts = np.bincount(pairs % V, minlength=V).tolist()
    order = np.array(sorted(range(V), key=lambda v: (-num_texts[v], words.types[v])), dtype=np.int64)
    until = np.cumsum(np.bincount(words.ids, minlength=V)[order])
    before = np.append(0, until[:-1])
    return order[(before >= MIDDLE[0] * len(words.ids)) & (until <= MIDDLE[1] * len(words.ids))]


def _remove_function_words(texts: list[str], client: Ints, affected: float, generator: np.random.Generator) -> Changed:
    words = split_words(texts)
    N = int(client[-1]) + 1
    num_affected = int(affected * N + 0.5)  # round() would round one half of one client to none
    chosen = np.zeros(N, dtype=bool)
    chosen[generator.permutation(N)[:num_affected]] = True
    function = np.array([is_function_word(word) for word in words.types], dtype=bool)
    gone = function[words.ids] & np.repeat(chosen[client], words.counts)
    return *_remove_marked(texts, words, gone), f"{num_affected} of {N} clients lack all function words"


def _remove_marked(texts: list[str], words: Words, gone: Bools) -> tuple[list[str], Ints]:
    """Remove the words marked in `gone` (num_words,), but never all of a text; returns the texts and each one's loss."""
    lost = np.bincount(words.text_of_word[gone], minlength=len(texts))
    first = np.cumsum(words.counts) - words.counts
    emptied = (lost == words.counts) & (lost > 0)
    gone[first[emptied]] = False
    lost[emptied] -= 1
    left = list(texts)
    changed = np.flatnonzero(lost)
    new = remove_words([texts[i] for i in changed], gone[np.repeat(lost > 0, words.counts)])
    for i, text in zip(changed.tolist(), new, strict=True):
        left[i] = text
    return left, lost
