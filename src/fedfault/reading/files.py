"""Reading the user's files: every failure is a `UserError` that names the file and what to do."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedfault.errors import UserError, suggest
from fedfault.reading import hub
from fedfault.reading.cells import MOST_DIGITS, write_name
from fedfault.storage import expand_home

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
TEXTS = (".txt", ".raw")
LOOKED_AT = 4096  # bytes of a .json file that tell a list from what else is kept in such files
_BOM = b"\xef\xbb\xbf"  # that some editors write before UTF-8
_LINE_END = re.compile("\r\n|\r|\n")
_LONGEST_FIELD = 2**31 - 1  # the csv module refuses fields of more than 131,072 characters by default

Row = dict[str, Any]


def find_path(path: str | Path) -> hub.DataPath:
    """Find a path, with `~` expanded, or the local copy of hf://datasets/ORG/NAME[@REVISION][/FOLDER or FILE].

    Raises `UserError` if nothing is there.
    """
    if str(path).startswith(hub.SCHEME):
        return hub.fetch_data(str(path), (*TABLES, ".json", *TEXTS))
    if not (found := expand_home(path, "data.path")).exists():
        parent = found.parent
        near = suggest(found.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else f" (nor is {parent})"
        raise UserError(f"data.path={path}: no such file or folder{near}")
    return hub.DataPath(found)


def find_folder(path: str | Path, dataset: str) -> hub.DataPath:
    """Find the folder that the corpus `dataset` reads. Raises `UserError` if there is none or if it is a file."""
    found = find_path(path)
    if not found.path.is_dir():
        raise UserError(f"data.path={path}: {dataset} reads a folder; for a file use data.dataset=text")
    return found


def read_text(path: Path) -> str:
    """Read a UTF-8 file whole; lines end in \\n. Raises `UserError` if it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    check_fetched(path, data)
    if b"\0" in data:
        raise UserError(f"{path}: has zero bytes, so it is a binary file or UTF-16; text must be UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8; "
            "convert the file first, e.g. iconv -f latin1 -t utf-8"
        ) from error
    return text.replace("\r\n", "\n")


def check_fetched(path: Path, start: bytes) -> None:
    """Raise `UserError` if a file, of which `start` is the beginning, is the pointer that Git LFS puts in its place."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path}: is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a table: the values of `list_numbered_rows`."""
    return [row for _, row in _read_numbered_rows(path)]


def list_numbered_rows(path: Path) -> list[tuple[str, Row]]:
    """List the rows of a table, each with its place in words: its last line in text files, else its number.

    Read are .csv (with a header), .tsv (with a header, without quoting), .jsonl, .parquet, and .json files that are a list
    of objects or have an object a line.
    """
    ending = path.suffix.lower()
    lines = ending in (".csv", ".tsv", ".jsonl") or (ending == ".json" and not _is_list_of_objects(path))
    return [(f"{path}: {'line' if lines else 'row'} {number}", row) for number, row in _read_numbered_rows(path)]


def _read_numbered_rows(path: Path) -> list[tuple[int, Row]]:
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: a table must end in one of {', '.join(readers)}{explain_ending(path)}")
    return readers[path.suffix.lower()](path)


def is_table(path: Path) -> bool:
    """Whether a file of a folder is a table: by its ending, and of .json files a list of objects or an object a line."""
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in TABLES
    return _is_list_of_objects(path) or _has_objects_in_lines(path)


def _is_list_of_objects(path: Path) -> bool:
    with path.open("rb") as file:
        start = b"".join(file.read(LOOKED_AT).removeprefix(_BOM).split())
    return start.startswith(b"[{")


def _has_objects_in_lines(path: Path) -> bool:
    """Whether the first two lines are an object each: one alone may be anything, such as settings."""
    with path.open("rb") as file:
        if not file.read(LOOKED_AT).removeprefix(_BOM).lstrip().startswith(b"{"):
            return False
        file.seek(0)
        lines = list(itertools.islice(filter(None, (line.removeprefix(_BOM).strip() for line in file)), 2))
    return len(lines) == 2 and all(line.startswith(b"{") and line.endswith(b"}") for line in lines)


PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar")
OTHER_ENDINGS = {  # of files that become ones that are read, and how
    **dict.fromkeys(PACKED, "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV in UTF-8"),
    ".arrow": "datasets.load_from_disk(FOLDER).to_parquet('data.parquet') writes one that is read",
}


def explain_ending(path: Path) -> str:
    """Say how a file with another ending becomes one that is read, as the end of an error message; empty if unknown."""
    ending = path.suffix.lower()
    if ending == ".arrow" and (whole := next((f for f in path.parents if (f / "dataset_dict.json").exists()), None)):
        return (
            '; write a file of each split: python -c "from datasets import load_from_disk; '
            f"[d.to_parquet(k + '.parquet') for k, d in load_from_disk({str(whole)!r}).items()]\""
        )
    if ending in OTHER_ENDINGS:
        return f"; {OTHER_ENDINGS[ending]}"
    if ending == ".ndjson":
        return f"; rename it to {path.stem}.jsonl"
    return ""


def _check_header(where: Path | str, names: Iterable[str]) -> None:
    """Raise `UserError` if a column is there twice, of which only one could be read; columns without a name may be.

    `where` is the place in words: a file, or a line of one.
    """
    for name, count in Counter(names).items():
        if name and count > 1:
            raise UserError(f"{where}: {count} columns are called {name!r}; rename or remove all but one")


def _refuse_second_header(path: Path, number: int, names: Sequence[str], values: Iterable[str]) -> None:
    """Raise `UserError` for a line that is the header again, as files have that were joined; a lone column may say so."""
    if len(names) > 1 and list(names) == list(values):
        raise UserError(f"{path}: line {number} is the header again; remove the line")


def _read_csv(path: Path) -> list[tuple[int, Row]]:
    text = read_text(path)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _check_header(path, reader.fieldnames or ())
        rows: list[tuple[int, Row]] = []
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}: line {reader.line_num} has more fields than the header"
                    + (explain_columns(reader.fieldnames or ()) or "; is a quote missing?")
                )
            if None in row.values():
                raise UserError(f"{path}: line {reader.line_num} has fewer fields than the header; is a comma missing?")
            _refuse_second_header(path, reader.line_num, reader.fieldnames or (), row.values())
            rows.append((reader.line_num - sum(len(_LINE_END.findall(cell)) for cell in row.values()), row))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(before)
    return rows


def _read_tsv(path: Path) -> list[tuple[int, Row]]:
    text = read_text(path)
    end = "\n" if "\n" in text else "\r"  # some programs still write the latter alone; beside the former it is a letter
    header, *lines = text.removesuffix(end).split(end)  # a quote is a letter like any other
    names = header.split("\t")
    _check_header(path, names)
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise UserError(f"{path}: line {number} has {len(fields)} fields, but the header has {len(names)}")
        _refuse_second_header(path, number, names, fields)
        rows.append((number, dict(zip(names, fields, strict=True))))
    return rows


def _read_jsonl(path: Path) -> list[tuple[int, Row]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # U+2028 inside a string ends no line
        if line.strip():
            place, hint = f"{path}: line {number}", _explain_line(number, line)
            rows.append((number, _check_object(place, _parse_json(place, line, hint), hint)))
    return rows


def _read_json(path: Path) -> list[tuple[int, Row]]:
    """Read a list of objects, whose rows are counted from 1, or an object a line."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        _refuse_nested_rows(path, text)
        return _read_jsonl(path)
    found = _parse_json(str(path), text)
    return [(n, _check_object(f"{path}: row {n}", row)) for n, row in enumerate(found, start=1)]


def _refuse_nested_rows(path: Path, text: str) -> None:
    """Raise `UserError` for a file that is one object with the rows in it, and say how they are got out."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return  # an object a line
    for key, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise UserError(
                f'{path}: is one JSON object with {len(value):,} rows in {key!r}; write a line each with: python -c "'
                f"import json; [print(json.dumps(r)) for r in json.load(open('{path.name}'))[{key!r}]]\" > {path.stem}.jsonl"
            )


def _parse_json(place: str, text: str, hint: str = "") -> Any:
    """Parse JSON in which no object has a name twice and no text has half a character."""

    def make_object(pairs: list[tuple[str, Any]]) -> Row:
        _check_header(place, (name for name, _ in pairs))
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=make_object)
    except (ValueError, RecursionError) as error:  # no JSON, or numbers and lists beyond what Python reads
        raise UserError(f"{place} is not JSON: {error}{hint}") from error
    if "\\u" in text and not _has_whole_characters(found):
        raise UserError(
            f"{place} has half a character, as a cut emoji leaves it (a surrogate, \\ud800 to \\udfff, without its other "
            "half); remove it or write \\ufffd in its place"
        )
    return found


def _check_object(place: str, row: Any, hint: str = "") -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{place} is not a JSON object, as in {{'text': '...'}}{hint}")
    return row


def _explain_line(number: int, line: str) -> str:
    """Say what a line that is no JSON object looks like, as the end of an error message; empty if like nothing known."""
    if number == 1 and line.startswith("["):
        return "; is it a JSON list? Such a file is called .json"
    if number == 1 and line.strip() == "{":
        return "; is it an object over several lines? A .jsonl file has each on one line"
    return "; lines of a .jsonl file have no comma between them" if line.rstrip().endswith("},") else ""


def _has_whole_characters(found: Any) -> bool:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> list[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with path.open("rb") as raw:
            check_fetched(path, raw.read(100))
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow.names)
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = _round_floats(column)
        except (ValueError, OverflowError, pa.ArrowException) as error:  # no UTF-8, or a date that Python has not
            raise UserError(f"{path}: column {name!r} ({column.type}) cannot be read: {error}") from error
    rows = zip(*columns.values(), strict=True)
    return [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, start=1)]


def _round_floats(column: Any) -> list[Any]:
    """The values of a column; numbers of single precision or less as the shortest ones that they are nearest to."""
    import numpy as np

    short = {"float": np.float32, "halffloat": np.float16}.get(str(column.type))
    values: list[Any] = column.to_pylist()
    return values if short is None else [None if v is None else float(str(short(v))) for v in values]


def list_columns(rows: Iterable[Row]) -> list[str]:
    """List the names of all columns, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def check_columns(path: Path | str, rows: Sequence[Row], wanted: Iterable[str], option: str) -> None:
    """Raise `UserError`, with the known columns and a suggestion, if a wanted column is missing."""
    known = list_columns(rows)
    for name in wanted:
        if name not in known:
            raise UserError(
                f"{path}: no column {name!r}{suggest(name, known)}; set {option} (known: {', '.join(known)})"
                + explain_columns(known)
            )


def explain_columns(known: Sequence[str]) -> str:
    """Say what rows with these columns are, as the end of an error message; empty if nothing is known about them."""
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(known) == 1 and separator in known[0]:
            return f"; the header has {called} where a .csv file has commas: save it with commas, or with tabs as .tsv"
    return ""


def choose_columns(dataset: str, where: str | Path, rows: Sequence[Row], *layouts: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the first layout whose columns the rows have. Raises `UserError` with the columns found if there is none."""
    known = list_columns(rows)
    for layout in layouts:
        if set(layout) <= set(known):
            return layout
    raise UserError(
        f"{where}: {dataset} needs the columns {' or '.join(dict.fromkeys(', '.join(layout) for layout in layouts))} "
        f"(found: {', '.join(known) or 'no rows'}); for other data use data.dataset=text"
    )


def label_name(dataset: str, where: str | Path, label: Any, names: Sequence[str], first: int = 0) -> str:
    """The name of a label that the data gives as a number from `first` on.

    Raises `UserError`, which begins with `where`, a file or a row of one, if there is no such label.
    """
    name = write_name(label)
    number = int(name) - first if name.isdecimal() and len(name) <= MOST_DIGITS else -1
    if not 0 <= number < len(names):
        last = first + len(names) - 1
        raise UserError(f"{where}: label {label!r:.60}; {dataset} has {first} to {last} for {', '.join(names)}")
    return names[number]
