"""The tables of short keys and of other words for the same. They are applied to every layer before layers are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedfault.config.files import COMMAND_LINE, Entry, Key, Layer, spell_key
from fedfault.errors import UserError

CHOOSERS: dict[Key, str] = {  # a section that chooses a component by its `name`: what kind of component
    ("federation", "algorithm"): "algorithm",
    ("federation", "aggregation"): "aggregation",
    ("data", "dataset"): "corpus",
    ("data", "partition"): "partition",
    ("federation", "scheduler"): "scheduler",
    ("federation", "selection"): "selection",
}

NAMED = {*CHOOSERS, ("federation", "asynchronous")}  # sections of which a word alone is the `name`

ALIASES = {  # how the rank-scheduling harness, and configurations of older runs, call the `name` of a component
    "data.partition.method": "data.partition.name",
    "federation.aggregation.method": "federation.aggregation.name",
    "federation.scheduler.type": "federation.scheduler.name",
}

RENAMED = {"federation.sampling": "federation.selection"}  # keys of older runs

KEYS = {  # the flat keys of the study of failure modes, beside the aliases
    **ALIASES,
    **RENAMED,
    "model.lora_r": "model.lora.r_max",
    "model.lora_alpha": "model.lora.alpha",
    "data.partition_strategy": "data.partition.name",
    "data.alpha": "data.partition.alpha",
    "data.num_clients": "federation.total_clients",
    "federated.algorithm": "federation.algorithm",
    "federated.num_rounds": "federation.num_rounds",
    "federated.participation_rate": "federation.participation_rate",
    "federated.local_epochs": "training.local_epochs",
    "federated.learning_rate": "training.lr",
    "federated.mu": "federation.algorithm.mu",
}

LOOSE = {"data.alpha", "federated.mu"}  # kept while the component takes such an option, else dropped with a note

VALUES = {
    ("federation.aggregation.name", "fedavg"): "fedit",  # the weighted mean of A and of B
    ("federation.aggregation.name", "fedavg_blockwise"): "blockwise",
    ("data.partition.name", "dirichlet"): "topic_skew",  # both draw topic shares from a Dirichlet distribution
    ("data.task_type", "sequence_classification"): "classification",
}


def translate_layer(layer: Layer) -> tuple[Layer, list[str]]:
    """Return the layer with every key in the schema's words, and notes on what was translated.

    Raises `UserError` if two of its keys mean the same setting with different values.
    """
    out: Layer = {}
    written: dict[Key, Key] = {}
    short: dict[str, None] = {}
    notes: list[str] = []
    for said, entry in layer.items():
        stem, key = _translate_key(said)
        if stem and stem not in {*ALIASES, *RENAMED}:
            short[f"{stem} is {KEYS[stem]}"] = None
        key, entry = _expand_name(key, replace(entry, loose=stem in LOOSE))  # noqa: PLW2901
        better = VALUES.get((spell_key(key), entry.value)) if isinstance(entry.value, str) else None
        if better:
            notes.append(f"{entry.where}: {spell_key(key)}: {entry.value!r} is {better!r}")
            entry = replace(entry, value=better)  # noqa: PLW2901
        _refuse_clash(said, key, entry, out, written)
        out[key], written[key] = entry, said
    if short:
        source = next(iter(layer.values())).where
        source = source if source == COMMAND_LINE else source.rpartition(":")[0]
        notes.insert(0, f"{source}: short keys: {', '.join(short)}")
    return out, notes


def name_components(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration, which may be of an older run, with the name of every component under `name`.

    >>> name_components({"seed": 0, "data": {"partition": {"method": "topic_skew", "alpha": 0.1}}})
    {'seed': 0, 'data': {'partition': {'name': 'topic_skew', 'alpha': 0.1}}}
    """
    found = dict(settings)
    for row in ALIASES:
        top, section, alias = row.split(".")
        above = found.get(top)
        chosen = above.get(section) if isinstance(above, Mapping) else None
        if isinstance(above, Mapping) and isinstance(chosen, Mapping):
            found[top] = {**above, section: {"name" if key == alias else key: value for key, value in chosen.items()}}
    for row, better in RENAMED.items():
        top, alias = row.split(".")
        above = found.get(top)
        if isinstance(above, Mapping) and isinstance(chosen := above.get(alias), str):
            rest = {key: value for key, value in above.items() if key != alias}
            found[top] = {better.split(".")[1]: {"name": chosen}, **rest}
    return found


def _translate_key(key: Key) -> tuple[str, Key]:
    """Return the row of the table that applies, or "", and the key in the schema's words."""
    for length in range(2, len(key) + 1):
        stem = spell_key(key[:length])
        if stem in KEYS:
            return stem, (*KEYS[stem].split("."), *key[length:])
    return "", key


def _expand_name(key: Key, entry: Entry) -> tuple[Key, Entry]:
    """Turn `algorithm: fedprox` into `algorithm: {name: fedprox}`."""
    if key in NAMED and isinstance(entry.value, str):
        return (*key, "name"), entry
    return key, entry


def _refuse_clash(said: Key, key: Key, entry: Entry, out: Layer, written: dict[Key, Key]) -> None:
    for other, known in out.items():
        shorter = min(len(key), len(other))
        if key[:shorter] != other[:shorter] or (key == other and _are_same(entry.value, known.value)):
            continue
        if key != other and {} in (entry.value, known.value):  # an empty section says nothing
            continue
        raise UserError(
            f"{entry.where}: {spell_key(said)} and {spell_key(written[other])} ({known.where}) contradict each other: "
            f"both set {spell_key(key[:shorter])}; keep one of them"
        )


def _are_same(a: object, b: object) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)
