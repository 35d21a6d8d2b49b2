"""Settings from Python: keyword arguments and mappings become the `key=value` words that the command line takes."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from fedfault.arguments import take_list, take_path
from fedfault.config.changes import flatten_settings
from fedfault.config.explain import list_mappings
from fedfault.config.files import COMMAND_LINE, dump, nest_settings, parse_setting, spell_key, write_setting
from fedfault.config.layers import parse_command_line, read_layers
from fedfault.config.loading import Loaded, load, resolve
from fedfault.config.shipped import find_configuration
from fedfault.errors import UserError
from fedfault.storage import write_atomically
from fedfault.studies.file import OWN

NAMESAKES = ("run", "resume", "fork", "compare", "study", "check", "calibrate", "diagnose", "evaluate", "list", "runs")
CALLS = {**{name: name for name in NAMESAKES}, "report": "open"}  # command -> function
SWITCHES = ("overwrite", "honest", "clients")  # options of commands that are true where they are given
OPTIONS = "round|out|jobs|results-dir|sort|controls|tasks|adapters|csv|pattern|server|frozen"  # and those with a value

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
    with speak_python():
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
def speak_python() -> Iterator[None]:
    """Within the block, or in a function that this decorates, errors name what Python has in the place of a command line.

    That is the settings of the caller, functions for commands, and their arguments for options.
    """
    try:
        yield
    except UserError as e:
        told = re.sub(rf"^{COMMAND_LINE}:", "settings:", str(e), flags=re.MULTILINE)
        told = re.sub("`(fedfault [^`]+)`", lambda found: f"`{spell_call(found[1])}`", told)
        told = re.sub(rf"--({'|'.join(SWITCHES)})\b", r"\1=True", told.replace(f"({COMMAND_LINE})", "(settings)"))
        told = re.sub(rf"--({OPTIONS}) (\S+:)", _spell_option, told)
        raise UserError(re.sub(rf"--({OPTIONS})\b", _spell_option, told)) from None


def spell_call(command: str) -> str:
    """Spell a command, as messages name it, as the call that does the same; one without a function stays as it is.

    >>> spell_call("fedfault fork results/a --round 2 training.lr=0.5"), spell_call("fedfault report results/a")
    ("ff.fork('results/a', round=2, training__lr=0.5)", "ff.open('results/a')")
    """
    try:
        _, command_name, *words = shlex.split(command)
        name, rest = CALLS[command_name], iter(words)
        things, options = [], []
        for word in rest:
            if word.startswith("--"):
                option = word[2:].replace("-", "_")
                options.append(f"{option}={True if word[2:] in SWITCHES else next(rest, '...')}")
            elif "=" in word:
                options.append(_spell_keyword(word))
            else:
                things.append(repr(word))
    except (ValueError, KeyError, UserError):  # a quote in a name, a command without a function, a setting that is none
        return command
    things = [f"[{', '.join(things)}]"] if name == "compare" and things else things
    return f"ff.{name}({', '.join([*things, *options])})" if words else f"ff.{name}"


def _spell_keyword(word: str) -> str:
    """A setting as a keyword argument; a value that a message leaves open stays `...`."""
    key, _, value = word.partition("=")
    name = key.replace(".", "__")
    if value == "...":
        return f"{name}=..."
    found: Any = nest_settings({path: entry.value for path, entry in parse_setting(word).items()})
    for part in key.split("."):
        found = found[part]
    return f"{name}={found!r}"


def _spell_option(found: re.Match[str]) -> str:
    name, *value = found.groups()
    return f"{name.replace('-', '_')}={value[0] if value else ''}"


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
