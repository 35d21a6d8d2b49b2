"""Reading the user's files: every failure is a `UserError` that names the file and what to do."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedfault.errors import UserError, suggest

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "test")  # the first that is there is used

# matches train.csv, wiki.test.raw, train-00000-of-...
_PART = re.compile(r"(?:wiki\.)?(train|validation|valid|val|dev|test)\b")
_LONGEST_FIELD = 2**31 - 1  # the csv module refuses fields of more than 131,072 characters by default

Row = dict[str, Any]


def find_path(path: str | Path) -> Path:
    """The path with `~` expanded. Raises `UserError` if nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        parent = found.parent
        near = suggest(found.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else f" (nor is {parent})"
        raise UserError(f"data.path={path}: no such file or folder{near}")
    return found


def find_folder(path: str | Path, dataset: str) -> Path:
    """The folder that the corpus `dataset` reads. Raises `UserError` if there is none or if it is a file."""
    found = find_path(path)
    if not found.is_dir():
        raise UserError(f"data.path={path}: {dataset} reads a folder; for a file use data.dataset=text")
    return found


def read_text(path: Path) -> str:
    """Read a UTF-8 file whole; lines end in \\n. Raises `UserError` if it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
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


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a .csv (with a header), .tsv (with a header, without quoting), .jsonl or .parquet file."""
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: a table must end in one of {', '.join(readers)}")
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> list[Row]:
    text = read_text(path)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[Row] = []
        for row in reader:
            if None in row:
                raise UserError(f"{path}: line {reader.line_num} has more fields than the header; is a quote missing?")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(before)
    return rows


def _read_tsv(path: Path) -> list[Row]:
    header, *lines = read_text(path).removesuffix("\n").split("\n")  # a quote is a letter like any other
    names = header.split("\t")
    rows = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise UserError(f"{path}: line {number} has {len(fields)} fields, but the header has {len(names)}")
        rows.append(dict(zip(names, fields, strict=True)))
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # U+2028 inside a string ends no line
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object, as in {{'text': '...'}}")
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    return rows


def list_columns(rows: Iterable[Row]) -> list[str]:
    """List the names of all columns, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def check_columns(path: Path, rows: Sequence[Row], wanted: Iterable[str], option: str) -> None:
    """Raise `UserError`, with the known columns and a suggestion, if a wanted column is missing."""
    known = list_columns(rows)
    for name in wanted:
        if name not in known:
            raise UserError(
                f"{path}: no column {name!r}{suggest(name, known)}; set {option} (known: {', '.join(known)})"
            )


def choose_columns(dataset: str, where: str | Path, rows: Sequence[Row], *layouts: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the first layout whose columns the rows have. Raises `UserError` with the columns found if there is none."""
    known = list_columns(rows[:1])
    for layout in layouts:
        if set(layout) <= set(known):
            return layout
    raise UserError(
        f"{where}: {dataset} needs the columns {' or '.join(dict.fromkeys(', '.join(layout) for layout in layouts))} "
        f"(found: {', '.join(known) or 'no rows'}); for other data use data.dataset=text"
    )


def label_name(dataset: str, where: str | Path, label: Any, names: Sequence[str], first: int = 0) -> str:
    """The name of a label that the data gives as a number from `first` on. Raises `UserError` if there is no such label."""
    number = int(label) - first if str(label).isdecimal() else -1
    if not 0 <= number < len(names):
        last = first + len(names) - 1
        raise UserError(f"{where}: label {label!r}; {dataset} has {first} to {last} for {', '.join(names)}")
    return names[number]


def group_by_part(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by the part of the data set that their names begin with: train, validation, valid, val, dev, test.

    Files with other names are left out.

    >>> found = group_by_part([Path("train.csv"), Path("wiki.test.raw"), Path("train_extra.csv")])
    >>> {part: [file.name for file in files] for part, files in found.items()}
    {'train': ['train.csv'], 'test': ['wiki.test.raw']}
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        if match := _PART.match(file.name):
            found.setdefault(match[1], []).append(file)
    return found


def choose_sides(
    found: dict[str, list[Path]], names: Sequence[str] = VALIDATION_NAMES
) -> tuple[list[Path], list[Path]]:
    """Choose the files to train on and to validate on; the latter are those of the first of `names` that is there."""
    return found.get("train", []), next((found[name] for name in names if name in found), [])


def find_sides(
    folder: Path, dataset: str, inside: Sequence[str] = ("data",), names: Sequence[str] = VALIDATION_NAMES
) -> tuple[list[Path], list[Path]]:
    """Find the tables to train on and to validate on in a folder, or in its sub-folders `inside`.

    Raises `UserError` if there is none to train on.
    """
    found = group_by_part(list_tables(folder, inside))
    if "train" not in found:
        raise UserError(
            f"data.path={folder}: no train file; {dataset} reads train ({', '.join(TABLES)}) and, if it is there, "
            f"{' or '.join(names)} from a folder"
        )
    return choose_sides(found, names)


def list_tables(folder: Path, inside: Sequence[str] = ("data",)) -> list[Path]:
    """List the tables in a folder and in its sub-folders `inside`; repositories of the Hub have theirs in data/."""
    folders = [folder, *(below for name in inside if (below := folder / name).is_dir())]
    return [file for each in folders for file in list_files(each, TABLES)]


def list_files(folder: Path, endings: Sequence[str], deep: bool = False) -> list[Path]:
    """List the files of a folder with these endings, sorted by path; hidden ones are left out."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        p
        for p in found
        if p.suffix.lower() in endings
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
