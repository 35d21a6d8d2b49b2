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
    with ff.Monitor("theirs", settings={"lr": 1e-3}) as monitor:
        found_now: list[ff.Finding] = monitor.log(0, loss=3.0, updates=[[1.0, 2.0]], client_losses={0: [1.0, 2.0]})
    text += str(monitor.verdict["state"]) + "".join(f.sentence for f in found_now)
    strategy = ff.Watched(object(), "flower", loss="eval_loss", results_dir=Path("results"))
    watch = ff.ClientCallback(strategy.monitor)
    text += "".join(f.level for f in watch.log(1, loss=2.0))
    judged: ff.Run = ff.diagnose(adapters="folder", csv=Path("losses.csv"), frozen=["lora_A"], out="results/judged")
    text += judged.verdict.sentence
    try:
        ff.open("nowhere")
    except ff.UserError as e:
        text += str(e)
    names: list[str] = [run.name for run in ff.runs("results", "state=degraded", sort="score")]
    return f"{page}{state}{text}{losses}{names}{found.page}{study.table(latex=True)}{first.rounds['loss'].min()}"
