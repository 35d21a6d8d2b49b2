"""What a study says of its clients, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.report.theme import LIGHT
from fedfault.runs.recorded import RunData
from fedfault.studies.clients import (
    compare_clients,
    format_clients,
    tabulate_clients,
    tabulate_clusters,
    tabulate_differences,
)
from fedfault.studies.figures import draw_clients
from fedfault.studies.results import Results
from fedfault.studies.study import Cell, Contrast, Study
from planted import claim

LOSSES = {
    "clusters": [(1.0, 2.0, 1.0, 2.0, 1.0), (1.5, 1.5, 1.5, 1.5, 1.5)],
    "vanilla": [(1.5, 1.5, 1.5, 2.5, 1.5), (1.5, 2.0, 2.0, 2.0, 2.0)],
    "central": [(1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0)],
}


def run(arm: str, seed: int, losses, **config) -> RunData:
    """Two clients trained three steps each; every client began at a loss of 3."""
    client = ClientRecord(0, 1.0, steps=3, tokens=9, loss=1.0, grad_norm=1.0, update_norm=1.0, bytes_up=8, bytes_down=8)

    def scores(values):
        return {f"client/{k}": Score(loss, 10) for k, loss in enumerate(values)}

    records = (
        RoundRecord(0, scores=scores([3.0] * len(losses))),
        RoundRecord(1, (client, client), scores(losses), bytes_up=16, bytes_down=984, seconds={"train": 1.5}),
    )
    fairness = {"losses": {"worst": max(losses)}, "gains": {"worst": 3.0 - max(losses)}}
    config = {
        "seed": seed,
        "federation": {"centralised": arm == "central"},
        "data": {"task_type": "causal_lm"},
    } | config
    return RunData(Path(arm), records, config, {"status": "finished"}, metrics={"fairness": fairness})


def study(losses=LOSSES, seeds=2, metric="client_loss", **config) -> Results:
    """Claims about the first arm beside each of the others."""
    cells = tuple(Cell({"arm": arm}, tuple(f"{arm}-{s}" for s in range(seeds))) for arm in losses)
    claims = tuple(claim(f"h{i}", metric=metric, contrasts=[Contrast(0, i)]) for i in range(1, len(losses)))
    runs = {f"{arm}-{s}": run(arm, s, losses[arm][s], **config) for arm in losses for s in range(seeds)}
    return Results(Path(), Study("trial", "", tuple(range(seeds)), cells, claims), runs)


def test_differences_are_paired_by_client_and_seed():
    vanilla, central = compare_clients(study())
    assert vanilla.by_seed[0] == {"0": -0.5, "1": 0.5, "2": -0.5, "3": -0.5, "4": -0.5}
    assert vanilla.mean == pytest.approx((-0.3 - 0.4) / 2)
    assert central.mean == pytest.approx((0.4 + 0.5) / 2)
    half = 12.7062 * 0.05  # Student's t with one degree of freedom; the means of the seeds are -0.3 and -0.4
    assert vanilla.interval == pytest.approx((-0.35 - half, -0.35 + half), abs=1e-4)
    (alone, _) = compare_clients(study(seeds=1))  # clients differ by -0.5 four times, and by 0.5 once: sd 0.4472
    assert alone.interval == pytest.approx((-0.3 - 2.7764 * 0.2, -0.3 + 2.7764 * 0.2), abs=1e-4)


def test_the_tables_say_who_is_better_off_and_what_it_took():
    r = study()
    assert tabulate_clients(r).rows == [
        ["clusters", "1.450 (0.815 to 2.085)", "1.750", "1.250", "6", "1.00 kB", "1.5 s"],
        ["vanilla", "1.800 (0.529 to 3.071)", "2.250", "0.750", "6", "1.00 kB", "1.5 s"],
        ["central", "1.000", "1.000", "2.000", "6", "–", "1.5 s"],
    ]
    vanilla, central = tabulate_differences(r, compare_clients(r)).rows
    assert (vanilla[:2], vanilla[3:]) == (["clusters − vanilla", "−0.350"], ["8 of 10", "1 of 10"])
    assert central[3:] == ["0 of 10", "7 of 10"]


def test_the_same_is_said_as_text_with_an_interval_where_there_is_one():
    line, _ = format_clients(study())
    assert line.startswith("clients       clusters − vanilla: −0.350 (−0.")
    lone = {arm: [by_seed[0][:1]] for arm, by_seed in LOSSES.items()}
    assert format_clients(study(lone, seeds=1))[0] == "clients       clusters − vanilla: −0.500, 1 of 1 better off"


def test_clients_are_told_only_where_a_hypothesis_is_about_them():
    r = study(metric="gain")
    assert tabulate_clients(r) is None
    assert tabulate_differences(r, compare_clients(r)) is None
    assert draw_clients(r, LIGHT, narrow=False) is None


def test_arms_whose_clients_hold_other_texts_are_not_paired():
    r = study()
    other = run("vanilla", 0, LOSSES["vanilla"][0], data={"task_type": "causal_lm", "partition": {"name": "iid"}})
    r.runs["vanilla-0"] = other
    assert list(compare_clients(r)[0].by_seed) == [1]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("lost", [{}, {"vanilla": [(math.nan, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, math.inf)]}])
def test_the_figure_has_a_row_for_every_contrast_also_where_a_run_diverged(narrow, lost):
    figure = draw_clients(study({**LOSSES, **lost}), LIGHT, narrow)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["clusters − vanilla", "clusters − central"]


def test_clusters_that_runs_found_are_listed():
    r = study()
    found = {"sentence": "2 clusters: [0, 2, 4], [1, 3]", "agreement": 1.0}
    r.runs["clusters-1"] = RunData(Path(), (), clusters=found)
    assert tabulate_clusters(r).rows == [["clusters", "1", "2 clusters: [0, 2, 4], [1, 3]", "1.00"]]
    assert tabulate_clusters(study()) is None


def test_the_worst_client_and_the_smallest_gain_are_under_the_models_that_clients_use():
    """Beside the loss of tuned models stood the worst of the model before: no client had one."""
    r = study(seeds=1)
    tuned = [{"client": k, "model": "tuned", "loss": 0.5 + 0.1 * k} for k in range(5)]
    r.runs["vanilla-0"] = replace(r.runs["vanilla-0"], personal=tuned)
    rows = {row[0]: row[1:4] for row in tabulate_clients(r).rows}
    assert rows["vanilla"] == ["0.700", "0.900", "2.100"]
    r.runs["vanilla-0"] = replace(r.runs["vanilla-0"], personal=[*tuned[:4], {**tuned[4], "loss": None}])
    rows = {row[0]: row[1:4] for row in tabulate_clients(r).rows}
    assert rows["vanilla"] == ["diverged in 1 of 1"] * 3
