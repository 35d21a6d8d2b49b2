"""The sections of the schema, and sentences for what it refuses: where it stands, what came, what is allowed, what to do."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from fedfault.config.files import COMMAND_LINE, Key, Layer, spell_key
from fedfault.config.schema import Experiment
from fedfault.config.shorthand import CHOOSERS, KEYS
from fedfault.errors import find_near, hint_at_data

ELSEWHERE = {  # what PEFT, transformers, TRL and Flower call a setting, where it is nothing like its key or like another one
    "rank": "model.lora.r_max",
    "max_steps": "training.local_steps",
    "steps": "training.local_steps",
    "num_train_epochs": "training.local_epochs",
    "num_epochs": "training.local_epochs",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "lr_scheduler_type": "training.lr_schedule",
    "warmup_steps": "training.warmup_ratio",
    "optim": "training.optimizer",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "dtype": "model.precision",
    "torch_dtype": "model.precision",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "dataset_name": "data.dataset",
    "label_column": "data.topic_column",
    "output_dir": "logging.results_dir",
    "save_steps": "logging.keep_checkpoints",
    "report_to": "logging.trackers",
    "strategy": "federation.algorithm",
    "fraction_fit": "federation.participation_rate",
    "fraction_train": "federation.participation_rate",
    "num_server_rounds": "federation.num_rounds",
    "num_supernodes": "federation.total_clients",
    "num_partitions": "federation.total_clients",
}
LIKE = 0.8  # likeness of two keys of different sections: `out` is no `count`, and `version` no `precision`


@cache
def list_sections() -> dict[Key, type[BaseModel]]:
    """Return every section of the schema by its key: first the experiment itself, at `()`; a list of sections is one."""
    found: dict[Key, type[BaseModel]] = {}

    def visit(key: Key, model: type[BaseModel]) -> None:
        found[key] = model
        for name, field in model.model_fields.items():
            kind = (typing.get_args(field.annotation) or (field.annotation,))[0]  # of a list, what it is a list of
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                visit((*key, name), kind)

    visit((), Experiment)
    return found


@cache
def list_mappings() -> frozenset[Key]:
    """Return the keys of all settings whose value is a mapping, as `data.columns` has it, and that are no sections."""
    return frozenset(
        (*key, name)
        for key, model in list_sections().items()
        for name, field in model.model_fields.items()
        if _takes_mapping(field.annotation)
    )


def _takes_mapping(kind: Any) -> bool:
    return typing.get_origin(kind) is dict or any(map(_takes_mapping, typing.get_args(kind)))


def explain_refusals(refused: ValidationError, merged: Layer) -> list[str]:
    """Say in a sentence each what the schema refused: file and line, what came, what is allowed."""
    wrong: dict[Key, list[Any]] = {}
    for error in refused.errors(include_url=False):
        wrong.setdefault(_locate_setting(tuple(map(str, error["loc"]))), []).append(error)
    told = []
    for key, errors in wrong.items():
        if errors[0]["type"] != "extra_forbidden":
            told.append(_explain_value(key, errors, merged))
        elif len(key) > 1 or key[0] not in _list_short_sections():
            told.append(f"{find_place(key, merged)}: {_explain_key(key)}")
        else:  # `federated` is a section of short keys only: each key in it that no row of the table takes
            told += [f"{entry.where}: {_explain_key(k)}" for k, entry in merged.items() if k[:1] == key]
    return told


def explain_flag(flag: str, known: Sequence[str]) -> str:
    """Say what is meant by a flag that a command does not have: a setting, or one of its flags, which are `known`.

    >>> explain_flag("--lr", ["--quiet"])
    "no option '--lr'; settings are written key=value, this one as training.lr=VALUE (options: --quiet, --help)"
    """
    word, known = flag.lstrip("-").replace("-", "_"), [*dict.fromkeys([*known, "--help"])]
    key = word if "." in word else _list_last_parts().get(word)
    near = None if key else find_near(flag, [option for option in known if option.startswith("--")], LIKE)
    key = key if key or near else _find_key((), word, Experiment.model_fields)
    if key:
        hint = f"; settings are written key=value, {_spell_setting(key)}"
    else:
        hint = f"; did you mean {near!r}?" if near else "; settings are written key=value, like training.lr=1e-3"
    return f"no option {flag[:60]!r}{hint} (options: {', '.join(known)})"


def _spell_setting(key: str) -> str:
    """Spell how a setting is written; of a section that has no value of its own, the first in it."""
    section = list_sections().get(tuple(key.split(".")))
    if section is None or tuple(key.split(".")) in CHOOSERS:
        return f"this one as {key}=VALUE"
    return f"those of {key} like {key}.{next(iter(section.model_fields))}=VALUE"


def find_place(key: Key, merged: Layer, message: str = "") -> str:
    """Find where a setting was written; of a section, where the key was that a message about the section is about.

    That is the first key that the message quotes, else the one whose value it quotes, else one that it names, among these
    one of the command line, else the first key of the section.
    """
    if key in merged:
        return merged[key].where
    below = [k for k in merged if k[: len(key)] == key and merged[k].where != "default"]
    quoted = [k for word in re.findall("'([^']+)'", message) for k in below if word in k[len(key) :]]
    if quoted:
        return merged[quoted[0]].where
    for found in (
        [k for k in below if isinstance(merged[k].value, str) and f"{merged[k].value!r}" in message],
        [k for k in below if re.search(rf"\b{re.escape(k[-1])}\b", message)],
    ):
        if found:
            return max((merged[k].where for k in reversed(found)), key=COMMAND_LINE.__eq__)  # else the last
    if below:
        return merged[below[0]].where
    above = [k for k in merged if key[: len(k)] == k] or [k for k in merged if k[:1] == key[:1]]
    return merged[above[0]].where if above else "default"


def _locate_setting(loc: Key) -> Key:
    """Return the setting of an error's location, to which pydantic appends members of unions and positions in lists."""
    loc = tuple(part for part in loc if not part.isdecimal())
    for length in range(len(loc) + 1):
        section = list_sections().get(loc[:length])
        if section is None or length == len(loc) or loc[length] not in section.model_fields:
            return loc[: length + (section is not None and length < len(loc))]
    return loc


def _explain_value(key: Key, errors: list[Any], merged: Layer) -> str:
    message = " or ".join(dict.fromkeys(_say_allowed(error, key) for error in errors)).replace(" or must be ", " or ")
    came = errors[0]["input"]
    told = message if errors[0]["type"] in ("value_error", "missing") else f"got {_shorten(came)}; {message}"
    name = spell_key(key)
    return (
        f"{find_place(key, merged, message)}: {name}: {told}" if name else f"{find_place(key, merged, message)}: {told}"
    )


def _say_allowed(error: dict[str, Any], key: Key) -> str:
    kind, section = error["type"], None if int in map(type, error["loc"]) else list_sections().get(key)
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        first = f", as {spell_key((*key, next(iter(section.model_fields))))}" if section else ""
        return f"must be a section, with its own keys{first}{hint_at_data(str(error['input'])[:200])}"
    if kind == "missing":
        return "is missing"
    if kind in ("bool_type", "bool_parsing"):
        return "must be true or false, written so"
    if kind in ("list_type", "tuple_type") and isinstance(error["input"], str):
        return f"must be a list, as [{error['input'][:40]}]"
    if kind == "string_pattern_mismatch":
        return f"must match {error['ctx']['pattern']}"
    message = re.sub(r"^\w+ should (be|have|match)", r"must \1", str(error["msg"]))
    return message.replace("a valid integer", "an integer").replace("a valid", "a")


def _shorten(value: Any) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _explain_key(key: Key) -> str:
    section, name = key[:-1], key[-1]
    short = [row.split(".")[-1] for row in KEYS if tuple(row.split(".")[:-1]) == section]
    model = list_sections().get(section)
    known = list(model.model_fields) if model else short
    place = f"in section {spell_key(section)}" if section else "at the top level"
    meant = _find_key(section, name[:60], [*known, *short])
    if "." in name and not section:
        hint = "; dotted keys are for the command line, in a file each part has its own line"
    else:
        hint = f"; did you mean {meant!r}?" if meant else ""
    return f"no key {name[:60]!r} {place}{hint} (known: {', '.join(known)})"


def _find_key(section: Key, name: str, near: Iterable[str]) -> str | None:
    """Find the key that is meant by a name that a section does not have; None if none is near.

    That is the same key in a section of this one, else elsewhere, else one that is the same but for words at an end, here
    or elsewhere, else one that is written alike, in the section or, if it is more like it, elsewhere. What other libraries
    call a key is that key.
    """
    everywhere, own = _list_last_parts(), list(near)
    for place, model in list_sections().items():
        if section and len(place) > len(section) and place[: len(section)] == section and name in model.model_fields:
            return spell_key((*place, name))
    if name in everywhere and everywhere[name] != spell_key((*section, name)):
        return everywhere[name]
    if found := _find_part(name, own):
        return found
    if found := _find_part(name, [key for key in everywhere if key != "name"]):  # what has a name is not said by it
        return everywhere[found]
    return find_near(name, own) or everywhere.get(find_near(name, everywhere, LIKE) or "")


def _find_part(name: str, known: Sequence[str]) -> str | None:
    """Find a known key that ends in a name and has little more, else one that begins with it or that it ends in, by words.

    >>> [_find_part(name, ["num_rounds", "r_max", "lr", "held_out"]) for name in ("rounds", "r", "final_lr", "out")]
    ['num_rounds', 'r_max', 'lr', None]
    """
    if found := find_near(name, [key for key in known if key.endswith(f"_{name}")]):
        return found
    return max((key for key in known if key.startswith(f"{name}_") or name.endswith(f"_{key}")), key=len, default=None)


@cache
def _list_last_parts() -> dict[str, str]:
    """List the last part of every key with the first key that has it, what other libraries call it, or a short key."""
    return {
        **{
            field: spell_key((*place, field))
            for place, model in reversed(list_sections().items())
            for field in model.model_fields
        },
        **{row.split(".")[-1]: key for row, key in reversed(KEYS.items())},
        **ELSEWHERE,
    }


def _list_short_sections() -> set[str]:
    return {row.split(".")[0] for row in KEYS} - set(Experiment.model_fields)
