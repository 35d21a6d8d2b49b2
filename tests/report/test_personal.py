"""Who gains by a model of its own, as the report says it; and how old updates were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedfault.report.figures.personal import draw_personal
from fedfault.report.figures.staleness import draw_staleness
from fedfault.report.personal import describe_personal, tabulate_personal
from handmade import make

LOSSES = {"global": [2.0, 2.0, 3.0, None], "tuned": [1.0, 2.5, 2.5, 1.0]}
ROWS = tuple(
    {"client": k, "model": model, "loss": loss, "targets": 9, "metrics": {}}
    for model, losses in LOSSES.items()
    for k, loss in enumerate(losses)
)


@pytest.fixture
def run():
    return make(personal=ROWS)


def test_means_are_of_what_is_finite_and_a_silent_client_is_named(run):
    first, *rest = describe_personal(run)
    assert first.endswith("2.333 with the server's model, 1.750 with the model that it trained on.")
    assert rest == []
    few = replace(run, personal=tuple(row for row in ROWS if row["client"] < 3))
    assert describe_personal(few)[1] == "1 client held nothing back, or lost more than can be counted."


def test_the_table_counts_who_is_better_and_worse_off(run):
    """Differences -1, 0.5 and -0.5: mean -0.333, and Student's interval 4.303 * 0.7638 / sqrt 3 = 1.897 around it."""
    (row,) = tabulate_personal(run).rows
    assert row[1:] == ["−0.333", "−2.231 to +1.564", "2 of 3", "1 of 3"]


def test_every_client_has_a_row_and_every_model_a_mark(run):
    (ax,) = draw_personal(run).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    lines = {line.get_label(): line.get_xdata().tolist() for line in ax.lines if not line.get_label().startswith("_")}
    assert lines == {"the server's": [2.0, 2.0, 3.0], "trained on": [1.0, 2.5, 2.5, 1.0]}


def test_without_models_of_their_own_nothing_is_said():
    assert (describe_personal(make()), tabulate_personal(make()), draw_personal(make())) == ([], None, None)


def test_updates_are_counted_by_their_age():
    run = make(rounds=3)
    ages = [(), (0, 2), (2, 0), (0, 0)]
    records = [
        replace(
            r,
            clients=tuple(replace(c, probes={"staleness": float(old)}) for c, old in zip(r.clients, own, strict=True)),
        )
        for r, own in zip(run.records, ages, strict=True)
    ]
    (ax,) = draw_staleness(replace(run, records=tuple(records))).axes
    assert [bar.get_height() for bar in ax.patches] == [4, 0, 2]
    assert ax.get_title(loc="left") == "6 updates, 0.7 rounds stale on average"
    assert draw_staleness(run) is None
