"""A program as a user may write it, which mypy checks strictly: every public name has its types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedfault as ff


def train(rate: float) -> ff.Run:
    settings: Mapping[str, Any] = {"training": {"lr": rate}}
    return ff.run("quickstart", settings, federation__num_rounds=2, quiet=True, plugins=["mine.py"])


def use() -> str:
    first, other = train(1e-3), ff.fork("results/quickstart", round=1, training__lr=1e-4)
    found: ff.Comparison = ff.compare([first, other, Path("results/third")])
    study: ff.Study = ff.study("quick", seeds=3, jobs=2)
    page: Path = first.report()
    calibration: Path = ff.calibrate("quickstart", controls=3)
    state: str = ff.diagnose(ff.resume(first), str(calibration)).verdict.state
    text: str = ff.check(data__partition="iid") + ff.list("algorithm")
    losses: list[float] = []
    for after, record in ff.rounds({"seed": 1}):
        assert isinstance(after, ff.State)
        losses.append(record.scores["validation"].loss)
    try:
        ff.open("nowhere")
    except ff.UserError as e:
        text += str(e)
    names: list[str] = [run.name for run in ff.runs("results", "state=degraded", sort="score")]
    return f"{page}{state}{text}{losses}{names}{found.page}{study.table(latex=True)}{first.rounds['loss'].min()}"
