"""The contract of probes: rounds of the engine with the probe on and off, on tasks without text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from fedfault.records import RoundRecord
from fedfault.registry import read_summary
from fedfault.rounds.federation import Federation
from fedfault.testing.rules import Subject, expect, rule
from fedfault.testing.toys import LowRank, Quadratic, federation, run_rounds
from fedfault.types.algorithm import Average, Message, State
from fedfault.types.task import FinishedRound, Measurements, Probe

KIND = "probe"
CLIENTS = Quadratic([[1.0, 0.5], [2.0, 1.0], [0.5, 3.0]], [[0.0, 1.0], [4.0, -2.0], [1.0, 1.0]], [5, 1, 9], noise=0.3)
ALWAYS = {"round", "scores", "bytes_up", "bytes_down", "events"}  # what no probe may change
CASES: dict[str, Callable[..., Federation]] = {
    "quadratic": lambda **given: _make_small(CLIENTS, **given),
    "low rank": lambda **given: _make_small(LowRank(), num_rounds=3, cohort_size=4, **given),
    "one client": lambda **given: _make_small(LowRank(), cohort_size=1, **given),
    "scaffold": lambda **given: _make_small(LowRank(), "scaffold", **given),
    "ifca": lambda **given: _make_small(LowRank(), "ifca", **given),
    "unequal ranks": lambda **given: _make_small(LowRank(), ranks=(1, 2, 2, 1, 2, 1), **given),
    "folds": lambda **given: _make_small(LowRank(), "fedavg", "flora", **given),
    "private": lambda **given: _make_small(LowRank(), "fedavg", "fedsa_lora", **given),
    "in passes": lambda **given: _make_small(LowRank(), clients_per_pass=2, **given),
    "explodes": lambda **given: _make_small(Quadratic([[1.0], [1e250]], [[0.0], [1.0]], [4, 4]), **given),
    "nobody is left": lambda **given: _make_small(Quadratic([[1e250]], [[0.0]], [4]), **given),
    "nothing moves": lambda **given: _make_small(LowRank(), work={"steps": 2, "lr": 1e-300}, **given),
}


def _make_small(*parts: Any, **changes: Any) -> Federation:
    """Two rounds of two local steps, unless told otherwise."""
    return federation(*parts, **{"num_rounds": 2, "work": {"steps": 2}, **changes})


@lru_cache
def _run_without_probe(case: str) -> list[tuple[State, RoundRecord]]:
    return run_rounds(CASES[case]())


def _run_with_probe(subject: Subject, case: str, **changes: Any) -> list[tuple[State, RoundRecord]]:
    return run_rounds(CASES[case](probes={subject.name: subject.build()}, **changes))


@lru_cache(maxsize=64)
def _run_once(subject: Subject, case: str) -> list[tuple[State, RoundRecord]]:
    """The same, for rules that look at one run."""
    return _run_with_probe(subject, case)


@rule(KIND)
def it_is_finite_floats_and_absent_where_it_is_not_defined(subject: Subject) -> None:
    """A probe gives Python floats that are finite; what is not defined is not there. Matrices are (K, K)."""
    for case in CASES:
        for _, r in _run_once(subject, case):
            numbers = {**r.probes, **{f"{n} of client {c.client}": v for c in r.clients for n, v in c.probes.items()}}
            for name, v in numbers.items():
                expect(type(v) is float and math.isfinite(v), f"{case}, round {r.round}: {name} is {v!r}")
            for name, m in r.matrices.items():
                square = [len(row) for row in m] == [len(r.clients)] * len(r.clients)
                # NaN: of a client without
                plain = all(type(v) is float and not math.isinf(v) for row in m for v in row)
                expect(
                    square and plain, f"{case}, round {r.round}: the matrix {name} for {len(r.clients)} clients is {m}"
                )


@rule(KIND)
def it_changes_neither_model_nor_record(subject: Subject) -> None:
    """A run with the probe has the models, memories and records of the run without it, to the bit."""
    for case in CASES:
        for (one, r), (other, p) in zip(_run_once(subject, case), _run_without_probe(case), strict=True):
            same = torch.equal(one.adapter.flat, other.adapter.flat)
            same &= all(torch.equal(one.clients[n].flat, a.flat) for n, a in other.clients.items())
            same &= all(torch.equal(one.base[n], delta) for n, delta in other.base.items())
            expect(same, f"{case}: the model or a memory is another after round {one.round}")
            same = repr([replace(c, probes={}) for c in r.clients]) == repr(list(p.clients))
            same &= all(repr(getattr(r, field)) == repr(getattr(p, field)) for field in ALWAYS)
            expect(same, f"{case}: the record of round {r.round} is another")


@rule(KIND)
def the_same_round_is_measured_to_the_same_numbers(subject: Subject) -> None:
    """Two runs with one seed have the same readings, unless `of_machine` says that they are the machine's."""
    if subject.build().of_machine:
        return
    for (_, a), (_, b) in zip(_run_once(subject, "low rank"), _run_with_probe(subject, "low rank"), strict=True):
        expect(a.probes == b.probes, f"round {a.round}: {a.probes} and {b.probes}")
        expect([c.probes for c in a.clients] == [c.probes for c in b.clients], f"of clients in round {a.round}")
        expect(a.matrices == b.matrices, f"a matrix of round {a.round}")


@rule(KIND)
def it_measures_rounds_in_which_something_was_trained(subject: Subject) -> None:
    """There is nothing of round 0, before training; and of all later rounds, or of none where there is no text."""
    measured = [bool(r.probes) for _, r in _run_once(subject, "low rank")]
    expect(measured in ([False] * 4, [False, True, True, True]), f"rounds 0 to 3: {measured}")


@rule(KIND)
def one_that_needs_gradients_is_sparse(subject: Subject) -> None:
    """A probe that needs `gradients`, which take two further passes, is taken only where the model is evaluated."""
    probe: Probe = subject.build()
    expect(probe.sparse or not probe.gradients, "it needs gradients and is not sparse")


@rule(KIND)
def it_leaves_what_it_looks_at_alone(subject: Subject) -> None:
    """The tensors of the finished round and the frozen weights of the task are as they were."""
    probe: Probe = subject.build()
    seen = []

    def measure(m: FinishedRound) -> Measurements:
        tensors = [m.start, m.trained.adapter.flat, m.before.adapter.flat, m.after.adapter.flat, *(m.halves or ())]
        tensors += [x.flat for x in (*m.before.clients.values(), *m.after.clients.values())]
        before, base = [t.clone() for t in tensors], m.task.checksums()
        found = probe.measure(m)
        seen.append(all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True)))
        seen.append(m.task.checksums() == base)
        return found

    for case in ("scaffold", "folds"):
        run_rounds(CASES[case](probes={subject.name: replace(probe, measure=measure)}))
    expect(seen == [True] * 8, "something was changed in place")


@rule(KIND)
def it_is_a_probe_with_a_line_of_help(subject: Subject) -> None:
    """The builder returns a `types.task.Probe`, and its docstring's first line is its help."""
    expect(isinstance(subject.build(), Probe), "it is something else")
    expect(read_summary(subject.builder), "it has no docstring")


@rule(KIND)
def a_server_that_stands_still_is_measured_too(subject: Subject) -> None:
    """Where the model does not move, what divides by the length of its move is absent, not NaN."""
    fed = CASES["low rank"](probes={subject.name: subject.build()})

    def server(state: State, got: Message, average: Average) -> State:
        average(got["x"], got["n"])
        return state

    pairs = run_rounds(replace(fed, algorithm=replace(fed.algorithm, server=server)))
    wrong = {name: v for _, r in pairs for name, v in r.probes.items() if not math.isfinite(v)}
    expect(not wrong, f"{wrong}")
