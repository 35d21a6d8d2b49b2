"""How a function tells whoever called it what is going on: by a line of text to the `say` that it is given."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """Say nothing: for callers that show no progress."""
