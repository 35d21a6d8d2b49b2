"""The figure of a study by the simulated clock: means at moments that all runs of an arm have reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedfault.records import RoundRecord, Score
from fedfault.report.theme import DARK, LIGHT
from fedfault.runs.recorded import RunData
from fedfault.studies.results import Results
from fedfault.studies.study import Cell, Study
from fedfault.studies.timeline import draw_timeline
from planted import claim


def course(seconds: float, *losses: float, **metrics: float) -> RunData:
    """A run whose rounds take so many seconds each, and end at these losses."""
    records = [
        RoundRecord(
            n, scores={"validation": Score(v, 9, metrics=metrics)}, probes={"round_seconds": seconds} if n else {}
        )
        for n, v in enumerate(losses)
    ]
    return RunData(Path("run"), tuple(records), manifest={"status": "finished"})


def study(metric: str = "loss_at.20", **runs: RunData) -> Results:
    arms = dict.fromkeys(name.split("_")[0] for name in runs)
    cells = [Cell({"arm": arm}, tuple(n for n in runs if n.startswith(f"{arm}_"))) for arm in arms]
    seeds = tuple(range(len(cells[0].runs)))
    return Results(Path(), Study("trial", "", seeds, tuple(cells), (claim(metric=metric),)), runs)


RUNS = {
    "fast_0": course(10.0, 4.0, 3.0, 2.0),
    "fast_1": course(15.0, 6.0, 3.0),
    "slow_0": course(40.0, 4.0, 3.0),
    "slow_1": course(40.0, 6.0, 5.0),
}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_mean_goes_as_far_as_all_runs_of_its_arm_and_is_linear_between_evaluations(theme):
    """At 0 s 5; at 15 s, where the second run ends, the first is half-way from 3 to 2, so that the mean is 2.75."""
    (ax,) = draw_timeline(study(**RUNS), theme, narrow=False).axes
    thick = {line.get_label(): line for line in ax.lines if line.get_linewidth() > 2}
    assert list(thick) == ["fast", "slow"]
    x, y = thick["fast"].get_data()
    assert (x[0], y[0], x[-1], y[-1]) == pytest.approx((0.0, 5.0, 15.0, 2.75))
    x, y = thick["slow"].get_data()
    assert (x[0], y[0], x[-1], y[-1]) == pytest.approx((0.0, 5.0, 40.0, 4.0))
    moments = [
        line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2 and line.get_color() == theme.muted
    ]
    assert moments == [20.0]


def test_means_are_over_the_seeds_that_all_arms_have():
    """With `seeds: auto` some arms take more than others."""
    r = study(**RUNS)
    (ax,) = draw_timeline(replace(r, runs={k: v for k, v in RUNS.items() if k != "slow_1"}), LIGHT, narrow=False).axes
    fast = next(line for line in ax.lines if line.get_label() == "fast")
    assert (fast.get_ydata()[0], fast.get_ydata()[-1]) == pytest.approx((4.0, 2.0))
    assert (
        draw_timeline(replace(r, runs={k: v for k, v in RUNS.items() if "slow" not in k}), LIGHT, narrow=False) is None
    )


def test_labels_are_shown_by_their_first_metric():
    runs = {
        name: replace(
            run, records=course(9.0, 1.0, 0.5, accuracy=0.7).records, config={"data": {"task_type": "classification"}}
        )
        for name, run in RUNS.items()
    }
    assert draw_timeline(study(**runs), LIGHT, narrow=True).axes[0].get_ylabel() == "validation accuracy"


def test_a_study_about_the_end_has_none():
    assert draw_timeline(study("final.validation.loss", **RUNS), LIGHT, narrow=False) is None


def test_there_is_no_figure_of_losses_that_one_axis_cannot_have():
    other = {"data": {"task_type": "preference"}}
    runs = {name: replace(run, config=other if name.startswith("slow") else {}) for name, run in RUNS.items()}
    assert draw_timeline(study(**runs), LIGHT, narrow=False) is None
