"""The user's own texts and conversations: csv, json, jsonl, parquet or plain text files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fedfault.errors import UserError, join_names
from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import is_quoted
from fedfault.reading.tables import TOPIC, Columns, list_unread, make_table_corpus, read_table
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

_BLANK_LINES = re.compile(r"\n\s*\n")


@register("corpus")
def text(
    *,
    path: str | None = None,
    text_columns: list[str] | None = None,
    columns: dict[str, str] | None = None,
    topic_column: str | None = None,
    group_column: str | None = None,
    keep_repeats: bool = False,
) -> Corpus:
    """Your own texts: a .csv, .tsv, .json, .jsonl, .parquet or .txt file or a folder of such files (your terms).

    Tables: `text_columns` (by default the column text) are joined by line breaks, `topic_column` names the topic and
    `group_column` the group: author, site or genre, empty where a row has none (which partitions by groups refuse). In .tsv
    a quote is an ordinary letter. Two text columns are a pair of sentences for a classifier.
    Tables with the columns messages, or prompt and completion, or instruction, input and output, or question and answer
    hold conversations, for data.task_type=instruction; `columns` says which column is which where they are called otherwise.
    Text files: each is a document, and its sub-folder is its topic; a single file is cut at blank lines, and what is longer
    than 2,000 characters between them is cut where lines end.
    A folder with tables is read as tables; of .json files those that are a list of objects or an object a line. Files
    called train, or in a folder called so, are trained on, or else all that are not called validation (valid, val, dev) or
    test in any spelling. Those called validation validate, or else those called test; without either, validation is split
    off. Other files are left out, and columns that nobody names, and the output says which. A column split (set, subset,
    fold, partition) that says so of rows is refused.
    Texts are the same if they have the same characters, whatever case and blanks: the first is kept, and all of them with
    `keep_repeats`.

    path: a file or folder: tables, JSON lines, or text in folders of topics
    text_columns: columns that are joined to the text, by default text
    columns: names in the file of the parts of a conversation or a preference
    topic_column: the column with the topic or the label
    group_column: the column with who a text is of: author, site, department
    keep_repeats: keep texts that are there more than once
    """
    if not path:
        raise UserError("the corpus text needs data.path=FILE or FOLDER")
    place = files.find_path(path)
    found, source = place.path, hub.name_place(place)
    own = _find_files(found)
    if own.train[0].suffix.lower() == ".txt":
        wanted = ("text_columns", text_columns), ("columns", columns)
        for option, value in (*wanted, ("topic_column", topic_column), ("group_column", group_column)):
            if value is not None:
                more = " and put the files of each topic into a sub-folder" if option == "topic_column" else ""
                raise UserError(
                    f"data.{option}={value}: {path} has plain text, so there are no columns; leave it out{more}"
                )
        if found.is_dir() and len(own.train) + len(own.validation) == 1:
            raise UserError(
                f"data.path={path}: the folder holds one text, {own.train[0].name}, and each file of a folder is a "
                "document; give data.path the file itself, which is cut at its blank lines"
            )
        texts = [_read_plain(found, side) for side in own[:2]]
        if found.is_file() and len(texts[0]) == 1:
            raise UserError(
                f"data.path={path}: only one text, and train and validation need one each; a text file is cut at its blank "
                f"lines, and what is longer than {documents.PIECE:,} characters where lines end: break its lines"
            )
        return documents.make_corpus("text", source, *texts, sides=own, keep_repeats=keep_repeats)
    read_as = Columns(text_columns, columns, topic_column, group_column)
    read = [[(file, files.list_numbered_rows(file)) for file in side] for side in own[:2]]
    train, validation = ([row for file, rows in side for row in read_table(file, rows, read_as)] for side in read)
    made = make_table_corpus("text", source, train, validation, read_as, sides=own, keep_repeats=keep_repeats)
    tsv = (row for side in read for file, rows in side if file.suffix.lower() == ".tsv" for _, row in rows)
    unread = (list_unread(file, [row for _, row in rows], read_as) for file, rows in read[0])
    tally = replace(
        made.tally,
        quoted=sum(is_quoted(cell) for row in tsv for cell in row.values()),
        unread=join_names(dict.fromkeys(name for names in unread for name in names)),
    )
    return replace(made, tally=tally)


def _find_files(path: Path) -> sides.Sides:
    """Find the files of train and of validation; the latter list is empty if validation is to be split off train."""
    endings = (*files.TABLES, ".json", ".txt")
    if path.is_file():
        if path.suffix.lower() not in endings:
            raise UserError(
                f"data.path={path}: a file must end in one of {', '.join(endings)}{files.explain_ending(path)}"
            )
        return sides.Sides([path], [], [])
    everything = sides.list_files(path, deep=True)
    found = [file for file in everything if files.is_table(file)]
    if not found:
        found = [file for file in everything if file.suffix.lower() == ".txt"]
        if found and (hidden := next(filter(_is_hidden_table, everything), None)):
            raise UserError(
                f"data.path={path}: {hidden.relative_to(path)} is a table that is not read{files.explain_ending(hidden)}; "
                "or move it away, if the text files are the data"
            )
    if not found:
        hint = next(filter(None, map(files.explain_ending, everything)), "")
        raise UserError(f"data.path={path}: no file in the folder ends in one of {', '.join(endings)}{hint}")
    own, known = sides.sort_files(path, found), set(found)
    unread = [file for file in everything if file not in known]
    if not any(_is_called_train(path, file) for file in own.train):
        _check_unread(
            path, own.train, [file for file in unread if file.suffix.lower() in (*endings, *files.OTHER_ENDINGS)]
        )
    return own._replace(left_out=[*own.left_out, *unread])


def _check_unread(folder: Path, train: list[Path], unread: list[Path]) -> None:
    """Raise `UserError` where a file that is called train is left out, while one that is not is trained on."""
    for file in unread:
        if _is_called_train(folder, file):
            raise UserError(
                f"data.path={folder}: {file.relative_to(folder)} is called train and would be left out, as "
                f"{sides.list_names(train, folder)} would be trained on{files.explain_ending(file)}; rename or move one of "
                "them, or give data.path the file itself"
            )


def _is_hidden_table(file: Path) -> bool:
    """Whether a file is a table that is packed or of another program; an archive may hold the texts beside it."""
    if file.suffix.lower() in files.PACKED:
        return Path(file.stem).suffix.lower() in (*files.TABLES, ".json", ".ndjson")
    return files.explain_ending(file) != ""


def _is_called_train(folder: Path, file: Path) -> bool:
    return any("train" in sides.name_parts(piece) for piece in file.relative_to(folder).with_suffix("").parts)


def _read_plain(path: Path, found: list[Path]) -> list[Document]:
    if path.is_file():
        parts = [part for file in found for part in _BLANK_LINES.split(files.read_text(file).strip())]
        return [Document(piece, TOPIC) for part in parts for piece in documents.cut_text(part)]
    return [Document(files.read_text(file), _name_topic(file.relative_to(path).parts[:-1])) for file in found]


def _name_topic(folders: tuple[str, ...]) -> str:
    """Name the topic by the first folder, or the first below that of the side: train/glad and test/glad are one topic.

    >>> [_name_topic(f) for f in ((), ("glad", "old"), ("train", "glad"), ("glad", "test"))]
    ['text', 'glad', 'glad', 'glad']
    """
    sided = [i for i, name in enumerate(folders) if sides.name_parts(name)]
    below = folders[sided[-1] + 1 :] if sided else folders
    return next(iter((*below, *(name for name in folders if not sides.name_parts(name)))), TOPIC)
