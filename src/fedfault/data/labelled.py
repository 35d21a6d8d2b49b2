"""From a corpus to each client's labelled examples, and to the sets that the global model is evaluated on."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfault.config.schema import Experiment
from fedfault.data.poisoning import ask_for_backdoors
from fedfault.data.split import CLIENT_SHARE, Split, deal_out, draw_positions
from fedfault.errors import UserError, join_names
from fedfault.text.examples import Examples, encode_pairs
from fedfault.text.tokens import Tokens
from fedfault.types.corpus import Corpus, Document, Labels

LISTED = 12  # classes that an error names


def list_classes(exp: Experiment, corpus: Corpus) -> tuple[str, ...]:
    """List the names of the classes 0, 1, ...: data.label_names, the source's own, or train's topics by alphabet.

    Raises `UserError` where the data has classes that are not in data.label_names. Without that setting also where
    validation has one that no text for training has, as nothing can learn it, and where two are written alike.
    """
    trained, held = ({d.topic for d in side} for side in (corpus.train, corpus.validation))
    names = tuple(exp.data.label_names or (corpus.labels and corpus.labels.names) or sorted(trained))
    if exp.data.label_names is None:
        if unseen := sorted(held - trained):
            n = sum(d.topic in unseen for d in corpus.validation)
            raise UserError(
                f"{n} of {len(corpus.validation)} validation texts of {corpus.name} have a class that no training text "
                f"has: {join_names(unseen, LISTED)} (training has {join_names(sorted(trained), LISTED)}); correct the "
                "labels, or name all classes in data.label_names if nothing shall learn these"
            )
        _refuse_look_alikes(names, corpus)
    elif more := sorted((trained | held) - set(names)):
        raise UserError(
            f"data.label_names={join_names(names, LISTED)} is without {join_names(more, LISTED)}, which {corpus.name} "
            "has; add them"
        )
    return names


def _refuse_look_alikes(names: Sequence[str], corpus: Corpus) -> None:
    """Raise `UserError` if two classes differ in case, in blanks or in the width of letters only: one typed two ways."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other != name:
            one, two = (sum(d.topic == each for d in corpus.train) for each in (other, name))
            raise UserError(
                f"{corpus.name} has the classes {other!r} ({one:,} training texts) and {name!r} ({two:,}), which differ in "
                "case or blanks only; write them alike, or name all classes in data.label_names if they are two"
            )


def count_outputs(exp: Experiment, corpus: Corpus) -> int | None:
    """Count the outputs of the head: one a class, one for a score; None for a language model.

    Raises `UserError` where the corpus has no such labels, or not as many as `data.num_labels` says.
    """
    task, wanted = exp.data.task_type, exp.data.num_labels
    if task not in ("classification", "regression"):
        return None
    if task == "regression":
        if not (corpus.labels and corpus.labels.scores):
            raise UserError(
                f"data.task_type=regression needs texts with a score, and {corpus.name} has none; use "
                "data.dataset=glue/stsb, or data.task_type=classification"
            )
        if wanted not in (None, 1):
            raise UserError(f"data.num_labels={wanted}, but a regression has one score a text; leave it out")
        return 1
    names = list_classes(exp, corpus)
    if len(names) < 2:
        raise UserError(
            f"data.task_type=classification needs two classes at least, and all texts of {corpus.name} have the topic "
            f"{names[0]!r}; set data.topic_column, or choose another corpus"
        )
    if wanted not in (None, len(names)):
        raise UserError(
            f"data.num_labels={wanted}, but {corpus.name} has {len(names)} classes ({join_names(names, LISTED)}); "
            "leave it out"
        )
    return len(names)


def find_positive_class(exp: Experiment, corpus: Corpus) -> int | None:
    """The number of the class whose F1 is measured; None for the mean over all of them."""
    labels = corpus.labels
    return list_classes(exp, corpus).index(labels.positive) if labels and labels.positive else None


def split_into_examples(
    exp: Experiment, corpus: Corpus, tokenizer: Any, separator: int | None, *, control: bool = False
) -> Split[Examples]:
    """Deal documents out as `deal_out` does and make examples of them; topics are classes, or scores rounded to integers.

    Evaluation sets are drawn at random from what there is: as many examples as have the tokens of evaluation.max_blocks
    blocks a topic, of a client's own a quarter of that. separator: see `encode_pairs`.

    Raises `UserError` when the partition is impossible.
    """
    d = deal_out(exp, corpus, control=control)
    room = exp.evaluation.max_blocks * exp.model.max_length  # tokens
    texts = [d.deal.texts.get(i, document.text) for i, document in enumerate(d.documents)]
    whole = _make_examples(exp, corpus, d.documents, texts, tokenizer, separator)
    own = [(whole[mine], whole[kept_back]) for mine, kept_back in d.parts]
    held_out = [
        _draw_examples(kept, room // CLIENT_SHARE, exp.seed, "client", k) if len(kept) else None
        for k, (_, kept) in enumerate(own)
    ]
    held = _make_examples(exp, corpus, corpus.validation, [v.text for v in corpus.validation], tokenizer, separator)
    topic = np.array([v.topic for v in corpus.validation])
    asked = ask_for_backdoors(exp, corpus.validation, d.topics)
    triggered = _make_examples(exp, corpus, asked, [v.text for v in asked], tokenizer, separator) if asked else None
    drawn = draw_positions(held.lengths.numpy(), room * len(d.topics), exp.seed, "validation")
    return Split(
        corpus=corpus,
        documents=d.documents,
        deal=d.deal,
        tokens=Tokens.from_documents(
            [ids[:n].tolist() for ids, n in zip(whole.ids.numpy(), whole.lengths.tolist(), strict=True)]
        ),
        topics=d.topics,
        labels=d.labels,
        train=[mine for mine, _ in own],
        held_out=held_out,
        validation={t: held[drawn[topic[drawn] == t]] for t in sorted(set(topic[drawn].tolist()))},
        mixture={t: float((topic == t).mean()) for t in sorted(set(topic.tolist()))},
        backdoor=triggered and _draw_examples(triggered, room, exp.seed, "backdoor"),
        examples=whole,
        too_short=sum(int((each.lengths <= _count_marks(each, separator, tokenizer)).sum()) for each in (whole, held)),
        cut=sum(int((each.lengths >= exp.model.max_length).sum()) for each in (whole, held)),
    )


def _make_examples(
    exp: Experiment,
    corpus: Corpus,
    documents: Sequence[Document],
    texts: list[str],
    tokenizer: Any,
    separator: int | None,
) -> Examples:
    """Make examples of documents with their labels; `texts` are the documents' texts as their clients have them."""
    labels = corpus.labels or Labels()
    rows = encode_pairs([_split_pair(text, labels) for text in texts], tokenizer, exp.model.max_length, separator)
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    if exp.data.task_type == "regression":
        return Examples.from_rows(rows, [labels.scores[d.text] for d in documents], padding)
    place = {name: k for k, name in enumerate(list_classes(exp, corpus))}
    return Examples.from_rows(rows, [place[d.topic] for d in documents], padding)


def _count_marks(examples: Examples, separator: int | None, tokenizer: Any) -> int:
    """Count the tokens that every row has, whatever its text: the separator, or the model's own special tokens."""
    if separator is not None:
        return 1
    pairs = bool((examples.second < examples.lengths).any())
    return int(tokenizer.num_special_tokens_to_add(pair=pairs))


def _split_pair(text: str, labels: Labels) -> tuple[str, str]:
    """Split a text into its two sentences; in a text that a partition changed they meet at the first line break."""
    if not labels.first_lengths:
        return text, ""
    n = labels.first_lengths.get(text, len(text.partition("\n")[0]))
    return text[:n], text[n:].removeprefix("\n")  # no line break stands before the second where the first is empty


def _draw_examples(examples: Examples, tokens: int, seed: int, *name: str | int) -> Examples:
    return examples[draw_positions(examples.lengths.numpy(), tokens, seed, *name)]
