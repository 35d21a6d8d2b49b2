"""Arguments of the public functions: whole numbers, paths and lists of names, as callers have them."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedfault.errors import UserError
from fedfault.storage import expand_home


def read_whole(given: Any) -> int | None:
    """Read a whole number of any kind, such as numpy's, as Python's; None for anything else, as 1.0 and True are."""
    return None if isinstance(given, bool) or not hasattr(given, "__index__") else operator.index(given)


def take_whole(given: Any, name: str) -> int:
    """Take a whole number of any kind, such as numpy's, as Python's. Raises `UserError` for other values.

    >>> import numpy
    >>> take_whole(numpy.int64(3), "round")
    3
    """
    if (found := read_whole(given)) is None:
        raise UserError(f"{name}={given!r:.60} is no whole number; give one, like {name}=3")
    return found


def take_path(given: Any, what: str) -> Path:
    """Take text or a path as a path, with the home folder in the place of `~`. Raises `UserError` for other values."""
    if not isinstance(given, str | os.PathLike):
        like = "like 'results/quickstart'" if what == "run folder" else "as text or a pathlib.Path"
        raise UserError(f"{given!r:.60} is no {what}; give the path of one, {like}")
    return expand_home(given)


def name_again(named: Path, whole: Path) -> Path:
    """Return a folder as it was named, or its whole path where the working folder has changed since."""
    return named if named.absolute() == whole else whole


def take_list(given: Any) -> list[Any]:
    """Take several things as a list; a single name, path or run is one thing, and no letters.

    >>> take_list("rule.py"), take_list(("a", "b"))
    (['rule.py'], ['a', 'b'])
    """
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
