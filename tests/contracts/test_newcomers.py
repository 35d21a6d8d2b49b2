"""A component of each kind in one file, as an outsider writes it: it passes, or is told the rule; nothing else is edited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fedfault import registry
from fedfault.algorithms.fedavg import fedavg
from fedfault.testing import check
from fedfault.testing.rules import RuleBroken
from fedfault.types.algorithm import Aggregation, Pooled, stands
from fedfault.types.corpus import Deal

ROOT = Path(__file__).parents[2]
NEWCOMERS = {
    "sign_step": "algorithm",
    "midhinge": "aggregation",
    "by_length": "partition",
    "lost_ground": "detector",
    "weather": "corpus",
    "longest_away": "selection",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), NEWCOMERS.items())
def test_a_newcomer_passes(name, kind, capsys):
    with registry.keep_plugins():
        registry.activate([str(ROOT / "tests" / "newcomers" / f"{name}.py")])
        check(kind, registry.find_builder(kind, name))
    assert capsys.readouterr().out.startswith(f"{kind} {name} keeps all ")


@pytest.mark.slow
@pytest.mark.long
def test_six_files_in_six_folders_are_a_run_with_its_findings(tmp_path):
    """A copy of the package with the files in it and no other change, on the command line."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name, kind in NEWCOMERS.items():
        folder = registry.FOLDERS[kind].replace(".", "/")
        shutil.copy(ROOT / "tests" / "newcomers" / f"{name}.py", tmp_path / "src" / folder)
    settings = [
        "federation.algorithm.name=sign_step", "federation.algorithm.server_lr=0.01",
        "federation.aggregation.name=midhinge", "data.partition.name=by_length", "data.dataset.name=weather",
        "federation.total_clients=4", "federation.participation_rate=0.75", "federation.selection.name=longest_away",
        "federation.num_rounds=2",
        "training.local_steps=2", "training.batch_size=2", "model.max_length=16", "data.max_samples=60",
        "evaluation.max_blocks=4", "evaluation.general=none", "metrics.memory=false", f"logging.results_dir={tmp_path}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-m", "fedfault", "run", "quickstart", *settings]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "quickstart" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = (json.loads(lines[i])["scores"]["validation"]["loss"] for i in (0, -1))
    assert last < first
    code = "from fedfault.diagnosis.detection import build_detectors; print(*build_detectors())"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "lost_ground" in found.stdout.split()


def bold():
    """Half of the way, and it says that it stands everything."""

    @stands("refactors", "folds")
    def server(state, got, average):
        x = state.adapter
        return replace(state, adapter=x + 0.5 * (average(got["x"], got["n"]) - x))

    return replace(fedavg(), server=server)


def naive_median():
    """Absent slices vote with zeros, and nothing says that it is no mean."""
    return Aggregation(lambda got: Pooled(replace(got.before, flat=got.sent.flat.median(dim=0).values)))


def naive_split(*, min_samples: int = 1):
    """Always in the order of the documents."""
    return lambda documents, n, generator: Deal(np.array_split(np.arange(len(documents)), n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "builder", "told"),
    [
        (
            "algorithm",
            bold,
            "with fedrot_lora, in round 3, the weights after the step are not those with a plain average",
        ),
        ("aggregation", naive_median, "an aggregation that takes another location is `robust`"),
        ("aggregation", naive_median, "it would have no gradient, and the rank would shrink in silence"),
        ("partition", naive_split, "The generator is the only source of chance, and it is used"),
        ("partition", naive_split, "201 clients were dealt 200 documents"),
    ],
)
def test_a_newcomer_that_breaks_a_rule_is_told_which(kind, builder, told):
    assert told in find_broken(kind, builder)


@lru_cache
def find_broken(kind, builder) -> str:
    with pytest.raises(RuleBroken) as e:
        check(kind, builder)
    return str(e.value)


@pytest.mark.slow
def test_one_that_does_not_declare_what_it_does_is_found_out():
    """A server with a memory of its own would take another step with FlexLoRA, and no trait would refuse it."""
    from fedfault.aggregations.flexlora import flexlora

    def undeclared():
        """FlexLoRA that keeps its trait to itself."""
        return replace(flexlora(), traits=frozenset())

    with pytest.raises(RuleBroken, match="with the algorithm fedadagrad, in round 3, the weights after the step"):
        check("aggregation", undeclared)
