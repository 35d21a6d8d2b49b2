"""Text, tables and lines of values for a terminal, where long lines break between words; elsewhere they stay whole."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from math import isfinite

from fedfault.report.words import Table

BLOCKS = "▁▂▃▄▅▆▇█"  # of a line of values, the lowest first
LEAST = 10  # characters of a part of a row's name
LABEL = re.compile(r"\s*(?:[\w.,/-]+ {2,})?")  # of a line: its indentation, and a first word that stands in a column


def find_width(*, err: bool = False) -> int | None:
    """Find how many characters a line of the terminal has; None where standard output, or error, is none."""
    return shutil.get_terminal_size().columns if (sys.stderr if err else sys.stdout).isatty() else None


def echo(text: str, *, err: bool = False) -> None:
    """Print text to standard output or error, with its lines wrapped where that is a terminal."""
    width = find_width(err=err)
    lines = [part for line in text.splitlines() for part in ([line] if width is None else wrap_line(line, width))]
    print("\n".join(lines), file=sys.stderr if err else sys.stdout, flush=True)


def wrap_line(line: str, width: int) -> list[str]:
    """Break a line between words; it goes on below the place where its text began.

    >>> wrap_line("  ranks  Effective and stable rank", 26)
    ['  ranks  Effective and', '         stable rank']
    """
    label = LABEL.match(line)
    indent = label.end() if label and label.end() <= width / 2 else len(line) - len(line.lstrip())
    return _wrap(line, width, " " * indent)


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def format_table(table: Table, width: int | None = None) -> list[str]:
    """Write a table as lines: text to the left, numbers to the right. Lines of a cell stay apart.

    width: characters that a line may have, so that long cells and heads take several lines; None: as many as they need.

    >>> table = Table(("client", "lowered the loss"), [("news 0", "0.1"), ("code 1", "−0.25")])
    >>> format_table(table, 20)
    ['         lowered the', 'client          loss', 'news 0           0.1', 'code 1         −0.25']

    Where not even the longest words fit side by side the names of rows are broken, as keys of settings behind a dot; where
    that is not enough, every row becomes lines of its own.

    >>> for line in format_table(Table(("client", "bytes_per_round"), [("news 0", "0.1 MB"), ("code 1", "2 MB")]), 22):
    ...     print(line)
    client  news 0
      bytes_per_round  0.1
        MB
    client  code 1
      bytes_per_round  2
        MB
    """
    columns = [*zip(table.columns, *table.rows, strict=True)]
    widths = _choose_widths(columns, width)
    if width is not None and _measure(widths) > width:
        room = width - _measure([0, *widths[1:]])
        if room < LEAST or all(len(word) <= room for row in table.rows for word in row[0].split()):
            return _format_rows(table, width)
        return format_table(table._replace(rows=[(break_name(row[0], room), *row[1:]) for row in table.rows]), width)
    lines = []
    for number, row in enumerate((table.columns, *table.rows)):
        cells = [
            [part for text in cell.splitlines() for part in _wrap(text, w)] or [""]
            for cell, w in zip(row, widths, strict=True)
        ]
        high = max(map(len, cells))
        filled = [[""] * (high - len(c)) + c if number == 0 else c + [""] * (high - len(c)) for c in cells]
        for parts in zip(*filled, strict=True):
            placed = [f"{part:{'<' if i == 0 or i in table.text else '>'}{widths[i]}}" for i, part in enumerate(parts)]
            lines.append("  ".join(placed).rstrip())
    return lines


def break_name(name: str, width: int) -> str:
    """Put a name on lines of so many characters, that end behind a mark or a space where there is one.

    >>> break_name("topic_isolation_scaffold-seed1", 18).splitlines()
    ['topic_isolation_', 'scaffold-seed1']
    """
    return "\n".join(part.strip() for part in re.findall(rf".{{1,{width - 1}}}(?:[-_. ]|$)|.{{1,{width}}}", name))


def measure_cell(cell: str) -> int:
    """Return the characters of the longest line of a cell."""
    return max(map(len, cell.splitlines()), default=0)


def _measure(widths: Sequence[int]) -> int:
    """The characters of a line with columns of these widths and the gaps between them."""
    return sum(widths) + 2 * (len(widths) - 1)


def _format_rows(table: Table, width: int) -> list[str]:
    """Write every row as a line for its name and one for each other column, behind the name of the column."""
    lines = []
    for row in table.rows:
        named = [
            f"{'  ' if i else ''}{column}  {cell}"
            for i, (column, cell) in enumerate(zip(table.columns, row, strict=True))
        ]
        lines += [part for line in named for part in _wrap(line, width, "    ")]
    return lines


def _choose_widths(columns: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Choose how wide each column is: as its longest cell, or less where room is short, but not than its longest word."""
    widths = [max(measure_cell(cell) for cell in column) for column in columns]
    least = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    while width is not None and _measure(widths) > width and widths != least:
        spare = [w - word for w, word in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def draw_sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as a line of blocks, the highest full; × is a number that is not finite. Of more, the last are drawn.

    >>> draw_sparkline([5.0, 4.0, 3.0, 1.5])
    '█▆▄▁'
    """
    shown = list(values)[-width:]
    finite = [v for v in shown if isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    step = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((v - low) * step)] if isfinite(v) else "×" for v in shown)
