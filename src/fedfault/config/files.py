"""Read YAML as settings that remember their file and line, and write it so that it reads back the same.

The rules are narrower than YAML 1.1: `1e-3` is a number, only `true` and `false` are booleans (`no`, `on` and `yes` are
text), whole numbers are decimal (`017` is text), dates are text; repeated keys, aliases and tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedfault.errors import UserError

MOST_BYTES = 1_000_000  # a configuration is a few hundred lines
MOST_TEXT = 4096  # characters in one value: PATH_MAX on Linux
MOST_SETTINGS = 1000  # the schema has less than a hundred
DEEPEST = 20  # levels; the schema has four
COMMAND_LINE = "command line"

Key = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One setting: its value, where it was written, and how it takes part in a merge."""

    value: Any
    where: str  # file:line, or "command line"
    loose: bool = False  # an option given beside its component: unused if the component takes no such option
    whole: bool = False  # it stands in a mapping that was written out, and not behind a dotted key of its own


Layer = dict[Key, Entry]  # what one file, or the command line, sets


def spell_key(key: Key) -> str:
    """Join `("federation", "num_rounds")` to `federation.num_rounds`; parts that are not plain words are quoted."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else repr(part[:60]) for part in key)


def nest_settings(flat: Mapping[Key, Any]) -> dict[str, Any]:
    """Turn values by key into mappings in mappings.

    >>> nest_settings({("training", "lr"): 0.1, ("seed",): 0})
    {'training': {'lr': 0.1}, 'seed': 0}
    """
    out: dict[str, Any] = {}
    for key, value in flat.items():
        place = out
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = value
    return out


def shorten_path(path: Path) -> str:
    """Return the path as messages name it: relative to the working folder if it lies inside it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):  # outside it, or the working folder is gone
        return str(path)


def is_file(path: Path) -> bool:
    """Return whether there is something to read; pipes count, bash's `<(...)` is one."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name too long or with a null byte names nothing
        return False


def read_layer(path: Path) -> Layer:
    """Read the settings of one file, `_base_` among them.

    Raises `UserError` for a file that is missing, unreadable, a folder, too large or not UTF-8, for invalid YAML and
    for a top level that is not a mapping.
    """
    return parse_layer(_read_text(path), shorten_path(path))


def parse_layer(text: str, name: str) -> Layer:
    """Read the settings of a text, which messages call by a name. Raises `UserError` as `read_layer` does."""
    node = _compose(text, lambda line: f"{name}:{line + 1}")
    if not isinstance(node, yaml.MappingNode):
        came = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise UserError(f"{name}: the file must be a mapping of sections, like 'federation:'; it holds {came}")
    layer = _collect_settings(node, (), lambda line: f"{name}:{line + 1}")
    if len(layer) > MOST_SETTINGS:
        raise UserError(f"{name}: {len(layer)} settings, at most {MOST_SETTINGS}; is this a configuration file?")
    return layer


def parse_setting(text: str) -> Layer:
    """Read `federation.num_rounds=2` as settings; the value follows the rules of the files.

    Raises `UserError` if it is not `key=value`, if a part of the key is empty, if the value is not valid YAML and if a
    comment would cut it off.

    >>> parse_setting("data.partition.alpha=1e-1")
    {('data', 'partition', 'alpha'): Entry(value=0.1, where='command line', loose=False, whole=False)}
    """
    written, equals, value = text.partition("=")
    key = tuple(part.strip() for part in written.split("."))
    if not equals or not all(key) or not written.isprintable():
        example = "federation.num_rounds=2"
        raise UserError(f"{COMMAND_LINE}: {text[:80]!r} is not of the form key=value, for example {example}")
    try:
        node = _compose(value, lambda _: COMMAND_LINE)
        _refuse_comment(value)
        if isinstance(node, yaml.MappingNode) and node.value:
            return _collect_settings(node, key, lambda _: COMMAND_LINE)
        return {key: Entry(None if node is None else _build_value(node, lambda _: COMMAND_LINE), COMMAND_LINE)}
    except UserError as e:
        raise UserError(f"{e} (in {text[:80]!r})") from None


def _refuse_comment(value: str) -> None:
    """Raise `UserError` for valid YAML with a comment, which on the command line is a text that is cut off."""
    if "#" not in value:
        return
    tokens = [t for t in yaml.scan(value, Loader=_Loader) if isinstance(t, yaml.ScalarToken)]
    spans = [(token.start_mark.index, token.end_mark.index) for token in tokens]
    places = (place for place, character in enumerate(value) if character == "#")
    if not all(any(start <= place < end for start, end in spans) for place in places):
        raise UserError(
            f"{COMMAND_LINE}: a # begins a comment, of which nothing is read; leave it out, or write the text that it "
            "stands in with quotes of its own, such as 'run #3'"
        )


def dump(settings: dict[str, Any]) -> str:
    """Write settings as YAML that `read_layer` reads back the same; text that looks like a number is quoted."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def write_setting(key: str, value: Any) -> str:
    """Write a setting as `key=value` that `parse_setting` reads back the same.

    >>> write_setting("training.lr", 1e-3), write_setting("data.label_names", ["no", "1e-3", None])
    ('training.lr=0.001', "data.label_names=['no', '1e-3', null]")
    """
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return f"{key}={text.removesuffix(chr(10)).removesuffix('...').rstrip()}"


Place = Callable[[int], str]  # a line, counted from 0, as messages name it


class _Loader(yaml.SafeLoader):
    """Composes nodes only; `_build_value` makes the values. Depth is limited here because composing is recursive."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in PyYAML
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported", problem_mark=mark)
        if self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST}", problem_mark=mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"


class _Dumper(yaml.SafeDumper):
    """Quotes what either this reader or YAML 1.1 would take for something else than text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text with line breaks is escaped: YAML folds some of them where it is only quoted."""
        breaks = any(c in data for c in "\n\r\x85\u2028\u2029")
        return self.represent_scalar(_TAG + "str", data, style='"' if breaks else None)


_NUMBER = list("-+.0123456789")
for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", r"(?:null|~|)$", ["n", "~", ""]),
        ("bool", r"(?:true|false)$", ["t", "f"]),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)$", _NUMBER),
        ("float", r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)$", _NUMBER),
        ("float", r"\.nan$", ["."]),
    ):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), _first)
_Dumper.add_representer(str, _Dumper.represent_str)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as e:
        raise UserError(f"{shorten_path(path)}: cannot be read: {e.strerror}") from None
    if len(raw) > MOST_BYTES:
        raise UserError(
            f"{shorten_path(path)}: larger than {MOST_BYTES // 1_000_000} MB; is this a configuration file?"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise UserError(f"{shorten_path(path)}:{line}: not UTF-8 text (byte {raw[e.start]:#04x})") from None


def _compose(text: str, at: Place) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        hint = "; indent with blanks, not with tabs" if "\\t" in str(e.problem) else ""
        if "alias" in f"{e.context} {e.problem}":
            hint = (
                '; text that begins with * has to stand in quotes of its own ("*a"), and a path is one file or folder, not '
                "a pattern"
            )
        raise UserError(f"{at(mark.line if mark else 0)}: not valid YAML: {e.problem or e.context}{hint}") from None
    except yaml.reader.ReaderError as e:
        raise UserError(
            f"{at(text.count(chr(10), 0, e.position))}: character {chr(e.character)!r} is not allowed"
        ) from None
    except (ValueError, OverflowError) as e:  # PyYAML converts numbers in escapes and directives unchecked
        raise UserError(f"{at(0)}: not valid YAML: {e}") from None


def _collect_settings(node: yaml.MappingNode, prefix: Key, at: Place) -> Layer:
    """Return every leaf below a mapping by its full key, at the line of its own key."""
    layer: Layer = {}
    for name, line, value in _read_items(node, at):
        if isinstance(value, yaml.MappingNode) and value.value:
            layer |= _collect_settings(value, (*prefix, name), at)
        else:
            layer[(*prefix, name)] = Entry(_build_value(value, at), at(line), whole=True)
    return layer


def _read_items(node: yaml.MappingNode, at: Place) -> list[tuple[str, int, yaml.Node]]:
    if node.tag != f"{_TAG}map":
        raise UserError(f"{at(node.start_mark.line)}: the tag {repr(node.tag)[:60]} is not supported")
    first: dict[str, int] = {}
    found = []
    for key, value in node.value:
        line = key.start_mark.line
        name = _build_value(key, at)
        if not isinstance(name, str) or not name:
            raise UserError(f"{at(line)}: the key {repr(name)[:60]} must be text")
        if name in first:
            raise UserError(f"{at(line)}: key {repr(name)[:60]} is given twice (first at {at(first[name])})")
        first[name] = line
        found.append((name, line, value))
    return found


def _build_value(node: yaml.Node, at: Place) -> Any:
    """Turn a node into None, a bool, int, float, str, list or dict."""
    if isinstance(node, yaml.MappingNode):
        return {name: _build_value(value, at) for name, _, value in _read_items(node, at)}
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_build_value(item, at) for item in node.value]
    line = node.start_mark.line
    kind = node.tag.removeprefix(_TAG)
    if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
        raise UserError(f"{at(line)}: the tag {repr(node.tag)[:60]} is not supported")
    if re.search("[\0\ud800-\udfff]", node.value):  # written as an escape; no file name and no UTF-8 file can hold them
        raise UserError(f"{at(line)}: {repr(node.value)[:60]} holds a character that is not text")
    if len(node.value) > MOST_TEXT:
        raise UserError(f"{at(line)}: a value of {len(node.value)} characters; at most {MOST_TEXT}")
    try:
        return _SCALARS[kind](node.value)
    except OverflowError as e:
        raise UserError(f"{at(line)}: {repr(node.value)[:60]} is {e}") from None
    except (ValueError, KeyError):  # an explicit tag like !!int x
        raise UserError(f"{at(line)}: {repr(node.value)[:60]} is not of type {kind}") from None


def _parse_int(text: str) -> int:
    if not -(2**63) <= (value := int(text)) < 2**63:
        raise OverflowError(f"beyond 64 bits: whole numbers are from {-(2**63)} to {2**63 - 1}")
    return value


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text],
    "int": _parse_int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}
