"""The user's own texts: csv, jsonl, parquet or plain text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedfault.errors import UserError
from fedfault.reading import cells, documents, files, hub, sides
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
    keep_repeats: bool = False,
) -> Corpus:
    """Your own texts: a .csv, .tsv, .jsonl, .parquet or .txt file or a folder of such files (your terms).

    Tables: `text_columns` (by default the column text) are joined by line breaks, `topic_column` names the topic and
    `group_column` the group: author, site or genre, empty where a row has none. In .tsv a quote is an ordinary letter.
    Two text columns are a pair of sentences for a classifier.
    Text files: each is a document, and its sub-folder is its topic; a single file is cut at blank lines.
    A folder with tables is read as tables. Files called train, or in a folder called so, are trained on, or else all that
    are not called validation (valid, val, dev) or test in any spelling. Those called validation validate, or else those
    called test; without either, validation is split off. Other files are left out, and the output says which.
    Texts are the same if they have the same characters, whatever case and blanks: the first is kept, and all of them with
    `keep_repeats`.
    """
    if not path:
        raise UserError("the corpus text needs data.path=FILE or FOLDER")
    found = files.find_path(path)
    source = hub.name_place(found)
    own = _find_files(found)
    if own.train[0].suffix.lower() == ".txt":
        given = {"text_columns": text_columns, "topic_column": topic_column, "group_column": group_column}
        for option, value in given.items():
            if value is not None:
                raise UserError(f"data.{option}={value}: {path} has plain text, so there are no columns; leave it out")
        texts = (_read_plain(found, side) for side in own[:2])
        return documents.make_corpus("text", source, *texts, sides=own, keep_repeats=keep_repeats)
    columns = ["text"] if text_columns is None else text_columns
    if not columns:
        raise UserError("data.text_columns is empty; name at least one column, or leave it out to read the column text")
    if len(set(columns)) < len(columns):
        raise UserError(f"data.text_columns={columns} names a column twice; name each once")
    read = [
        [row for file in side for row in _read_table(file, columns, topic_column, group_column)] for side in own[:2]
    ]
    texts = ([document for document, _ in side] for side in read)
    made = documents.make_corpus("text", source, *texts, sides=own, keep_repeats=keep_repeats)
    if len(columns) != 2:
        return made
    return replace(made, labels=Labels(first_lengths={d.text: n for side in read for d, n in reversed(side)}))


def _find_files(path: Path) -> sides.Sides:
    """Find the files of train and of validation; the latter list is empty if validation is to be split off train."""
    endings = (*files.TABLES, ".txt")
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise UserError(
                f"data.path={path}: a file must end in one of {', '.join(endings)}{files.explain_ending(path)}"
            )
        return sides.Sides([path], [], [])
    everything = sides.list_files(path, deep=True)
    found = [file for file in everything if file.suffix.lower() in files.TABLES]
    found = found or [file for file in everything if file.suffix.lower() == ".txt"]
    if not found:
        hint = next(filter(None, map(files.explain_ending, everything)), "")
        raise UserError(f"data.path={path}: no file in the folder ends in one of {', '.join(endings)}{hint}")
    own, known = sides.sort_files(path, found), set(found)
    return own._replace(left_out=[*own.left_out, *(file for file in everything if file not in known)])


def _read_plain(path: Path, found: list[Path]) -> list[Document]:
    if path.is_file():
        pieces = (documents.join_and_cut(files.read_text(file).split("\n\n")) for file in found)
        return [Document(piece, TOPIC) for own in pieces for piece in own]
    return [Document(files.read_text(file), _name_topic(file.relative_to(path).parts[:-1])) for file in found]


def _name_topic(folders: tuple[str, ...]) -> str:
    """Name the topic by the first folder, or the first below that of the side: train/glad and test/glad are one topic.

    >>> [_name_topic(f) for f in ((), ("glad", "old"), ("train", "glad"), ("glad", "test"))]
    ['text', 'glad', 'glad', 'glad']
    """
    sided = [i for i, name in enumerate(folders) if sides.name_parts(name)]
    below = folders[sided[-1] + 1 :] if sided else folders
    return next(iter((*below, *(name for name in folders if not sides.name_parts(name)))), TOPIC)


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
