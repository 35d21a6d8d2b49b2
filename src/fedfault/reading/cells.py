"""From the values of a table to text: equal values become equal texts, and nothing becomes a text that is none.

None, NaN, "", "  "       nothing
1, 1.0                    "1": a number that is whole is that whole number
"1.0"                     "1" as a name (topic, group), where files of one data set often differ; else as it stands
True                      "True", as pandas writes it; names that are true or false in validation are spelt as in train
a list, an object, bytes  an error, and so is a column that mixes text, numbers and booleans
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from fedfault.errors import UserError

EXACT = 2**53  # up to here every whole float is one integer
MOST_DIGITS = 4000  # of text that is a whole number; Python converts 4,300 at most

_WHOLE = re.compile(rf"([+-]?\d{{1,{MOST_DIGITS}}})\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_cell(value: Any) -> str:
    """Write a value as text; an empty text where there is nothing.

    >>> [write_cell(v) for v in (1, 1.0, 0.5, " 1.0", float("nan"), None, True)]
    ['1', '1', '0.5', ' 1.0', '', '', 'True']
    """
    if value is None:
        return ""
    if isinstance(value, float | Decimal):
        number = float(value)
        if math.isnan(number):
            return ""
        if number.is_integer() and abs(number) <= EXACT:
            return str(int(value))
    return str(value)


def write_name(value: Any) -> str:
    """Write a value as a name, without white space at its ends; text that is a whole number is that number too.

    Letters with accents are one character each (Unicode's NFC): "e" and an accent after it is the same name as "é".

    >>> [write_name(v) for v in ("1.0", "1.", "1.5", "-0.0", "v1.0")]
    ['1', '1', '1.5', '0', 'v1.0']
    """
    text = unicodedata.normalize("NFC", write_cell(value).strip())
    return str(int(match[1])) if (match := _WHOLE.fullmatch(text)) else text


def is_quoted(cell: str) -> bool:
    """Whether a cell stands in the quotes that writers of CSV put around it, or begins with one that has no end.

    >>> [is_quoted(cell) for cell in ('"say ""a"" twice"', '"open', 'say "a"', '"all of it"')]
    [True, True, False, False]
    """
    rest = cell[1:].replace('""', "")
    return cell.startswith('"') and ('"' not in rest or (rest.find('"') == len(rest) - 1 and '""' in cell[1:-1]))


def read_column(where: str | Path, rows: Sequence[dict[str, Any]], name: str, *, names: bool = False) -> list[str]:
    """Write the cells of a column as text, an empty one where a row has nothing; `names` are topics or groups.

    Raises `UserError`, which names rows counted from 1, where a cell holds no text or the column holds several types.
    """
    values = [row.get(name) for row in rows]
    first: dict[str, int] = {}  # what kind of value -> the first row that has one
    for number, value in enumerate(values, start=1):
        if kind := _name_kind(value):
            first.setdefault(kind, number)
    for kind, number in first.items():
        if kind in ("dict", "list", "bytes"):
            raise UserError(
                f"{where}: column {name!r} holds {kind} values, not text, the first in row {number}"
                + _explain_shape(values[number - 1])
            )
    for number, value in enumerate(values, start=1):
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"{where}: column {name!r} holds an infinite number in row {number}; correct or remove it")
    if "numbers" in first and "text" in first:  # text that is a number is not another type than numbers
        texts = ((n, v.strip()) for n, v in enumerate(values, start=1) if isinstance(v, str))
        first["text"] = next((n for n, text in texts if text and not _NUMBER.fullmatch(text)), 0)
    if len(found := {kind: number for kind, number in first.items() if number}) > 1:
        (a, i), (b, j), *_ = found.items()
        raise UserError(
            f"{where}: column {name!r} holds {a} in row {i} and {b} in row {j}; a column has one type, so write all of "
            "them as text"
        )
    return [write_name(v) if names else write_cell(v).strip() for v in values]


def _name_kind(value: Any) -> str:
    """What kind of value it is; empty for nothing."""
    if not write_cell(value).strip():
        return ""
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, int | float | Decimal):
        return "numbers"
    return "text" if isinstance(value, str) else type(value).__name__


def _explain_shape(value: Any) -> str:
    """Say what to do about conversations, the shape that instruction data often has."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and {"role", "content"} <= set(value[0]):
        return ": these are conversations, which data.columns={messages: COLUMN} and data.task_type=instruction read"
    return ""
