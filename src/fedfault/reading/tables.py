"""Rows of a user's table as documents: plain text of some columns, or conversations; with their topics and groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedfault.errors import UserError, suggest
from fedfault.reading import cells, documents, files, sides
from fedfault.reading.conversations import Shape, find_shape, name_columns, read_conversation, spell_shape
from fedfault.types.corpus import Conversation, Corpus, Document, Labels, Turn

TOPIC = "text"  # of documents that have none
SIDES = ("split", "set", "subset", "fold", "partition")  # columns that may say of rows that they are for testing
LONGEST_SIDE = 20  # characters of what they say


@dataclass(frozen=True)
class Columns:
    """Which columns are read and as what: text_columns, columns, topic_column and group_column of `data`."""

    text: list[str] | None = None
    parts: Mapping[str, str] | None = None
    topic: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.text is None:
            return
        if self.parts is not None:
            raise UserError("data.text_columns reads plain text and data.columns conversations; give one of them")
        if not self.text:
            raise UserError("data.text_columns is empty; name at least one column, or leave it out")
        if len(set(self.text)) < len(self.text):
            raise UserError(f"data.text_columns={self.text} names a column twice; name each once")


class ReadRow(NamedTuple):
    """A row that was read."""

    document: Document
    first_length: int  # characters of its first text column
    conversation: Conversation | None  # None: it is plain text


def read_table(where: Path | str, rows: Sequence[tuple[str, files.Row]], columns: Columns) -> list[ReadRow]:
    """Read the rows of a table, each with its place in words. Raises `UserError` for a table without rows, and others.

    Without `columns.text` and `columns.parts` the column text is read, or the columns of one shape of conversations.
    """
    if not rows:
        raise UserError(f"{where}: no rows")
    values = [row for _, row in rows]
    known = files.list_columns(values)
    shape = find_shape(str(where), known, columns.parts) if columns.text is None else None
    if shape and columns.parts is None and "text" in known:
        raise UserError(
            f"{where}: the column text and {', '.join(shape)} are both there; say which is read: data.text_columns=[text] "
            f"or data.columns={spell_shape(shape)}"
        )
    _refuse_sides(where, values, columns)
    topics = _read_names(where, values, columns.topic, "data.topic_column") or [TOPIC] * len(rows)
    if without := topics.count(""):
        raise UserError(
            f"{where}: {without} of {len(rows)} rows have nothing in the topic column {columns.topic!r}, the first is "
            f"row {topics.index('') + 1}"
        )
    groups = _read_names(where, values, columns.group, "data.group_column") or [""] * len(rows)
    if shape:
        if columns.parts is None and "label" in known:
            _refuse_judged(where, values, shape)
        return _read_conversations(rows, shape, topics, groups)
    if columns.text is None and "text" not in known:
        called = name_columns(known) or "{prompt: NAME, completion: NAME}"
        raise UserError(
            f"{where}: none fit a shape of conversations, and there is no column 'text'{suggest('text', known)} (known: "
            f"{', '.join(known)})"
            + (
                files.explain_columns(known)
                or f"; data.text_columns=[NAME] reads plain text, data.columns={called} prompts with responses"
            )
        )
    return _read_texts(where, values, columns.text or ["text"], topics, groups)


def list_unread(where: Path | str, rows: Sequence[files.Row], columns: Columns) -> list[str]:
    """List the columns of a table that `read_table` leaves alone, as they are called in the file."""
    known = files.list_columns(rows)
    shape = find_shape(str(where), known, columns.parts) if columns.text is None else None
    read = {*(columns.text or (shape or {"text": "text"}).values()), columns.topic, columns.group}
    return [name for name in known if name not in read]


def _refuse_sides(where: Path | str, rows: Sequence[files.Row], columns: Columns) -> None:
    """Raise `UserError` where a column that is not read says which rows are for training and which for testing."""
    read = {*(columns.text or ()), *(columns.parts or {}).values(), columns.topic, columns.group}
    for column in files.list_columns(rows):
        if column.strip().lower() not in SIDES or column in read:
            continue
        found = Counter(cells.write_cell(row.get(column)).strip() for row in rows)
        parts = [sides.name_parts(word) if len(word) <= LONGEST_SIDE else set() for word in found]
        if all(len(said) == 1 for said in parts) and len(set().union(*parts)) > 1:
            each = ", ".join(f"{n:,} {word}" for word, n in found.items())
            raise UserError(
                f"{where}: the column {column!r} says of rows which side they are for ({each}), and all of a file is on one "
                "side; write a file of each into a folder, such as train.csv and test.csv, or remove the column"
            )


def _refuse_judged(where: Path | str, rows: Sequence[files.Row], shape: Shape) -> None:
    """Raise `UserError` where a column says which responses are bad ones, as in data for KTO: all would be learned."""
    if all(cells.write_cell(row.get("label")).lower() in ("true", "false") for row in rows):
        raise UserError(
            f"{where}: the column label is true or false beside {', '.join(shape)}: whether a response is a good one, as "
            f"for KTO, which is not offered; keep the rows where it is true, or say data.columns={spell_shape(shape)} to "
            "learn all"
        )


def _read_names(where: Path | str, rows: Sequence[files.Row], column: str | None, option: str) -> list[str]:
    """Read a column of names; an empty list if there is none."""
    if column is None:
        return []
    files.check_columns(where, rows, [column], option)
    return cells.read_column(where, rows, column, names=True)


def _read_texts(
    where: Path | str, rows: Sequence[files.Row], columns: Sequence[str], topics: list[str], groups: list[str]
) -> list[ReadRow]:
    files.check_columns(where, rows, columns, "data.text_columns")
    parts = [cells.read_column(where, rows, name) for name in columns]
    texts = ("\n".join(filter(None, row)) for row in zip(*parts, strict=True))
    made = map(Document, texts, topics, groups)
    return [ReadRow(document, len(first), None) for document, first in zip(made, parts[0], strict=True)]


def _read_conversations(
    rows: Sequence[tuple[str, files.Row]], shape: Shape, topics: list[str], groups: list[str]
) -> list[ReadRow]:
    read = [read_conversation(place, row, shape) for place, row in rows]
    return [ReadRow(Document(c.text, *names), 0, c) for c, *names in zip(read, topics, groups, strict=True)]


def make_table_corpus(
    name: str, source: str, train: Sequence[ReadRow], validation: Sequence[ReadRow], columns: Columns, **options: Any
) -> Corpus:
    """Make a corpus of rows that were read; options are those of `documents.make_corpus`.

    Raises `UserError` for tables of which some hold conversations and others plain text.
    """
    rows = [*train, *_spell_booleans(train, validation)]
    spoken = [row for row in rows if row.conversation]
    if spoken and len(spoken) < len(rows):
        raise UserError(
            f"{source}: some tables hold conversations and others plain text; name the columns with data.columns or "
            "data.text_columns, or move one kind away"
        )
    rows = _tell_apart(rows) if spoken else rows
    texts = [row.document for row in rows]
    openings = {row.document.text: row.conversation.opening for row in rows if row.conversation}
    made = documents.make_corpus(name, source, texts[: len(train)], texts[len(train) :], openings=openings, **options)
    if spoken:
        return replace(made, conversations=_collect_conversations(rows))
    if columns.text is None or len(columns.text) != 2:
        return made
    return replace(made, labels=Labels(first_lengths={r.document.text: r.first_length for r in reversed(rows)}))


def _spell_booleans(train: Sequence[ReadRow], validation: Sequence[ReadRow]) -> list[ReadRow]:
    """The rows of validation with topics and groups that are true or false spelt as those of train, which may be True.

    A side that spells one of them in two ways has names that somebody has typed, and they stay.
    """
    rows = list(validation)
    for field in ("topic", "group"):
        for word in ("true", "false"):
            ours, theirs = (
                {name for row in side if (name := getattr(row.document, field)).lower() == word}
                for side in (train, rows)
            )
            if len(ours) == len(theirs) == 1 and ours != theirs:
                ((old,), (new,)) = theirs, ours
                rows = [
                    row._replace(document=row.document._replace(**{field: new}))
                    if getattr(row.document, field) == old
                    else row
                    for row in rows
                ]
    return rows


def _tell_apart(rows: Sequence[ReadRow]) -> list[ReadRow]:
    """Let conversations that say the same in other turns be documents of other texts: the lengths of the turns end them."""
    turns = [_measure_turns(row.conversation) if row.conversation else "" for row in rows]
    found: dict[int, set[str]] = {}
    hashes = [documents.hash_text(row.document.text) for row in rows]
    for h, own in zip(hashes, turns, strict=True):
        found.setdefault(h, set()).add(own)
    return [
        row._replace(document=row.document._replace(text=f"{row.document.text}\n({own})")) if len(found[h]) > 1 else row
        for row, h, own in zip(rows, hashes, turns, strict=True)
    ]


def _measure_turns(conversation: Conversation) -> str:
    """Say of every turn its role and the characters of its text and of its input, but for blanks.

    >>> _measure_turns(Conversation((Turn("user", "Add: ", "1 + 2"), Turn("assistant", "3")), "line 1"))
    'user 4 + 3, assistant 1'
    """
    turns, n = conversation.turns, conversation.prompt if conversation.rejected else len(conversation.turns)
    sides = ("", turns[:n]), ("chosen ", turns[n:]), ("rejected ", conversation.rejected)
    return ", ".join(f"{side}{_measure_turn(turn)}" for side, own in sides for turn in own)


def _measure_turn(turn: Turn) -> str:
    text, more = (len(documents.fold_text(part).replace(" ", "")) for part in (turn.text, turn.input))
    return f"{turn.role} {text}" + (f" + {more}" if more else "")


def _collect_conversations(rows: Iterable[ReadRow]) -> dict[str, Conversation]:
    """Collect conversations by the text of their documents; of those that are the same the first."""
    found: dict[str, Conversation] = {}
    for row in rows:
        if row.conversation:
            found.setdefault(row.document.text, row.conversation)
    return found
