"""Bytes that anybody may have written: the seeds of tests/seeds, and seeds with a few bytes changed.

FUZZ=1000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzed import damaged, fuzzed
from targets import SEEDS, TARGETS

FOUND = [(name, seed) for name in TARGETS for seed in sorted((SEEDS / name).iterdir())]


@pytest.fixture(autouse=True)
def _flower(request):
    if request.node.callspec.params["name"] == "payload":
        pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')


@pytest.mark.parametrize(("name", "seed"), FOUND, ids=lambda value: getattr(value, "name", value))
def test_a_seed_is_read_or_refused_in_words(name, seed):
    TARGETS[name](seed.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@fuzzed(60)
@given(data=st.data())
def test_a_seed_with_a_few_bytes_changed_is_read_or_refused_in_words(name, data):
    seed = data.draw(st.sampled_from([seed for of, seed in FOUND if of == name]))
    TARGETS[name](data.draw(damaged(seed.read_bytes())))
