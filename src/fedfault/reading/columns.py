"""Which columns of a table could name the topic or the group of its rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedfault.reading import files, sides
from fedfault.reading.cells import write_name

LONGEST = 80  # characters of a name; longer values are texts
ROWS = 2  # to a value, on average: a column with more values tells rows apart, as an id does


def find_naming_columns(path: Path, used: Collection[str | None]) -> dict[str, int]:
    """Find the columns whose values could name topics or groups, and count the values of each.

    These are values of numbers, booleans and short text, two at least, which rows share. `path` is a table or a folder, of
    which the first table is read; the columns in `used` are left out. Plain text has none. Raises `UserError` for a table
    that cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "x.csv")
    ...     _ = file.write_text("text,id,team\\nOne,1,a\\nTwo,2,b\\nThree,3,a\\nFour,4,b\\n")
    ...     find_naming_columns(file, ["text"])
    {'team': 2}
    """
    every = sides.list_files(path, deep=True) if path.is_dir() else [path]
    tables = [file for file in every if file.is_file() and files.is_table(file)]
    if not tables:
        return {}
    rows = files.read_rows(tables[0])
    found = {name: _count_names(rows, name) for name in files.list_columns(rows) if name not in used}
    return {name: count for name, count in found.items() if count}


def _count_names(rows: list[dict[str, Any]], name: str) -> int:
    """Count the different values of a column; 0 where they are no names."""
    values = [row.get(name) for row in rows]
    if not all(
        value is None or (isinstance(value, str | int | float) and len(str(value)) <= LONGEST) for value in values
    ):
        return 0
    different = len({write_name(value) for value in values} - {""})
    return different if 2 <= different <= len(rows) / ROWS else 0
