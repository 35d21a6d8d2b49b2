"""One suite for every probe, now and later, on tasks without text: rounds of the engine with the probe on and off."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from fedfault.config.schema import Metrics
from fedfault.records import RoundRecord
from fedfault.registry import build, builders, first_line
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.algorithm import State
from fedfault.types.task import Measurements, Probe

pytestmark = pytest.mark.parametrize("name", builders("probe"))
READS_TEXT = ("attention", "generation", "representation")  # nothing where there is no hidden state
CLIENTS = Quadratic([[1.0, 0.5], [2.0, 1.0], [0.5, 3.0]], [[0.0, 1.0], [4.0, -2.0], [1.0, 1.0]], [5, 1, 9], noise=0.3)
ALWAYS = {"round", "scores", "bytes_up", "bytes_down", "events"}  # what no probe may change
CASES = {
    "quadratic": lambda **given: small(CLIENTS, **given),
    "low rank": lambda **given: small(LowRank(), num_rounds=3, cohort_size=4, **given),
    "one client": lambda **given: small(LowRank(), cohort_size=1, **given),
    "scaffold": lambda **given: small(LowRank(), "scaffold", **given),
    "ifca": lambda **given: small(LowRank(), "ifca", **given),
    "unequal ranks": lambda **given: small(LowRank(), ranks=(1, 2, 2, 1, 2, 1), **given),
    "folds": lambda **given: small(LowRank(), "fedavg", "flora", **given),
    "private": lambda **given: small(LowRank(), "fedavg", "fedsa_lora", **given),
    "in passes": lambda **given: small(LowRank(), clients_per_pass=2, **given),
    "explodes": lambda **given: small(Quadratic([[1.0], [1e250]], [[0.0], [1.0]], [4, 4]), **given),
    "nobody is left": lambda **given: small(Quadratic([[1e250]], [[0.0]], [4]), **given),
    "nothing moves": lambda **given: small(LowRank(), work={"steps": 2, "lr": 1e-300}, **given),
}


def small(*parts, **changes) -> Federation:
    """Two rounds of two local steps, unless told otherwise."""
    return federation(*parts, **{"num_rounds": 2, "work": {"steps": 2}, **changes})


def run(fed: Federation) -> tuple[list[State], list[RoundRecord]]:
    states, records = zip(*rounds(fed, begin(fed)), strict=True)
    return list(states), list(records)


@lru_cache
def plain(case: str) -> tuple[list[State], list[RoundRecord]]:
    return run(CASES[case]())


@lru_cache
def probed(name: str, case: str, again: bool = False) -> tuple[list[State], list[RoundRecord]]:
    return run(CASES[case](probes={name: build("probe", name)}))


@pytest.mark.parametrize("case", CASES)
def test_it_is_finite_floats_and_absent_where_it_is_not_defined(name, case):
    _, records = probed(name, case)
    for r in records:
        numbers = [*r.probes.values(), *(v for c in r.clients for v in c.probes.values())]
        assert all(type(v) is float and math.isfinite(v) for v in numbers), r
        for m in r.matrices.values():
            assert [len(row) for row in m] == [len(r.clients)] * len(r.clients)
            assert all(type(v) is float and not math.isinf(v) for row in m for v in row)  # NaN: of a client without any


@pytest.mark.parametrize("case", CASES)
def test_it_changes_neither_model_nor_record(name, case):
    (states, records), (states_without, without) = probed(name, case), plain(case)
    for one, other in zip(states, states_without, strict=True):
        assert torch.equal(one.adapter.flat, other.adapter.flat)
        assert all(torch.equal(one.clients[n].flat, a.flat) for n, a in other.clients.items())
        assert all(torch.equal(one.base[n], delta) for n, delta in other.base.items())
    for r, p in zip(records, without, strict=True):
        assert repr([replace(c, probes={}) for c in r.clients]) == repr(list(p.clients))
        assert all(repr(getattr(r, field)) == repr(getattr(p, field)) for field in ALWAYS)


def test_the_same_round_is_measured_to_the_same_numbers(name):
    first, second = (probed(name, "low rank", again)[1] for again in (False, True))
    for a, b in zip(first, second, strict=True):
        assert name == "memory" or a.probes == b.probes
        assert [c.probes for c in a.clients] == [c.probes for c in b.clients]
        assert a.matrices == b.matrices


def test_what_is_not_there_gives_nothing(name):
    _, records = probed(name, "low rank")
    measured = [bool(r.probes) for r in records]
    assert measured == ([False] * 4 if name in READS_TEXT else [False, True, True, True])


def test_its_seconds_are_counted(name):
    _, records = probed(name, "low rank")
    assert f"probe/{name}" not in records[0].seconds
    assert all(r.seconds[f"probe/{name}"] >= 0 for r in records[1:])


def test_one_that_costs_forward_passes_is_taken_only_where_the_model_is_evaluated(name):
    probe = build("probe", name)
    _, records = run(CASES["low rank"](probes={name: probe}, evaluate_every=2))
    taken = [r.round for r in records if f"probe/{name}" in r.seconds]
    assert taken == ([2, 3] if probe.sparse else [1, 2, 3])
    assert probe.sparse or not probe.gradients  # which take two


def test_it_leaves_what_it_looks_at_alone(name):
    """The tensors of the finished round, and the frozen weights of the task."""
    probe, seen = build("probe", name), []

    def measure(m) -> Measurements:
        tensors = [m.start, m.trained.adapter.flat, m.before.adapter.flat, m.after.adapter.flat, *(m.halves or ())]
        tensors += [x.flat for x in (*m.before.clients.values(), *m.after.clients.values())]
        before, base = [t.clone() for t in tensors], m.task.checksums()
        found = probe.measure(m)
        seen.append(all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True)))
        assert m.task.checksums() == base
        return found

    run(CASES["scaffold"](probes={name: replace(probe, measure=measure)}))
    run(CASES["folds"](probes={name: replace(probe, measure=measure)}))
    assert seen == [True] * 4


def test_its_switch_is_in_the_configuration_and_no_other_is(name):
    assert isinstance(build("probe", name), Probe)
    assert first_line(builders("probe")[name])
    assert name in Metrics.model_fields, f"write @register(...) in front of {name}, on a function of the module"
    assert set(Metrics.model_fields) == set(builders("probe"))


def test_a_server_that_stands_still_is_measured_too(name):
    fed = CASES["low rank"](probes={name: build("probe", name)})

    def server(state, got, average):
        average(got["x"], got["n"])
        return state

    _, records = run(replace(fed, algorithm=replace(fed.algorithm, server=server)))
    assert all(math.isfinite(v) for r in records for v in r.probes.values())
    assert ("server_norm" in records[1].probes and records[1].probes["server_norm"] == 0) == (name == "updates")
