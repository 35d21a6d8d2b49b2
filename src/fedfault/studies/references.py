"""BibTeX entries of the methods that a study used, as far as they have a paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fedfault.backbones.load import PAPERS
from fedfault.config.shorthand import CHOOSERS
from fedfault.errors import UserError
from fedfault.registry import find_citations
from fedfault.runs.recorded import RunData

FILE = Path(__file__).with_name("references.bib")
ALWAYS = ("hu2022lora", "holm1979", "student1908")  # adapters, correction, intervals of means
TESTS = {
    "best": ("edwards1983",),
    "flips": ("fisher1935", "hartigan1969"),
    "student": ("student1908",),
    "mixture": ("lai1976", "grunwald2024", "ramdas2023"),
    "bets": ("waudbysmith2024", "ramdas2023"),
}


def find_keys(runs: Iterable[RunData], tests: Iterable[str]) -> list[str]:
    """Keys of the entries that these runs and tests, names in `TESTS`, call for, in alphabetical order."""
    found = {*ALWAYS, *(key for t in tests for key in TESTS[t])}
    for run in runs:
        for key, kind in CHOOSERS.items():
            found.update(find_citations(kind, str(run.setting(*key, "name"))))
        found.update(key for plugin in run.manifest.get("plugins", ()) for key in plugin.get("cites", ()))
        found.update(PAPERS.get(str(run.setting("model", "name")), ()))
    return sorted(found)


def check_citations(setting: Callable[..., object]) -> None:
    """Raise `UserError` where a component that a configuration names cites a paper without an entry.

    setting: the value of a configuration at a path of keys.
    """
    for chooser, kind in CHOOSERS.items():
        for key in find_citations(kind, str(setting(*chooser, "name"))):
            _find_entry(key)


def format_entries(wanted: Iterable[str]) -> str:
    """The entries as a BibTeX file."""
    return "\n".join(_find_entry(key) for key in wanted)


def format_reference(key: str) -> str:
    """An entry as a line of a list of references."""
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", _find_entry(key), re.MULTILINE))
    plain = {name: re.sub(r"[{}]", "", text) for name, text in fields.items()}
    where = plain.get("booktitle") or plain.get("journal") or plain.get("publisher") or plain.get("note", "")
    return f"{plain['author'].replace(' and ', ', ')}: {plain['title']}. {where}, {plain['year']}."


def _find_entry(key: str) -> str:
    """An entry's text. Raises `UserError` where a component cites what is not in the file."""
    known = _read_entries()
    if key not in known:
        raise UserError(
            f"a component cites {key!r}, which is not in {FILE}; add its entry there (a plug-in leaves `cite` out)"
        )
    return known[key]


def _read_entries() -> dict[str, str]:
    text = FILE.read_text(encoding="utf-8")
    return {m[1]: m[0] for m in re.finditer(r"^@\w+\{(\S+),\n(?:  .*\n)+\}\n", text, re.MULTILINE)}
