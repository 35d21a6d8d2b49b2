"""AG News: short news texts in four topics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfault.reading import documents, files, hub
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

HUB = "fancyzhx/ag_news"
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


@register("corpus")
def ag_news(*, path: str | None = None) -> Corpus:
    """120,000 news texts in 4 topics (Hub fancyzhx/ag_news, or a folder; for research and non-commercial use).

    The official test set is the validation part. `path` is a folder with train and test as .csv, .tsv, .jsonl or
    .parquet, with the columns text, label (as on the Hub) or label, title, description; labels are 0 to 3. A column
    source is the group.

    Reference: Zhang, Zhao and LeCun, NIPS 2015.
    """
    if path is None:
        splits, source = hub.load(HUB)
        train, validation = (_documents(HUB, hub.rows(splits[s], "text", "label")) for s in ("train", "test"))
        return documents.corpus("ag_news", source, train, validation)
    folder = files.existing_folder(path, "ag_news")
    own = files.sides_in(folder, "ag_news")
    train, validation = ([d for file in side for d in _documents(file, files.read_rows(file))] for side in own)
    return documents.corpus("ag_news", f"folder {folder.resolve()}", train, validation)


def _documents(where: str | Path, rows: Sequence[files.Row]) -> list[Document]:
    columns = files.columns_for("ag_news", where, rows, ("text", "label"), ("label", "title", "description"))
    text = _text if "text" in columns else _joined
    topics = (files.label_name("ag_news", where, row["label"], TOPICS) for row in rows)
    return [Document(text(row), topic, row.get("source") or "") for row, topic in zip(rows, topics, strict=True)]


def _text(row: files.Row) -> str:
    return row["text"] or ""


def _joined(row: files.Row) -> str:
    title, description = row["title"] or "", row["description"] or ""
    return f"{title}. {description}" if title else description
