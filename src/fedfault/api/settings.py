"""Settings from Python: keyword arguments and mappings become the `key=value` words that the command line takes."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from fedfault.arguments import take_list, take_path
from fedfault.config.changes import flatten_settings
from fedfault.config.explain import list_mappings
from fedfault.config.files import COMMAND_LINE, dump, nest_settings, spell_key, write_setting
from fedfault.config.layers import parse_command_line, read_layers
from fedfault.config.loading import Loaded, load, resolve
from fedfault.config.shipped import find_configuration
from fedfault.errors import UserError
from fedfault.storage import write_atomically
from fedfault.studies.file import OWN

Config = str | Path | Mapping[str, Any] | None  # a file or the name of one that ships, settings, or where to start from


def spell_words(settings: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> list[str]:
    """Spell settings as `key=value`: nested or dotted keys, and keyword arguments with `__` for the dots.

    >>> spell_words({"training": {"lr": 1e-3}}, {"data__partition": "iid", "seed": 1})
    ['training.lr=0.001', 'data.partition=iid', 'seed=1']
    """
    if not isinstance(settings, Mapping | None):
        raise UserError(
            f"settings={settings!r:.60} is no mapping; give one, like {{'training.lr': 1e-3}}, or keywords, like "
            "training__lr=1e-3"
        )
    flat = {**_flatten(settings or {}), **{key.replace("__", "."): value for key, value in keywords.items()}}
    return [write_setting(key, _make_plain(value, key)) for key, value in flat.items()]


def load_config(config: Config, words: Sequence[str], plugins: Sequence[str]) -> Loaded:
    """Load an experiment as `config.loading.load` does; a mapping is a configuration of its own, `_base_` included."""
    plugins = take_list(plugins)
    with name_place():
        if not isinstance(config, Mapping):
            return load(None if config is None else take_path(config, "configuration"), words, plugins)
        own = {key: value for key, value in config.items() if key != "_base_"}
        base = [layer for path in _list_bases(config) for layer in read_layers(find_configuration(path))]
        return resolve([*base, parse_command_line(spell_words(own, {})), parse_command_line(words)], plugins)


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_settings(settings, values=[*map(spell_key, list_mappings())])


def _list_bases(config: Mapping[str, Any]) -> list[str]:
    """The configurations that a mapping inherits from: one or several, as in a file."""
    found = config.get("_base_", [])
    return found if isinstance(found, list) else [found]


@contextlib.contextmanager
def write_study(file: Path | str | Mapping[str, Any]) -> Iterator[Path | str]:
    """Within the block, a study that is a mapping is a file; one that is a file already stays where it is."""
    if not isinstance(file, Mapping):
        yield take_path(file, "study")
        return
    own = {key: value for key, value in file.items() if key in OWN}
    if "_base_" in file:
        own["_base_"] = [str(find_configuration(path).resolve()) for path in _list_bases(file)]
    flat = _flatten({key: value for key, value in file.items() if key not in own})
    settings = nest_settings({tuple(key.split(".")): value for key, value in flat.items()})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "study.yaml"
        write_atomically(path, dump({key: _make_plain(value, key) for key, value in {**own, **settings}.items()}))
        try:
            yield path
        except UserError as e:
            raise UserError(re.sub(rf"{re.escape(str(path))}(:\d+)?", "the study", str(e))) from None


@contextlib.contextmanager
def name_place() -> Iterator[None]:
    """Within the block, errors name the settings of the caller in the place of the command line, which there is none."""
    try:
        yield
    except UserError as e:
        told = re.sub(rf"^{COMMAND_LINE}:", "settings:", str(e), flags=re.MULTILINE)
        raise UserError(told.replace(f"({COMMAND_LINE})", "(settings)")) from None


def _make_plain(value: Any, key: str) -> Any:
    """A value in types that YAML has: numbers of numpy, tuples, ranges, paths and members of an Enum become those of Python.

    Raises `UserError`, which names the setting `key`, for a type of which nothing says how it is written.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list | tuple | range):
        return [_make_plain(one, key) for one in value]
    if isinstance(value, Mapping):
        return {name: _make_plain(one, f"{key}.{name}") for name, one in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, type):
        return value.tolist()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, which YAML does not know
    if isinstance(value, date | None):
        return value
    raise UserError(
        f"settings: {key}={value!r:.60} is a {type(value).__name__}; give a number, text, true or false, None, a list or a "
        "mapping"
    )
