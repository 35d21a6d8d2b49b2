"""AG News: short news texts in four topics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

HUB = "fancyzhx/ag_news"
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


@register("corpus", cite=("zhang2015agnews",))
def ag_news(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """120,000 news texts in 4 topics (Hub fancyzhx/ag_news, or a folder; for research and non-commercial use).

    The official test set is the validation part. `path` is a folder with train and test as .csv, .tsv, .jsonl or
    .parquet, with the columns text, label (as on the Hub) or label, title, description; labels are 0 to 3. A column
    source is the group. `keep_repeats` keeps texts that are there twice.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Zhang, Zhao and LeCun, NIPS 2015.
    """
    if path is None:
        splits, source = hub.load_splits(HUB)
        train, validation = (_make_documents(HUB, hub.list_rows(splits[s], "text", "label")) for s in ("train", "test"))
        return documents.make_corpus("ag_news", source, train, validation, keep_repeats=keep_repeats)
    place = files.find_folder(path, "ag_news")
    own = sides.find_sides(place.path, "ag_news")
    train, validation = ([d for file in side for d in _make_documents(file, files.read_rows(file))] for side in own[:2])
    return documents.make_corpus(
        "ag_news", hub.name_place(place), train, validation, sides=own, keep_repeats=keep_repeats
    )


def _make_documents(where: str | Path, rows: Sequence[files.Row]) -> list[Document]:
    columns = files.choose_columns("ag_news", where, rows, ("text", "label"), ("label", "title", "description"))
    text = _read_text if "text" in columns else _join_title
    topics = (
        files.label_name("ag_news", f"{where}: row {n}", row.get("label"), TOPICS)
        for n, row in enumerate(rows, start=1)
    )
    return [Document(text(row), topic, write_cell(row.get("source"))) for row, topic in zip(rows, topics, strict=True)]


def _read_text(row: files.Row) -> str:
    return write_cell(row.get("text"))


def _join_title(row: files.Row) -> str:
    title, description = write_cell(row.get("title")), write_cell(row.get("description"))
    return f"{title}. {description}" if title else description
