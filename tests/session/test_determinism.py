"""The same experiment gives the same numbers, whatever must not matter: five experiments, of tests/five.py.

To the last bit where the same products are taken; within TOLERANCE where sums are taken in other parts (other passes, other
numbers of threads), which float32 rounds differently. Two processes are in tests/parallel/test_distributed.py.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfault.parallel.parts import join_results
from fedfault.rounds.clients import train_clients
from fedfault.rounds.federation import Federation
from five import EXPERIMENTS, experiment, numbers

TOLERANCE = 1e-4  # of the norm of what was trained, and of every number of the records; float32 has 6e-8
HERE = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@lru_cache
def usual(name: str) -> dict[str, Any]:
    return numbers(experiment(name).federation)


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Every number and word of a record by its place."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{place}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flatten(inner, f"{place}/{i}").items()}
    return {place: value}


def check_near(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Trained numbers and records are equal within TOLERANCE; words and whole numbers are equal."""
    x, y = (np.array(found["trained"]) for found in (one, other))
    assert np.linalg.norm(x - y) <= TOLERANCE * np.linalg.norm(x)
    here, there = flatten(one["records"]), flatten(other["records"])
    assert here.keys() == there.keys()
    for place, value in here.items():
        if isinstance(value, float) and math.isfinite(value):
            assert there[place] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), place
        else:
            assert there[place] == value, place


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_same_experiment_twice_is_the_same_to_the_last_bit(name):
    assert numbers(experiment(name).federation) == usual(name)


class Shuffled(Federation):
    """A federation whose clients are drawn in another order."""

    def cohort(self, t: int, *known: Any) -> list[int]:
        drawn = super().cohort(t, *known)
        random.Random(t).shuffle(drawn)
        return drawn[::-1]


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_order_in_which_clients_are_drawn_changes_no_bit(name):
    fed = experiment(name).federation
    assert numbers(Shuffled(**vars(fed))) == usual(name)


def one_by_one(backwards: bool):
    """Train the clients of a round each for itself, in their order or backwards."""

    def train(fed: Federation, asked: Any) -> Any:
        rows = range(len(asked.cohort.clients))
        done = {i: train_clients(fed, asked.select([i])) for i in (reversed(rows) if backwards else rows)}
        return join_results(asked, dict(sorted(done.items())))

    return train


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_order_in_which_clients_train_changes_no_bit(name):
    fed = experiment(name).federation
    forwards, backwards = (numbers(replace(fed, remote=one_by_one(which))) for which in (False, True))
    assert forwards == backwards
    check_near(forwards, usual(name))


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_number_of_clients_in_a_pass_changes_no_more_than_rounding(name):
    fed = experiment(name).federation
    check_near(numbers(replace(fed, clients_per_pass=1)), usual(name))


def elsewhere(folder: Path, **environment: str) -> dict[str, Any]:
    """The five experiments in a process with other variables of its environment."""
    file, variables = folder / "found.json", {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    subprocess.run([sys.executable, HERE / "five.py", file], check=True, env=variables)
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    return elsewhere(tmp_path_factory.mktemp("alone"))


@pytest.mark.long
@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "TZ and LC_ALL"])
def test_the_environment_changes_no_bit(tmp_path, alone, name):
    there = {"PYTHONHASHSEED": "7"} if name == "PYTHONHASHSEED" else {"TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"}
    assert elsewhere(tmp_path, **there) == alone


@pytest.mark.long
def test_another_number_of_threads_changes_no_more_than_rounding(tmp_path, alone):
    two = elsewhere(tmp_path, OMP_NUM_THREADS="2")
    for name in EXPERIMENTS:
        check_near(two[name], alone[name])
