"""The worked example of central differential privacy says what each round has cost."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from fedfault.flower.client import app
from fedfault.flower.local import LocalGrid
from small import SMALL

EXAMPLE = Path(__file__).parents[2] / "deploy" / "central_dp.py"


def epsilon(rounds: int, noise: float, delta: float) -> float:
    """Of a Gaussian mechanism, by its Renyi divergence a T / (2 z^2): Canonne, Kamath and Steinke, 2004.00010, prop. 12."""
    a = np.linspace(1.01, 60, 100_000)
    each = a * rounds / (2 * noise**2) + np.log((a - 1) / a) - (np.log(delta) + np.log(a)) / (a - 1)
    return float(each.min())


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason='pip install "flwr[dp]"')
def test_the_example_prints_the_epsilon_of_every_round(capsys):
    example = runpy.run_path(str(EXAMPLE))
    arrays, _ = example["train"](LocalGrid(app, LocalGrid.partitions(3)), ["quickstart", *SMALL])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("nothing spent")
    found = [re.fullmatch(r"round (\d): perplexity [\d.]+, epsilon ([\d.]+) at delta 0.01", line) for line in rest]
    spent = {int(m[1]): float(m[2]) for m in found}
    assert spent == pytest.approx({t: epsilon(t, example["NOISE"], example["DELTA"]) for t in (1, 2, 3)}, rel=0.01)
    assert np.isfinite(arrays["x"].numpy()).all()
