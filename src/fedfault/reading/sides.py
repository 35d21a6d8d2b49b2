"""Which files of a folder are trained on and which validate: a file that is called test is never trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedfault.errors import UserError, explain_os_error, join_names
from fedfault.reading.files import TABLES

VALIDATION_NAMES = ("validation", "valid", "val", "dev", "test")  # the first that is there is used

# matches train.csv, wiki.test.raw, train-00000-of-...
_PART = re.compile(r"(?:wiki\.)?(train|validation|valid|val|dev|test)\b")
_WORDS = {  # part -> the words that files and folders of it are called by, as the Hub's library has them
    "train": "train|training",
    "validation": "validation|validate|valid|val|dev|development|held ?out|hold ?out",
    "test": "test|testing|eval|evaluation",
}
_CALLED = {part: re.compile(rf"\b(?:{words})(?: ?(?:s|set|data|split|files?))?\b") for part, words in _WORDS.items()}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BREAK = re.compile(r"[\W\d_]+")  # what stands between words: everything but letters


class Sides(NamedTuple):
    """The files of a data set by what is done with them."""

    train: list[Path]
    validation: list[Path]  # empty where validation is split off train
    left_out: list[Path]

    @classmethod
    def of(cls, train: list[Path], validation: list[Path], seen: Iterable[Path]) -> Sides:
        """These two sides; what else was seen is left out."""
        used = {*train, *validation}
        return cls(train, validation, [file for file in seen if file not in used])


def name_parts(name: str) -> set[str]:
    """Name the parts of a data set (train, validation, test) that the name of a file or folder says, in any spelling.

    >>> [sorted(name_parts(n)) for n in ("reviews_TEST-1.csv", "DevSet", "train.jsonl", "latest.csv", "train_test.csv")]
    [['test'], ['validation'], ['train'], [], ['test', 'train']]
    """
    words = _BREAK.sub(" ", _CAMEL.sub(" ", name)).lower()
    return {part for part, called in _CALLED.items() if called.search(words)}


def sort_files(folder: Path, found: Sequence[Path]) -> Sides:
    """Sort a user's files into sides by their names and those of the folders that they lie in, below `folder`.

    Files called train are trained on, or else all that are not called validation or test; of the two that are, those
    called validation validate, or else those called test. Raises `UserError` where a name says train and test, or if
    nothing is left to train on.
    """
    parts: dict[str, list[Path]] = {"": [], "train": [], "validation": [], "test": []}
    for file in found:
        said = set().union(*(name_parts(piece) for piece in file.relative_to(folder).with_suffix("").parts))
        if "train" in said and len(said) > 1:
            raise UserError(
                f"data.path={folder}: {file.relative_to(folder)} is called {' and '.join(sorted(said))}; rename it, so "
                "that nothing is trained on that is meant for testing"
            )
        parts["validation" if "validation" in said else next(iter(said), "")].append(file)
    train = parts["train"] or parts[""]
    if not train:
        raise UserError(
            f"data.path={folder}: nothing to train on, as all files are called validation or test "
            f"({list_names(found, folder)}); add one called train, or give the file itself as data.path"
        )
    return Sides.of(train, parts["validation"] or parts["test"], found)


def list_names(found: Sequence[Path], folder: Path) -> str:
    """List the names of files below `folder`; of many only the first."""
    return join_names(file.relative_to(folder).as_posix() for file in found)


def name_sides(sides: Sides) -> list[str]:
    """List the names of the files of each side, below the folder that they have in common."""
    folder = Path(os.path.commonpath([file.parent for own in sides for file in own]))
    return [list_names(own, folder) for own in sides]


def group_by_part(found: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by the part of the data set that their names begin with: train, validation, valid, val, dev, test.

    Files with other names are left out.

    >>> found = group_by_part([Path("train.csv"), Path("wiki.test.raw"), Path("train_extra.csv")])
    >>> {part: [file.name for file in files] for part, files in found.items()}
    {'train': ['train.csv'], 'test': ['wiki.test.raw']}
    """
    parts: dict[str, list[Path]] = {}
    for file in found:
        if match := _PART.match(file.name):
            parts.setdefault(match[1], []).append(file)
    return parts


def find_sides(
    folder: Path, dataset: str, inside: Sequence[str] = ("data",), names: Sequence[str] = VALIDATION_NAMES
) -> Sides:
    """Find the tables of a data set in a folder, or in its sub-folders `inside`; the first of `names` validates.

    Raises `UserError` if there is none to train on.
    """
    tables = list_tables(folder, inside)
    found = group_by_part(tables)
    if "train" not in found:
        raise UserError(
            f"data.path={folder}: no train file; {dataset} reads train ({', '.join(TABLES)}) and, if it is there, "
            f"{' or '.join(names)} from a folder"
        )
    validation = next((found[name] for name in names if name in found), [])
    return Sides.of(found["train"], validation, tables)


def list_tables(folder: Path, inside: Sequence[str] = ("data",)) -> list[Path]:
    """List the tables in a folder and in its sub-folders `inside`; repositories of the Hub have theirs in data/."""
    folders = [folder, *(below for name in inside if (below := folder / name).is_dir())]
    return [file for each in folders for file in list_files(each, TABLES)]


def list_files(folder: Path, endings: Sequence[str] | None = None, deep: bool = False) -> list[Path]:
    """List the files of a folder with these endings, or with any, sorted by path; hidden ones are left out.

    Raises `UserError` where something in it may not be read.
    """
    try:
        return sorted(
            p
            for p in (folder.rglob("*") if deep else folder.iterdir())
            if (endings is None or p.suffix.lower() in endings)
            and p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        )
    except OSError as e:
        raise UserError(f"data.path={folder}: {explain_os_error(e)}") from e
