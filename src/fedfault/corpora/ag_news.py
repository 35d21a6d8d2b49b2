"""AG News: short news texts in four topics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfault.corpora import documents, files, hub
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types import Corpus, Document

HUB = "fancyzhx/ag_news"
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


@register("corpus")
def ag_news(*, path: str | None = None) -> Corpus:
    """120,000 news texts in 4 topics (Hub fancyzhx/ag_news, or a folder; for research and non-commercial use).

    The official test set is the validation part. `path` is a folder with train and test as .csv, .jsonl or .parquet,
    with the columns text, label (as on the Hub) or label, title, description; labels are 0 to 3.

    Reference: Zhang, Zhao and LeCun, NIPS 2015.
    """
    if path is None:
        splits, source = hub.load(HUB)
        train, validation = (
            _documents(
                HUB, [{"text": t, "label": y} for t, y in zip(splits[s]["text"], splits[s]["label"], strict=True)]
            )
            for s in ("train", "test")
        )
        return documents.corpus("ag_news", source, train, validation)
    folder = files.existing(path)
    if not folder.is_dir():
        raise UserError(
            f"data.path={path}: ag_news reads a folder with train and test files; for a file use data.dataset=text"
        )
    data = folder / "data"  # where a copy of the Hub's repository has its files
    found = files.parts(
        [*files.files_in(folder, files.TABLES), *(files.files_in(data, files.TABLES) if data.is_dir() else [])]
    )
    if "train" not in found:
        raise UserError(f"data.path={path}: no train file; a folder of ag_news has train.csv and test.csv, or .parquet")
    train = [d for file in found["train"] for d in _documents(file, files.read_rows(file))]
    validation = [d for file in found.get("test", []) for d in _documents(file, files.read_rows(file))]
    return documents.corpus("ag_news", f"folder {folder.resolve()}", train, validation)


def _documents(where: str | Path, rows: Sequence[dict[str, Any]]) -> list[Document]:
    columns = files.columns_of(rows[:1])
    texts = "text" in columns
    if "label" not in columns or not (texts or {"title", "description"} <= set(columns)):
        raise UserError(
            f"{where}: ag_news needs the columns text, label or label, title, description "
            f"(found: {', '.join(columns) or 'no rows'}); for other data use data.dataset=text"
        )
    return [Document((r["text"] or "") if texts else _joined(r), _topic(where, r["label"])) for r in rows]


def _joined(row: dict[str, Any]) -> str:
    title, description = row["title"] or "", row["description"] or ""
    return f"{title}. {description}" if title else description


def _topic(where: str | Path, label: Any) -> str:
    if str(label) not in ("0", "1", "2", "3"):
        raise UserError(f"{where}: label {label!r}; ag_news has 0 to 3 for {', '.join(TOPICS)}")
    return TOPICS[int(label)]
