"""The reference page docs/configuration.md, written from the schema and the tables.

    python -m fedfault.config.reference > docs/configuration.md

A test compares the file with `build_page()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedfault.config.explain import list_sections
from fedfault.config.files import Key, spell_key
from fedfault.config.layers import EXCLUSIVE
from fedfault.config.shorthand import CHOOSERS, KEYS, LOOSE, VALUES
from fedfault.options import spell_type, spell_yaml

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m fedfault.config.reference > docs/configuration.md`; a test compares the two. -->

An experiment is a YAML file. Every key has a default, so a file says only what differs; a key that does not exist, a
value of the wrong type and a component that is not there are errors that name the file and the line.

```yaml
_base_: "default.yaml"          # inherit from the file beside this one
experiment_name: milder
data:
  partition: {name: topic_skew, alpha: 1.0}
```

YAML is read narrowly: `1e-3` is a number, only `true` and `false` are booleans (`no`, `on` and `yes` are text), whole
numbers are decimal, dates are text. Repeated keys, aliases (`*name`) and tags (`!!name`) are refused.
A file is given as a path; if there is none, as the name of a shipped configuration (`quickstart`, `default`).
Without one a command starts from `quickstart`; where `data.path` or `data.dataset` gives it other data than the packaged
ones, from the defaults below, and says so.
"""

LAYERS = """\
## Layers: inheritance and overrides

1. `_base_` names one file or a list of files, relative to the file that says so. Each file is read once, bases before
   the files that name them; of two bases the second wins. A circle is an error.
   `data.path` and `clock.trace` in a file are relative to it too; where nothing lies there, to the working folder.
2. The file itself.
3. `key=value` arguments with dotted keys, like `federation.num_rounds=2` or `model.lora.target_modules=[q, v]`.
   Values follow the rules of the files, but have no comments: a text with ` #` stands in quotes of its own
   (`"data.path='my #1.csv'"` in a shell). Of the same key given twice the last one counts.

The later layer wins: sections merge key by key, everything else replaces: lists, and mappings that are no sections
(`data.columns`, `evaluation.stop_at`, `rank_pattern` and `alpha_pattern` of `model.lora`) too. So
`model.lora.rank_pattern={}` empties one, and `model.lora.rank_pattern.q_proj=4` changes one entry of it. Two rules go
beyond that:

* Naming another component drops the options of the one before: after `data.partition.name=iid` the file's `alpha`,
  which belonged to `topic_skew`, is gone. Naming the same component keeps them, as a single word or as a section.
* Of two keys that exclude each other, the later layer's stays. Both in one layer are an error.
"""

SHORTHAND = """\
## Short keys

Short keys work in files and on the command line. They are translated before layers are merged, so that either form
overrides the other; both forms in one layer with different values are an error.
"""


def build_page() -> str:
    """Write the whole page as Markdown."""
    parts = [INTRODUCTION, *(_build_section(key, model) for key, model in list_sections().items())]
    parts += [
        LAYERS,
        _format_table(("one of", "or"), [(f"`{spell_key(a)}`", f"`{spell_key(b)}`") for a, b in EXCLUSIVE]),
    ]
    parts += [SHORTHAND, _format_table(("short", "stands for", ""), [_describe_short_key(short) for short in KEYS])]
    rows = [(f"`{key}`", f"`{value}`", f"`{better}`") for (key, value), better in VALUES.items()]
    return "\n".join([*parts, _format_table(("key", "value", "stands for"), rows)]).rstrip() + "\n"


def _build_section(key: Key, model: type[BaseModel]) -> str:
    title = f"## `{spell_key(key)}`" if key else "## Top level"
    about = (inspect.getdoc(model) or "").partition("\n")[0]
    if key in CHOOSERS:
        about += (
            f" `{key[-1]}: NAME` is short for `{key[-1]}: {{name: NAME}}`; `fedfault list {CHOOSERS[key]}` shows all."
        )
    fields = {name: field for name, field in model.model_fields.items() if (*key, name) not in list_sections()}
    rows = [
        (f"`{name}`", spell_type(f.annotation, f.metadata), _spell_default(key, name, f), f.description or "")
        for name, f in fields.items()
    ]
    return (
        f"{title}\n\n{about}\n\n{_format_table(('key', 'type', 'default', 'meaning'), rows)}"
        if rows
        else f"{title}\n\n{about}\n"
    )


def _spell_default(key: Key, name: str, field: FieldInfo) -> str:
    default = field.default
    if field.is_required():  # the name of a component: the section that holds it has a default; of a list it has none
        section = list_sections()[key[:-1]].model_fields[key[-1]].default
        default = getattr(section, name) if isinstance(section, BaseModel) else None
    return "–" if default is None else f"`{spell_yaml(default)}`"


def _describe_short_key(short: str) -> tuple[str, str, str]:
    note = "dropped with a note if the component takes no such option" if short in LOOSE else ""
    return f"`{short}`", f"`{KEYS[short]}`", note


def _format_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    print(build_page(), end="")
