"""The contract of every open folder, to be checked beside the component: no pytest, no network, seconds on a CPU.

>>> from fedfault.testing import check
>>> from fedfault.partitions.iid import iid
>>> check("partition", iid)
partition iid keeps all 13 rules

A rule has a name and a sentence (`get_rules`); what breaks one is told with both. The tasks, histories and cohorts that
components are checked on are here too, for tests of a component's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedfault.errors import UserError, suggest
from fedfault.testing.rules import RULES, Rule, RuleBroken, Subject

MODULES = {
    "algorithm": "algorithms",
    "aggregation": "aggregations",
    "corpus": "corpora",
    "partition": "partitions",
    "scheduler": "schedulers",
    "probe": "probes",
    "detector": "detectors",
    "attack": "attacks",
    "selection": "selections",
}


def get_rules(kind: str) -> Mapping[str, Rule]:
    """The contract of a kind of component: name -> rule. Raises `UserError` for a kind that does not exist."""
    if kind not in MODULES:
        raise UserError(f"no kind {kind!r} of component{suggest(kind, MODULES)} (known: {', '.join(MODULES)})")
    importlib.import_module(f"fedfault.testing.{MODULES[kind]}")
    return RULES[kind]


def check(kind: str, builder: Callable[..., Any], **options: Any) -> None:
    """Check a component against every rule of its kind and print that it keeps them.

    builder: the function that would be registered, whether it is or not; options: what it is built with. Raises
    `RuleBroken` with a sentence for each rule that it breaks.
    """
    found = dict(try_rules(kind, builder, **options))
    if broken := [told for told in found.values() if told]:
        raise RuleBroken(f"{len(broken)} of {len(found)} rules\n" + "\n".join(broken))
    print(f"{kind} {builder.__name__} keeps all {len(found)} rules")


def try_rules(kind: str, builder: Callable[..., Any], **options: Any) -> Iterator[tuple[Rule, str]]:
    """Yield every rule of a kind, and what the component did where it breaks it: else an empty text."""
    for rule in get_rules(kind).values():
        try:
            rule.check(Subject(kind, builder, options))
            yield rule, ""
        except RuleBroken as e:
            yield rule, str(e)
