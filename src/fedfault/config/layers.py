"""Layers: the files that a file inherits from, the file itself, the command line. What comes later wins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedfault.config.files import COMMAND_LINE, Key, Layer, assign, dotted, is_file, read, shown
from fedfault.config.shorthand import CHOOSERS
from fedfault.errors import UserError

EXCLUSIVE: tuple[
    tuple[Key, Key], ...
] = (  # a later layer that sets one of a pair takes the other one, set by an earlier layer, away
    (("federation", "clients_per_round"), ("federation", "participation_rate")),
    (("training", "local_epochs"), ("training", "local_steps")),
)
LONGEST_CHAIN = 20  # files that inherit from one another
BASE = ("_base_",)


def inherited(path: Path) -> list[Layer]:
    """The file and all it inherits from, each file once, bases before the files that name them.

    Raises `UserError` for a base that is not there, for a cycle (naming the chain) and for what `read` refuses.
    """
    done: dict[str, Layer] = {}

    def visit(file: Path, chain: tuple[str, ...]) -> None:
        real = os.path.realpath(file)
        if real in done:
            return
        layer = read(file)
        for where, base in _bases(layer):
            links = (*chain, real)
            found = file.parent / base
            if not is_file(found):
                raise UserError(f"{where}: _base_: there is no file {base!r} in {shown(file.parent)}")
            if os.path.realpath(found) in links:
                names = " -> ".join(shown(Path(link)) for link in (*links, os.path.realpath(found)))
                raise UserError(f"{where}: _base_: the files inherit from one another in a circle: {names}")
            if len(links) > LONGEST_CHAIN:
                raise UserError(f"{where}: _base_: more than {LONGEST_CHAIN} files inherit from one another")
            visit(found, links)
        done[real] = {key: entry for key, entry in layer.items() if key != BASE}

    visit(path, ())
    return list(done.values())


def _bases(layer: Layer) -> list[tuple[str, str]]:
    """Where each base is named, and its path as written."""
    found = []
    for key, entry in layer.items():
        if key[:1] != BASE:
            continue
        names = entry.value if isinstance(entry.value, list) else [entry.value]
        if key != BASE or not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise UserError(f"{entry.where}: _base_ must be the path of a file, or a list of paths")
        found += [(entry.where, name) for name in names]
    return found


def command_line(texts: Sequence[str]) -> Layer:
    """All `key=value` arguments as one layer; of the same key given twice the last one counts.

    Raises `UserError` for what `assign` refuses and for `_base_`, which only a file can set.
    """
    layer: Layer = {}
    for text in texts:
        layer |= assign(text)
    if any(key[:1] == BASE for key in layer):
        raise UserError(f"{COMMAND_LINE}: _base_ can only be set in a file; give the other file instead")
    return layer


def merge(below: Layer, above: Layer) -> tuple[Layer, list[str]]:
    """`above` wins over `below`: sections merge, everything else replaces. Also notes on options that went.

    Naming another component drops the options of the one named before; see also `EXCLUSIVE`.
    """
    out = dict(below)
    notes = []
    for section in CHOOSERS:
        new, old = above.get((*section, "name")), below.get((*section, "name"))
        if new is None or (old is not None and old.value == new.value and not new.whole):
            continue
        for key in [key for key in out if key[:2] == section and key[2:] != ("name",) and not out[key].loose]:
            gone = out.pop(key)
            notes.append(
                f"{gone.where}: {dotted(key)}: {gone.value!r} is dropped: {new.where} chooses {new.value!r:.60}"
            )
    for pair in EXCLUSIVE:
        for key, other in (pair, (pair[1], pair[0])):
            if key in above and above[key].value is not None and other not in above:
                out.pop(other, None)
    for key, entry in above.items():
        if entry.value == {} and any(other[: len(key)] == key for other in out):
            continue  # an empty section changes nothing
        for other in [o for o in out if o != key and _overlap(o, key)]:
            del out[other]
        out[key] = entry
    return out, notes


def _overlap(a: Key, b: Key) -> bool:
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]
