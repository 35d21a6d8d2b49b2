"""BibTeX entries of the methods that a study used, as far as they have a paper."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedfault.runs.recorded import RunData

FILE = Path(__file__).with_name("references.bib")
ALWAYS = ("hu2022lora", "efron1987bootstrap", "holm1979")  # adapters, intervals, correction
TESTS = {"flips": "fisher1935", "student": "student1908"}
BY_NAME = {  # component -> keys of its entries
    "fedavg": ["mcmahan2017"], "fedavgm": ["hsu2019"], "fedadam": ["reddi2021"], "fedyogi": ["reddi2021"],
    "fedadagrad": ["reddi2021"], "fedprox": ["li2020fedprox"], "fednova": ["wang2020fednova"], "moon": ["li2021moon"],
    "scaffold": ["karimireddy2020"], "scaffold_update_space": ["karimireddy2020"], "feddyn": ["acar2021"],
    "clustered": ["sattler2021clustered", "rousseeuw1987"],
    "ifca": ["ghosh2020"], "fedit": ["zhang2024fedit"], "zero_pad": ["cho2024hetlora"], "hetlora": ["cho2024hetlora"],
    "flexlora": ["bai2024flexlora"], "flora": ["wang2024flora"], "ffa_lora": ["sun2024ffa"], "rolora": ["chen2025rolora"],
    "fedsa_lora": ["guo2025fedsa"], "fedex_lora": ["singhal2025fedex"], "topic_skew": ["hsu2019"], "label_skew": ["hsu2019"],
    "ag_news": ["zhang2015agnews"], "bbc_news": ["greene2006bbc"], "wikitext": ["merity2017wikitext"],
    "distilgpt2": ["sanh2019distilbert"], "smollm2-135m": ["allal2025smollm2"],
}  # fmt: skip


def keys(runs: Iterable[RunData], tests: Iterable[str]) -> list[str]:
    """Keys of the entries that these runs and tests call for, in alphabetical order."""
    found = {*ALWAYS, *(TESTS[t] for t in tests)}
    for run in runs:
        for path in (
            ("federation", "algorithm", "name"),
            ("federation", "aggregation", "name"),
            ("data", "partition", "name"),
            ("data", "dataset", "name"),
            ("model", "name"),
        ):
            found.update(BY_NAME.get(str(run.setting(*path)), []))
    return sorted(found)


def entries(wanted: Iterable[str]) -> str:
    """The entries as a BibTeX file."""
    known = _known()
    return "\n".join(known[key] for key in wanted)


def cited(key: str) -> str:
    """An entry as a line of a list of references."""
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", _known()[key], re.MULTILINE))
    plain = {name: re.sub(r"[{}]", "", text) for name, text in fields.items()}
    where = plain.get("booktitle") or plain.get("journal") or plain.get("publisher") or plain.get("note", "")
    return f"{plain['author'].replace(' and ', ', ')}: {plain['title']}. {where}, {plain['year']}."


def _known() -> dict[str, str]:
    text = FILE.read_text(encoding="utf-8")
    return {m[1]: m[0] for m in re.finditer(r"^@\w+\{(\S+),\n(?:  .*\n)+\}\n", text, re.MULTILINE)}
