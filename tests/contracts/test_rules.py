"""Every component of every open folder against every rule of its kind: `fedfault.testing` says them.

Corpora, which need files, have a module of their own.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from fedfault.registry import load_builders
from fedfault.testing import MODULES, get_rules
from fedfault.testing.rules import Subject

NEEDS = {"cvx": "cvxpy"}
SLOW = ("cvx",)  # a solver's milliseconds, hundreds of times


def marks(kind: str, name: str, rule: str) -> list:
    return [pytest.mark.slow] * (name in SLOW or get_rules(kind)[rule].slow)


CASES = [
    pytest.param(kind, name, rule, id=f"{kind}-{name}-{rule}", marks=marks(kind, name, rule))
    for kind in MODULES
    if kind != "corpus"
    for name in load_builders(kind)
    for rule in get_rules(kind)
]


@lru_cache
def subject(kind: str, name: str) -> Subject:
    return Subject(kind, load_builders(kind)[name])


@pytest.mark.parametrize(("kind", "name", "rule"), CASES)
def test_every_component_keeps_every_rule(kind, name, rule):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    get_rules(kind)[rule].check(subject(kind, name))


@pytest.mark.parametrize("kind", MODULES)
def test_every_rule_is_a_sentence(kind):
    for rule in get_rules(kind).values():
        assert not rule.sentence[0].islower()
        assert rule.sentence.endswith(".")
        assert 20 < len(rule.sentence) < 160
