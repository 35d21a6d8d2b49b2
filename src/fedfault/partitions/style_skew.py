"""A style of writing for every client: by length, formality, complexity or source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.dealing.bins import deal_by_score, describe_range, label_emd, note_equal_scores
from fedfault.dealing.owners import (
    Ints,
    check_groups,
    check_request,
    group_positions,
    isolate_classes,
    note_sharing,
    number_names,
    number_topics,
    redeal,
)
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.text import scores
from fedfault.text.words import split_words
from fedfault.types.corpus import Deal, Document, Partition

SCORES = {"length": scores.length_in_words, "formality": scores.formality, "complexity": scores.complexity}
UNITS = {"length": "words", "formality": "formality F", "complexity": "Flesch-Kincaid grade"}


@register("partition")
def style_skew(
    *,
    criterion: Literal["length", "formality", "complexity", "source"] = "formality",
    purity: Annotated[float, Field(ge=0, le=1)] = 1.0,
    min_samples: int = 1,
) -> Partition:
    """Clients differ in style: in length, formality or complexity of their texts, or in where these come from.

    length: words. formality: Heylighen and Dewaele's F. complexity: Flesch-Kincaid grade level, ranked among texts of
    about the same length. Documents are sorted by score and cut into as many equal bins as clients; the bins go to the
    clients in random order. source: every client has the documents of one source (data.group_column; the topics where
    the documents have no groups), as topic_isolation does it.

    Then every client gives the share 1 - `purity` of its documents to a pool that is dealt out anew, so that
    `purity=0` is `iid` in law. The notes say how far the labels came along, and how far if length is held fixed: a
    style that comes with a topic of its own, or is but a matter of length, is not a test of style.

    criterion: what documents are sorted by before they are dealt out
    purity: the share of the documents that follow the criterion; the rest is dealt out at random
    min_samples: documents that every client gets at least

    >>> texts = ("Wow!", "Report of the committee.", "I see.", "The new law.", "Oh no, they did!", "Signs of a long winter.")
    >>> deal = style_skew(criterion="formality")([Document(text, "topic") for text in texts], 2, np.random.default_rng(0))
    >>> for own in deal.clients:
    ...     print(*(texts[i] for i in own))
    Wow! I see. Oh no, they did!
    Report of the committee. The new law. Signs of a long winter.
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        check_request(len(documents), num_clients, min_samples)
        topics = number_names(d.topic for d in documents)
        if criterion == "source":
            owner, notes = _deal_by_source(documents, num_clients, purity, min_samples, generator)
            notes += (_describe_confounding(owner, topics, None, generator),)
            return Deal(group_positions(owner, num_clients), notes=notes)
        words = split_words([d.text for d in documents])
        score = SCORES[criterion](words)
        owner = deal_by_score(
            score, num_clients, purity, generator, words.counts if criterion == "complexity" else None
        )
        matched = (
            deal_by_score(score, num_clients, purity, generator, words.counts) if criterion == "formality" else None
        )
        notes = (f"clients' means from {describe_range(score, owner)} ({UNITS[criterion]})",)
        notes += note_equal_scores(score, num_clients, UNITS[criterion])
        notes += (_describe_confounding(owner, topics, matched, generator),)
        return Deal(group_positions(owner, num_clients), notes=notes)

    return partition


def _deal_by_source(
    documents: Sequence[Document], num_clients: int, purity: float, min_samples: int, generator: np.random.Generator
) -> tuple[Ints, tuple[str, ...]]:
    named = any(d.group for d in documents)
    method = "style_skew, criterion source"
    check_groups(method, [d.group for d in documents], [d.text for d in documents])
    topics = [d.topic for d in documents]
    source = number_names(d.group for d in documents) if named else number_topics(method, topics, num_clients)
    owner = redeal(isolate_classes(source, num_clients, generator), num_clients, 1 - purity, generator)
    held = np.bincount(source)
    smallest = np.bincount(owner, minlength=num_clients).min()
    if smallest < min_samples:
        fits = len(held) * int(held.min() // min_samples)
        ways = [f"at most {fits} clients (federation.total_clients)"] if fits else []
        ways += ["a smaller purity", "another criterion, whose bins are equal"]
        raise UserError(
            f"{method}: {len(documents)} documents of {len(held)} sources, the smallest of "
            f"{held.min()}, cannot give {num_clients} clients {min_samples} each of their own source at purity "
            f"{purity:g} (the smallest client would have {smallest}); what works: {', or '.join(ways)}"
        )
    notes = () if named else ("the documents have no groups (data.group_column): their topics are the sources",)
    return owner, notes + note_sharing("source", len(held), num_clients)


def _describe_confounding(owner: Ints, topics: Ints, matched: Ints | None, generator: np.random.Generator) -> str:
    """Describe how far labels follow the split, and how far they follow the same split among texts of one length."""
    chance = label_emd(generator.permutation(owner), topics)
    same_length = "" if matched is None else f", {label_emd(matched, topics):.3f} if made among texts of one length"
    return f"label EMD {label_emd(owner, topics):.3f}{same_length}, {chance:.3f} by chance (0 to 2, clients by size)"
