"""GoEmotions: Reddit comments and the emotions that their readers saw in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

HUB, CONFIG = "google-research-datasets/go_emotions", "simplified"
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)  # fmt: skip


@register("corpus")
def reddit(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """49,000 Reddit comments in 28 emotions (Hub google-research-datasets/go_emotions, or a folder; Apache-2.0).

    The topic is the first emotion listed: the only one for five comments of six; of several the first in alphabetical
    order, neutral last. The official validation part is the validation part. `path` is a folder, or a copy of the Hub's
    repository, with train and validation (or dev) as .csv, .tsv, .jsonl or .parquet, with the columns text, labels
    (a list, as on the Hub) or text, label_ids (numbers between blanks). `keep_repeats` keeps comments that are
    there twice. Comments are unmoderated, names are masked.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Demszky et al., ACL 2020.
    """
    if path is None:
        splits, source = hub.load_splits(HUB, CONFIG)
        train, validation = (
            _make_documents(HUB, hub.list_rows(splits[s], "text", "labels")) for s in ("train", "validation")
        )
        return documents.make_corpus("reddit", source, train, validation, keep_repeats=keep_repeats)
    place = files.find_folder(path, "reddit")
    own = sides.find_sides(place.path, "reddit", inside=("data", CONFIG))
    train, validation = ([d for file in side for d in _make_documents(file, files.read_rows(file))] for side in own[:2])
    return documents.make_corpus(
        "reddit", hub.name_place(place), train, validation, sides=own, keep_repeats=keep_repeats
    )


def _make_documents(where: str | Path, rows: Sequence[files.Row]) -> list[Document]:
    _, column = files.choose_columns("reddit", where, rows, ("text", "labels"), ("text", "label_ids"))
    return [
        Document(write_cell(r.get("text")), _first_emotion(f"{where}: row {n}", r.get(column)))
        for n, r in enumerate(rows, start=1)
    ]


def _first_emotion(where: str, labels: Sequence[int] | str | int | None) -> str:
    listed = labels.split() if isinstance(labels, str) else labels if isinstance(labels, Sequence) else [labels]
    return files.label_name("reddit", where, next(iter(listed), None), EMOTIONS)
