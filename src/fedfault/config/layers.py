"""Layers: the files that a file inherits from, the file itself, the command line. What comes later wins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedfault.config.explain import list_mappings
from fedfault.config.files import (
    COMMAND_LINE,
    Entry,
    Key,
    Layer,
    is_file,
    parse_setting,
    read_layer,
    shorten_path,
    spell_key,
)
from fedfault.config.shipped import find_shipped_folder, list_configurations
from fedfault.config.shorthand import CHOOSERS
from fedfault.errors import UserError, suggest
from fedfault.plugins import choose_source

# A later layer that sets one of a pair takes the other one, set by an earlier layer, away.
EXCLUSIVE: tuple[tuple[Key, Key], ...] = (
    (("federation", "clients_per_round"), ("federation", "participation_rate")),
    (("training", "local_epochs"), ("training", "local_steps")),
)
# Relative to the file that says them, or else to the working folder; and words that are no path
PATHS: dict[Key, tuple[str, ...]] = {
    ("data", "path"): (),
    ("clock", "trace"): (),
    ("evaluation", "general"): ("base_samples", "wikitext", "none"),
    ("detectors", "calibration"): ("packaged", "none", "auto"),
    ("model", "chat_template"): ("auto", "alpaca", "chatml", "plain"),
}
PLUGINS = ("plugins",)
LONGEST_CHAIN = 20  # files that inherit from one another
BASE = ("_base_",)


def read_layers(path: Path) -> list[Layer]:
    """Read a file and all it inherits from, each file once, bases before the files that name them.

    Raises `UserError` for a base that is not there, for a cycle (naming the chain) and for what `read` refuses.
    """
    done: dict[str, Layer] = {}

    def visit(file: Path, chain: tuple[str, ...]) -> None:
        real = os.path.realpath(file)
        if real in done:
            return
        layer = read_layer(file)
        for where, base in _find_bases(layer):
            links = (*chain, real)
            found = _find_base(file, where, base)
            if os.path.realpath(found) in links:
                names = " -> ".join(shorten_path(Path(link)) for link in (*links, os.path.realpath(found)))
                raise UserError(f"{where}: _base_: the files inherit from one another in a circle: {names}")
            if len(links) > LONGEST_CHAIN:
                raise UserError(f"{where}: _base_: more than {LONGEST_CHAIN} files inherit from one another")
            visit(found, links)
        done[real] = find_all_beside({key: entry for key, entry in layer.items() if key != BASE}, file.parent)

    visit(path, ())
    return list(done.values())


def find_all_beside(layer: Layer, folder: Path) -> Layer:
    """Return the settings of a file in a folder with all their paths where these lie."""
    return {key: _find_beside(key, entry, folder) for key, entry in layer.items()}


def _find_beside(key: Key, entry: Entry, folder: Path) -> Entry:
    """Return the setting with its path where that lies: beside the file that says it, else as written."""
    written = entry.value
    if key == PLUGINS and isinstance(written, list):
        return replace(entry, value=[choose_source(one, folder) if isinstance(one, str) else one for one in written])
    if key not in PATHS or not isinstance(written, str) or written in ("", *PATHS[key]) or written.startswith("~"):
        return entry
    try:
        there = (folder / written).exists()
    except (OSError, ValueError):  # a name too long or with a null byte names nothing
        return entry
    return replace(entry, value=str(folder / written)) if there else entry


def _find_base(file: Path, where: str, base: str) -> Path:
    """Find a base beside the file that names it, or else among the shipped configurations: `quickstart.yaml`."""
    if is_file(beside := file.parent / base):
        return beside
    known = list_configurations()
    if (name := base.removesuffix(".yaml")) in known:
        return find_shipped_folder() / f"{name}.yaml"
    hint = suggest(name, known)
    raise UserError(
        f"{where}: _base_: there is no file {base!r} in {shorten_path(file.parent)}, and no shipped configuration of that "
        f"name{hint}"
    )


def _find_bases(layer: Layer) -> list[tuple[str, str]]:
    """Return of each base where it is named, and its path as written."""
    found = []
    for key, entry in layer.items():
        if key[:1] != BASE:
            continue
        names = entry.value if isinstance(entry.value, list) else [entry.value]
        if key != BASE or not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise UserError(f"{entry.where}: _base_ must be the path of a file, or a list of paths")
        found += [(entry.where, name) for name in names]
    return found


def parse_command_line(texts: Sequence[str]) -> Layer:
    """Read all `key=value` arguments as one layer; of the same key given twice the last one counts.

    Raises `UserError` for what `assign` refuses and for `_base_`, which only a file can set.
    """
    layer: Layer = {}
    for text in texts:
        given = parse_setting(text)
        layer = _drop_replaced(layer, given) | given
    if any(key[:1] == BASE for key in layer):
        raise UserError(f"{COMMAND_LINE}: _base_ can only be set in a file; give the other file instead")
    return layer


def merge_layers(below: Layer, above: Layer) -> tuple[Layer, list[str]]:
    """Merge two layers, of which `above` wins: sections merge, everything else replaces. Also notes on dropped options.

    A mapping that is no section replaces too where it is written out; a dotted key of its own changes one entry of it.

    Naming another component drops the options of the one named before, naming the same one keeps them; see also
    `EXCLUSIVE`.
    """
    out = _drop_replaced(below, above)
    notes = []
    for section in CHOOSERS:
        new, old = above.get((*section, "name")), below.get((*section, "name"))
        if new is None or (old is not None and old.value == new.value):
            continue
        for key in [key for key in out if key[:2] == section and key[2:] != ("name",) and not out[key].loose]:
            gone = out.pop(key)
            notes.append(
                f"{gone.where}: {spell_key(key)}: {gone.value!r} is dropped: {new.where} chooses {new.value!r:.60}"
            )
    for pair in EXCLUSIVE:
        for key, other in (pair, (pair[1], pair[0])):
            if key in above and above[key].value is not None and other not in above:
                out.pop(other, None)
    for key, entry in above.items():
        if entry.value == {} and any(other[: len(key)] == key for other in out):
            continue  # an empty section changes nothing
        for other in [o for o in out if o != key and _share_path(o, key)]:
            del out[other]
        out[key] = entry
    return out, notes


def _drop_replaced(below: Layer, above: Layer) -> Layer:
    """Return the settings of `below` without those in a mapping, such as data.columns, that `above` writes out."""
    said = {mapping for key, entry in above.items() for mapping in list_mappings() if _writes_out(key, entry, mapping)}
    return {key: entry for key, entry in below.items() if not any(key[: len(mapping)] == mapping for mapping in said)}


def _writes_out(key: Key, entry: Entry, mapping: Key) -> bool:
    return key == mapping or (entry.whole and key[: len(mapping)] == mapping)


def _share_path(a: Key, b: Key) -> bool:
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]
