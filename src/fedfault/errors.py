"""`UserError`, the only exception meant for the user, which ends a command with status 2; and parts of its messages."""

import difflib
import errno
import os
import re
import shlex
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message says what came, what is allowed and what to do."""


class InUseError(UserError):
    """A folder that another process writes to: what was asked for can be done when that has ended."""


def read_first_line(e: BaseException) -> str:
    """Read the first line of an error's message; without one, the error's kind.

    >>> read_first_line(ValueError("no such file\\nand a trace")), read_first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return str(e).strip().partition("\n")[0] or type(e).__name__


def find_near(name: object, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Find the known name that is most like a name that was given; None if none is like it.

    likeness: the least share of characters that both have in the same order, of all in both; 0.6 is that of difflib.

    >>> find_near("force", ["trace", "iid"]), find_near("force", ["trace", "iid"], likeness=0.8)
    ('trace', None)
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)), None)


_WAYS_OUT = {  # of errors of the system: what came, and what to do
    errno.ENOSPC: "; free some space and give the command again: what is finished is kept",
    errno.EDQUOT: "; free some space and give the command again: what is finished is kept",
    errno.EROFS: "; choose a place that can be written",
    errno.EACCES: "; choose a place that you may read and write",
    errno.EPERM: "; choose a place that you may read and write",
    errno.EISDIR: "; it is a folder where a file should be: move it away",
    errno.ENOTDIR: "; there is a file where a folder should be: move it away",
    errno.EEXIST: "; there is a file where a folder should be: move it away",
    errno.ENOENT: "; was it moved or deleted?",
}


def explain_os_error(e: OSError) -> str:
    """Say in a sentence which path the system refused, why, and what to do.

    >>> explain_os_error(OSError(errno.ENOSPC, "No space left on device", "run/rounds.jsonl"))
    'run/rounds.jsonl: no space left on device; free some space and give the command again: what is finished is kept'
    """
    path = e.filename if e.filename2 is None else e.filename2
    cause = e.strerror or read_first_line(e)
    return f"{os.fsdecode(path)}: {cause[:1].lower()}{cause[1:]}{_WAYS_OUT.get(e.errno or 0, '')}"


def is_out_of_memory(e: BaseException) -> bool:
    """Tell by its words whether an error of Python, the system, torch or a GPU says that there is no memory left."""
    return isinstance(e, MemoryError) or re.search("out of memory|allocate memory|ALLOC_FAILED", str(e)) is not None


def let_go(e: BaseException) -> None:
    """Let go of what the functions held that an error ended, and its causes: tensors, which else live as long as it does."""
    one: BaseException | None = e
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__


def suggest(name: object, known: Iterable[str]) -> str:
    """Suggest the nearest known name, as the end of an error message; an empty string if none is near.

    >>> suggest("topic_skw", ["iid", "topic_skew"])
    "; did you mean 'topic_skew'?"
    """
    near = find_near(name, known)
    return f"; did you mean {near!r}?" if near else ""


def hint_at_data(name: str) -> str:
    """Say how data are read, where a file or an address was named in the place of something else; else an empty string.

    >>> hint_at_data("mine.csv")
    '; a file of data is read by data.dataset=text data.path=mine.csv'
    """
    tables = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")
    if name.startswith("hf://"):
        return f"; a data set of the Hub is read by data.dataset=text data.path={name}"
    return f"; a file of data is read by data.dataset=text data.path={name}" if name.lower().endswith(tables) else ""


def quote(path: object) -> str:
    """Write a path as a shell and a command take it, which is no option, for the commands that messages and pages name.

    >>> quote("results/a"), quote("results/a b"), quote("-a")
    ('results/a', "'results/a b'", './-a')
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def join_names(names: Iterable[object], most: int = 6) -> str:
    """Join names by commas, and count those beyond the first `most`.

    >>> join_names("abc"), join_names([7, 3, 5], most=2)
    ('a, b, c', '7, 3 and 1 more')
    """
    given = [str(name) for name in names]
    return ", ".join(given[:most]) + (f" and {len(given) - most:,} more" if len(given) > most else "")
