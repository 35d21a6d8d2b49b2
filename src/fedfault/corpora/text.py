"""The user's own texts: csv, jsonl, parquet or plain text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedfault.errors import UserError
from fedfault.reading import cells, documents, files
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document, Labels

TOPIC = "text"  # of documents that have none


@register("corpus")
def text(
    *,
    path: str | None = None,
    text_columns: list[str] | None = None,
    topic_column: str | None = None,
    group_column: str | None = None,
) -> Corpus:
    """Your own texts: a .csv, .tsv, .jsonl, .parquet or .txt file or a folder of such files (your terms).

    Tables: `text_columns` (by default the column text) are joined by line breaks, `topic_column` names the topic and
    `group_column` the group: author, site or genre, empty where a row has none. In .tsv a quote is an ordinary letter.
    Two text columns are a pair of sentences for a classifier.
    Text files: each is a document, and its sub-folder is its topic; a single file is cut at blank lines.
    A folder with tables is read as tables. If one is called train, it and the one called validation (valid, val, dev,
    test) are the two parts and other tables are left out; otherwise all are pooled and validation is split off.
    """
    if not path:
        raise UserError("the corpus text needs data.path=FILE or FOLDER")
    found = files.find_path(path)
    source = f"{'folder' if found.is_dir() else 'file'} {found.resolve()}"
    train, validation = _find_files(found)
    if train[0].suffix.lower() == ".txt":
        given = {"text_columns": text_columns, "topic_column": topic_column, "group_column": group_column}
        for option, value in given.items():
            if value is not None:
                raise UserError(f"data.{option}={value}: {path} has plain text, so there are no columns; leave it out")
        return documents.make_corpus("text", source, _read_plain(found, train))
    columns = ["text"] if text_columns is None else text_columns
    if not columns:
        raise UserError("data.text_columns is empty; name at least one column, or leave it out to read the column text")
    sides = [
        [row for file in own for row in _read_table(file, columns, topic_column, group_column)]
        for own in (train, validation)
    ]
    made = documents.make_corpus("text", source, *([document for document, _ in side] for side in sides))
    if len(columns) != 2:
        return made
    return replace(made, labels=Labels(first_lengths={d.text: n for side in sides for d, n in reversed(side)}))


def _find_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Find the files of train and of validation; the latter list is empty if validation is to be split off train."""
    endings = (*files.TABLES, ".txt")
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise UserError(
                f"data.path={path}: a file must end in one of {', '.join(endings)}{files.explain_ending(path)}"
            )
        return [path], []
    tables = files.list_files(path, files.TABLES, deep=True)
    found = files.group_by_part(tables)
    if "train" in found:
        return files.choose_sides(found)
    all_files = tables or files.list_files(path, (".txt",), deep=True)
    if not all_files:
        raise UserError(f"data.path={path}: no file in the folder ends in one of {', '.join(endings)}")
    return all_files, []


def _read_plain(path: Path, found: list[Path]) -> list[Document]:
    if path.is_file():
        return [Document(piece, TOPIC) for piece in documents.join_and_cut(files.read_text(path).split("\n\n"))]
    within = [file.relative_to(path).parts for file in found]
    return [
        Document(files.read_text(file), parts[0] if len(parts) > 1 else TOPIC)
        for file, parts in zip(found, within, strict=True)
    ]


def _read_table(
    file: Path, columns: Sequence[str], topic_column: str | None, group_column: str | None
) -> list[tuple[Document, int]]:
    """Read a table: a document for every row, with the number of its characters that are its first column."""
    rows = files.read_rows(file)
    if not rows:
        raise UserError(f"{file}: no rows")
    files.check_columns(file, rows, columns, "data.text_columns")
    topics, groups = [TOPIC] * len(rows), [""] * len(rows)
    if topic_column is not None:
        files.check_columns(file, rows, [topic_column], "data.topic_column")
        topics = cells.read_column(file, rows, topic_column, names=True)
        if without := topics.count(""):
            raise UserError(
                f"{file}: {without} of {len(rows)} rows have nothing in the topic column {topic_column!r}, the first is "
                f"row {topics.index('') + 1}"
            )
    if group_column is not None:
        files.check_columns(file, rows, [group_column], "data.group_column")
        groups = cells.read_column(file, rows, group_column, names=True)
    parts = [cells.read_column(file, rows, name) for name in columns]
    texts = ("\n".join(filter(None, row)) for row in zip(*parts, strict=True))
    return list(zip(map(Document, texts, topics, groups), map(len, parts[0]), strict=True))
