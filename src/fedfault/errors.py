"""`UserError`, the only exception meant for the user: the command line prints it and exits with status 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message says what came, what is allowed and what to do."""


def read_first_line(e: BaseException) -> str:
    """Read the first line of an error's message; without one, the error's kind.

    >>> read_first_line(ValueError("no such file\\nand a trace")), read_first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return str(e).strip().partition("\n")[0] or type(e).__name__


def suggest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, as the end of an error message; an empty string if none is near.

    >>> suggest("topic_skw", ["iid", "topic_skew"])
    "; did you mean 'topic_skew'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
