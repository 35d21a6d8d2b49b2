"""Write what the docs say about the code from the code itself: docs/map.md, docs/cli.md, docs/components.md.

    python scripts/write_docs.py            # from the root of the checkout; `make docs` also writes docs/configuration.md

tests/test_docs.py compares the files with what this script would write.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from fedfault import flags
from fedfault.backbones.load import HUB, NAMES
from fedfault.cli.app import app
from fedfault.config.files import spell_key
from fedfault.config.shorthand import CHOOSERS
from fedfault.options import describe_options, list_options, read_meanings
from fedfault.registry import FOLDERS, find_citations, load_builders, read_declarations, read_summary

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fedfault"

MAP = """\
# Where a line of code lives

<!-- Written by `make docs`; a test compares the two. -->

The package is a house of rooms: every module lies in one of them, and a room imports only from rooms that stand further down on this list
(a test holds that, [0005](decisions/0005-rooms.md)). [tour.md](tour.md) walks through one round, and [glossary.md](glossary.md) explains the words.
Below, from the doors down to the ground, every room with its files.
"""
CLI = """\
# The command line

<!-- Written by `make docs`; a test compares the two. -->

Every command ends with status 0 when it did what it was asked for, and with 2 when its input was wrong: the message says what came, what is
allowed and what to do. A run that is interrupted (Ctrl-C: status 130, SIGTERM: 143) says how to go on; a study of which a run failed ends with 1.
`CONFIG` is a YAML file or the name of a shipped configuration, `KEY=VALUE` any setting of [configuration.md](configuration.md), `RUN` the
folder of a run ([run_folder.md](run_folder.md)). `fedfault COMMAND --help` says the same as this page.
"""
SCRIPTS = """\
## `train.py` and `run_experiments.py`

The scripts at the root are the same commands with flags instead of settings; `KEY=VALUE` works there too. `python train.py` is `fedfault run` of
`configs/train.yaml`, or of the file that `--config FILE` names. `python run_experiments.py --mode NAME` is `fedfault study NAME` with `--jobs N` processes;
`--mode analyze` writes the reports of all studies below `--results-dir` again.
"""
COMPONENTS = """\
# Components

<!-- Written by `make docs`; a test compares the two. -->

A component is chosen by its name, and its options stand beside it: `federation.algorithm.name=fedprox federation.algorithm.mu=0.1`. `fedfault list NAME`
prints the formulas, the reference and an example; [adding.md](adding.md) says how to add one. Papers are keys of
[references.bib](../src/fedfault/studies/references.bib), which the report of a study cites.
"""


def read_first_line(file: Path) -> str:
    """The first line of a module's docstring; empty without one."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def build_map() -> str:
    """Build docs/map.md: a line for every room, floor by floor from the doors down, and one for every file, folded away."""
    floors: Sequence[str] = runpy.run_path(str(ROOT / "tests" / "test_arrows.py"))["FLOORS"]
    lines = [MAP]
    for floor in reversed(floors):
        folders = [SOURCE / room for room in sorted(floor.split())]
        heads = [
            (f / "__init__.py", f"{f.name}/") if f.is_dir() else (f.with_suffix(".py"), f"{f.name}.py") for f in folders
        ]
        lines += [f"* [`{name}`](../src/fedfault/{name.rstrip('/')}): {read_first_line(file)}" for file, name in heads]
        inner = [
            f
            for folder in folders
            if folder.is_dir()
            for f in sorted(folder.rglob("*.py"))
            if f.parent != folder or f.name != "__init__.py"
        ]
        if inner:
            names = ", ".join(f.name for f in folders if f.is_dir())
            lines += ["", f"<details><summary>{len(inner)} files of {names}</summary>", ""]
            lines += [f"* `{f.relative_to(SOURCE)}`: {read_first_line(f)}" for f in inner]
            lines += ["", "</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


def build_cli() -> str:
    """Build docs/cli.md: every command with its arguments and options."""
    parts = [CLI]
    for words, command in _list_commands("fedfault", typer.main.get_command(app)):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join([words, *(_spell_argument(p) for p in arguments)])
        rows = [(f"`{_spell_argument(p)}`", "", p.help or "") for p in arguments]
        rows += [(", ".join(f"`{o}`" for o in p.opts), _spell_default(p), p.help or "") for p in options]
        example = f"\n\n{command.epilog}" if command.epilog else ""
        parts.append(
            f"## `{usage}`\n\n{command.help}{example}\n\n{_format_table(('argument', 'default', 'meaning'), rows)}"
        )
    settings = {**flags.TRAIN, **flags.SHARED, "--results-dir": ("logging.results_dir", "results go to a folder in it")}
    found = [
        (f"`{flag}`", f"`{key}`", about, "`train.py`" if flag in flags.TRAIN else "both")
        for flag, (key, about) in settings.items()
    ]
    return "\n".join([*parts, SCRIPTS, _format_table(("flag", "sets", "", "of"), found)])


def _list_commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below one, each with the words that call it; a group gives those in it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from _list_commands(f"{words} {name}", inner)
    if not hasattr(command, "commands"):
        yield words, command


def _spell_argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spell_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, False) else f"`{parameter.default}`"


def build_components() -> str:
    """Build docs/components.md: every component with its options and papers, kind by kind."""
    parts = [COMPONENTS]
    for kind, package in FOLDERS.items():
        section = [spell_key(key) for key, chosen in CHOOSERS.items() if chosen == kind]
        chosen = f"Chosen by `{section[0]}.name`. " if section else ""
        folder = package.replace(".", "/")
        parts.append(f"## {kind}\n\n{chosen}Files: [`{folder}`](../src/{folder}).\n")
        rows = []
        for name, builder in load_builders(kind).items():
            meanings = read_meanings(builder)[1]
            named = zip(list_options(builder), describe_options(builder), strict=True)
            takes = "<br>".join(f"`{option}` {meanings.get(o, '')}".strip() for o, option in named)
            about = read_summary(builder).replace("<", "&lt;") + _say_switch(kind, name)
            rows.append((f"`{name}`", about, takes, ", ".join(find_citations(kind, name))))
        parts.append(_format_table((kind, "", "options", "papers"), rows))
    known = [(f"`{name}`", HUB.get(name, "ships with the package")) for name in NAMES]
    models = "Chosen by `model.name`; so is any Hub id of a causal language model, a local folder or a `.gguf` file, and for labels any encoder."
    parts += [f"## model\n\n{models}\n", _format_table(("model", "where it is from"), known)]
    return "\n".join(parts)


def _say_switch(kind: str, name: str) -> str:
    """How a probe is switched; nothing for other components."""
    if kind != "probe":
        return ""
    on = read_declarations(kind)[name].facts.get("on", True)
    return f" On: `metrics.{name}=false` switches it off." if on else f" Off: `metrics.{name}=true` switches it on."


def _format_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Write the files."""
    (ROOT / "docs" / "map.md").write_text(build_map(), encoding="utf-8")
    (ROOT / "docs" / "cli.md").write_text(build_cli(), encoding="utf-8")
    (ROOT / "docs" / "components.md").write_text(build_components(), encoding="utf-8")


if __name__ == "__main__":
    main()
