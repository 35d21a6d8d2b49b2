"""Studies whose answers are known: run folders with planted losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.studies.study import Cell, Contrast, Hypothesis, Study
from fedfault.testing.histories import history
from handmade import write as write_run


def planted(folder, losses, state="healthy", status="finished", **config):
    """A finished run whose validation loss went like this, read back from its folder."""
    write_run(folder, history(losses), status=status, rounds=len(losses) - 1, **config)
    last = losses[-1]
    final = {"loss": last if abs(last) < 1e9 else None, "tokens": 1000}
    verdict = {"state": state, "since": None, "calibration": "made" if state == "healthy" else None}
    (folder / "metrics.json").write_text(json.dumps({"final": {"validation": final}, "verdict": verdict}))
    return read_run(folder)


def two_arms(folder, a, b, **more):
    """A study of arms `new` and `old`, whose runs end at these losses, and its runs."""
    runs = {}
    for arm, losses in (("new", a), ("old", b)):
        for seed, loss in enumerate(losses):
            runs[f"{arm}-{seed}"] = planted(folder / f"{arm}-{seed}", [5.0, loss])
    names = [Cell({"arm": arm}, tuple(f"{arm}-{i}" for i in range(len(a)))) for arm in ("new", "old")]
    return Study("trial", "", tuple(range(len(a))), tuple(names), **more), runs


def claim(name="h", expect="higher", by=0.1, metric="final.validation.loss", contrasts=None):
    return Hypothesis(name, f"claim {name}", metric, expect, by, tuple(contrasts or [Contrast(0, 1)]))


def draw_study(g: np.random.Generator, seeds: int, shifts: list[float]) -> tuple[Study, dict[str, RunData]]:
    """An arm a claim beside a common one, whose final losses differ by a shift, with normal noise of size 1."""
    arms = ("old", *(f"new{i}" for i in range(len(shifts))))
    noise = g.normal(size=(len(arms), seeds)) / math.sqrt(2)
    losses = dict(zip(arms, noise + np.array([0.0, *shifts])[:, None], strict=True))
    runs = {
        f"{arm}-{s}": RunData(
            Path(arm), (), {}, {"status": "finished"}, metrics={"final": {"validation": {"loss": losses[arm][s]}}}
        )
        for arm in arms
        for s in range(seeds)
    }
    cells = tuple(Cell({"arm": arm}, tuple(f"{arm}-{s}" for s in range(seeds))) for arm in arms)
    claims = tuple(claim(f"h{i}", by=0.0, contrasts=[Contrast(i + 1, 0)]) for i in range(len(shifts)))
    return Study("trial", "", tuple(range(seeds)), cells, claims), runs
