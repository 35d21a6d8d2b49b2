"""Read files and overrides into a checked experiment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedfault import registry
from fedfault.config import explain
from fedfault.config.files import (
    COMMAND_LINE,
    Entry,
    Key,
    Layer,
    dump,
    nest_settings,
    parse_layer,
    shorten_path,
    spell_key,
)
from fedfault.config.layers import PLUGINS, find_all_beside, merge_layers, parse_command_line, read_layers
from fedfault.config.schema import Experiment
from fedfault.config.sections.data import SPOKEN, Data
from fedfault.config.shipped import find_configuration
from fedfault.config.shorthand import CHOOSERS, translate_layer
from fedfault.errors import UserError
from fedfault.options import check_options, list_options

BESIDE = set(Data.model_fields)  # options of a corpus that are settings of `data`: path, text_columns and so on


_CORPUS: Key = ("data", "dataset", "name")
TURNS = 512  # tokens of a conversation: those of FlowerTune and OpenFedLLM
DEFAULT = "default"  # the place of what nobody said
PACKAGED = Data().dataset.name  # the corpus that the shipped configurations without data of their own have
OWN_DATA = (
    "no configuration is named and the data are not the packaged ones: what is not said has its default "
    "(docs/configuration.md: all clients in every round, data.partition=iid, training.lr=5e-4), not what the quickstart "
    "says; `fedfault run quickstart ...` starts from there"
)


@dataclass(frozen=True)
class Loaded:
    """A checked experiment, what was translated or dropped on the way, and all settings as plain values.

    `files.dump(resolved)` is a file that loads as an equal experiment.
    """

    experiment: Experiment
    notes: tuple[str, ...]
    resolved: dict[str, Any]


def load(path: Path | str | None = None, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Loaded:
    """Load the experiment of a file with `key=value` overrides on top; `None` is what `choose_start` chooses.

    plugins: further ones, beside those that the settings name. Their components are known from then on, see
    `registry.activate`.
    Raises `UserError` with a line for everything that is wrong: the place, what came, what is allowed.

    >>> load("quickstart", ["federation.num_rounds=2"]).experiment.federation.num_rounds
    2
    """
    given = parse_command_line(overrides)
    path = choose_start(given) if path is None else path
    if path is not None:
        return resolve([*read_layers(find_configuration(path)), given], plugins)
    loaded = resolve([given], plugins)
    return replace(loaded, notes=(OWN_DATA, *loaded.notes))


def load_resolved(settings: Mapping[str, Any], file: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load the experiment of settings that `load` resolved, perhaps in an older version, as if a file held them."""
    place = shorten_path(file)  # in which they do not stand on the lines of the text that is read here
    layer = {key: replace(entry, where=place) for key, entry in parse_layer(dump(dict(settings)), place).items()}
    return resolve([find_all_beside(layer, file.parent), parse_command_line(overrides)])


def choose_start(given: Layer, usual: str = "quickstart") -> str | None:
    """Choose the shipped configuration to start from where none is named: the `usual` one, None for the defaults alone.

    What ships fits the packaged corpus: its learning rate, its skew and its few clients a round say nothing of other data.
    """
    clean, _ = translate_layer(given)
    path, name = (clean.get(key) for key in (("data", "path"), ("data", "dataset", "name")))
    own = (path is not None and path.value is not None) or (name is not None and name.value != PACKAGED)
    return None if own else usual


def resolve(layers: Iterable[Layer], plugins: Sequence[str] = ()) -> Loaded:
    """Check the experiment of settings in layers, of which the later one wins. Raises `UserError` as `load` does."""
    merged, notes = _merge_all(layers)
    notes += [*_choose_corpus(merged), *_choose_length(merged)]
    _load_plugins(merged, plugins)
    wrong: list[str] = []
    for section in CHOOSERS:
        try:
            notes += _complete_component(section, merged)
        except UserError as e:
            wrong.append(f"{explain.find_place(section, merged, str(e))}: {spell_key(section)}: {e}")
    try:
        experiment = Experiment.model_validate(nest_settings({key: entry.value for key, entry in merged.items()}))
    except ValidationError as e:
        raise UserError("\n".join([*explain.explain_refusals(e, merged), *wrong])) from None
    if wrong:
        raise UserError("\n".join(wrong))
    return Loaded(experiment, tuple(notes), experiment.model_dump())


def read_experiment(text: str) -> Experiment:
    """Read the experiment that another process sends as JSON; the components of its plug-ins are known from then on.

    Raises `UserError` for a plug-in that is not here, or is another one here.
    """
    registry.activate(json.loads(text)["plugins"])
    return Experiment.model_validate_json(text)


def _load_plugins(merged: Layer, more: Sequence[str]) -> None:
    """Import the plug-ins of the settings, and `more` of them, and write their hashes down. Changes `merged`."""
    entry = merged.get(PLUGINS, Entry([], COMMAND_LINE))
    named = entry.value
    if not isinstance(named, list) or not all(isinstance(one, str) and one for one in named):
        return  # the schema says so
    try:
        registry.activate([*named, *more])
    except UserError as e:
        raise UserError(f"{entry.where if named else COMMAND_LINE}: plugins: {e}") from e
    merged[PLUGINS] = replace(entry, value=[p.pinned for p in registry.list_plugins() if not p.package])


def _merge_all(layers: Iterable[Layer]) -> tuple[Layer, list[str]]:
    """Merge all layers into one, with the schema's own choice of components at the bottom."""
    merged, notes = _choose_defaults(), []
    for layer in layers:
        clean, translated = translate_layer(layer)
        merged, dropped = merge_layers(merged, clean)
        notes += [*translated, *dropped]
    return merged, notes


def _choose_defaults() -> Layer:
    defaults = Experiment().model_dump()
    return {(*section, "name"): Entry(defaults[section[0]][section[1]]["name"], DEFAULT) for section in CHOOSERS}


def _choose_corpus(merged: Layer) -> list[str]:
    """Let data.path alone mean the corpus `text`, which reads files: changes `merged`, and returns a note on it."""
    name, path = merged.get(_CORPUS), merged.get(("data", "path"))
    if name is None or name.where != DEFAULT or path is None or path.value is None:
        return []  # without a name `data` is no section: the schema says so
    merged[_CORPUS] = replace(name, value="text", where=path.where)
    return [f"{path.where}: data.path without data.dataset: data.dataset is text"]


def _choose_length(merged: Layer) -> list[str]:
    """Let conversations have the room that published recipes give them: changes `merged`, and returns a note on it.

    The default for running text, which is cut into blocks, would cut the most of them before their first response. Blocks of
    general text, which are as long, are so many fewer.
    """
    task, length, general = merged.get(("data", "task_type")), ("model", "max_length"), ("evaluation", "general_blocks")
    if task is None or task.value not in SPOKEN:
        return []
    said = length in merged
    asked = merged.setdefault(length, replace(task, value=TURNS)).value
    if isinstance(asked, int) and asked > 0:
        usual = Experiment()
        tokens = usual.evaluation.general_blocks * usual.model.max_length
        merged.setdefault(general, replace(task, value=max(1, tokens // asked)))
    if said:
        return []
    return [f"{task.where}: data.task_type={task.value} without model.max_length: {TURNS} tokens of a conversation"]


def _complete_component(section: Key, merged: Layer) -> list[str]:
    """Check a component's options, drop loose ones that it does not take, and write its defaults down.

    Changes `merged`; returns notes on what was dropped. Raises `UserError` for an unknown name or option.
    """
    kind = CHOOSERS[section]
    chosen = merged.get((*section, "name"))
    if chosen is None or not isinstance(chosen.value, str):
        return []  # the schema says so
    builder = registry.find_builder(kind, chosen.value)
    notes = []
    mine = [key for key in merged if key[:2] == section and key[2:] != ("name",)]
    for key in [k for k in mine if merged[k].loose and k[2] not in list_options(builder)]:
        entry = merged.pop(key)
        mine.remove(key)
        notes.append(f"{entry.where}: {key[2]}: {entry.value!r} is not used: {kind} {chosen.value!r} takes no {key[2]}")
    given = nest_settings({key[2:]: merged[key].value for key in mine})
    if kind == "corpus" and (taken := [key for key in given if key in BESIDE]):
        raise UserError(f"{taken[0]} is set as data.{taken[0]}, beside the corpus")
    full = check_options(kind, chosen.value, builder, given)
    for option, value in full.items():
        if kind == "corpus" and option in BESIDE:
            continue
        origin = next((merged[key] for key in mine if key[2] == option), Entry(None, DEFAULT))
        if not isinstance(value, bool | int | float | str | list | dict | None):
            continue  # not something YAML can say; the builder's own default holds
        for key in [key for key in mine if key[2] == option]:
            del merged[key]
        merged[(*section, option)] = replace(origin, value=value)
    return notes
