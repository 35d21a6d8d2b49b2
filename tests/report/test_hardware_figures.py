"""Ranks, the Gantt chart and the clock: cells, bars and points where the records put them, and any run that can happen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from fedfault.report import gallery
from fedfault.report.figures.clock import draw_clock, draw_gantt
from fedfault.report.figures.tiers import draw_client_ranks
from fedfault.report.theme import DARK, LIGHT
from handmade import client, clocked, make, turn

TURNS = [
    [turn(0, rank=8, seconds=1.0), turn(2, "slow", 2, seconds=1.8), turn(3, "slow", 4, "dropped", seconds=4.0)],
    [turn(1, rank=6, seconds=0.5), turn(3, "slow", 2, seconds=1.5)],
    [turn(2, "slow", fate="excluded"), turn(3, "slow", 2, "partial", seconds=2.4)],
]
CROWD = [turn(k, ("fast", "middle", "slow")[k * 3 // 100], 2 + k % 9, seconds=0.5 + k / 100) for k in range(100)]
RUNS = {
    "usual": lambda: clocked(TURNS),
    "one_client": lambda: clocked([[turn(0, rank=4)], [turn(0, fate="dropped", seconds=3.0)]], 1, topics=("all",)),
    "one_round": lambda: clocked(TURNS[:1]),
    "nobody_trained": lambda: clocked([[turn(0, fate="excluded")], [turn(1, fate="dropped", seconds=5.0)], []]),
    "nobody_drawn": lambda: clocked([[], TURNS[0]]),
    "all_late": lambda: clocked([[turn(k, fate="late", seconds=3.0) for k in range(4)]]),
    "crowd": lambda: clocked([[replace(t, rank=t.rank + r % 3) for t in CROWD] for r in range(40)], clients=100),
    "beyond_a_panel": lambda: clocked([[turn(k, "ab"[k % 2], 4 + k % 2, seconds=k / 100) for k in range(150)]], 150),
    "long": lambda: clocked([[turn(r % 3, rank=1 + r % 8), turn(3, "slow", 1, "partial", 2.2)] for r in range(200)]),
    "scored_now_and_then": lambda: clocked(TURNS, every=2),
    "labels": lambda: clocked(TURNS, probed=True),
}


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]]


def title(ax):
    return ax.get_title(loc="left")


def names(legend):
    return [t.get_text() for t in legend.get_texts()]


@pytest.mark.long
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_run_is_drawn_within_a_narrow_figure(run):
    recorded = run()
    for name in ("client_ranks", "gantt", "clock"):
        figure = gallery.FIGURES[name](recorded, DARK, narrow=True)
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.bbox_inches
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= page.x1, name
        assert box.y1 <= page.y1, name


def test_a_cell_is_the_rank_of_a_client_that_was_drawn():
    image = draw_client_ranks(RUNS["usual"]()).axes[0].images[0]
    no = np.nan
    # clients 0 to 3; 2 was left out of round 3
    expected = [[8, no, no], [no, 6, no], [2, no, no], [4, 2, 2]]
    np.testing.assert_array_equal(image.get_array().filled(np.nan), expected)
    assert image.get_clim() == (1.5, 8.5)  # a colour for each of 2, ..., 8
    assert image.get_cmap().N == 7


def test_a_sign_says_who_was_not_done():
    ax = draw_client_ranks(RUNS["usual"]()).axes[0]
    signs = {
        (x, y): m.get_marker() for m in ax.lines if m.get_marker() != "None" for x, y in np.transpose(m.get_data())
    }
    assert signs == {(1, 3): "x", (3, 3): "o", (3, 2): "_"}
    assert names(ax.get_legend()) == ["partial", "dropped", "left out"]
    assert title(ax) == "LoRA ranks from 2 to 8"


def test_where_cells_are_too_small_for_signs_they_are_painted():
    ranks, painted = draw_client_ranks(RUNS["long"]()).axes[0].images
    assert to_hex(painted.get_array()[3, 0]) == LIGHT.palette[4]
    assert not painted.get_array()[:3].any()
    assert ranks.get_array().shape == (4, 200)


@pytest.mark.slow
def test_clients_stand_by_tier_and_the_first_of_each_has_its_name():
    run = clocked([[turn(0, "slow", 2), turn(1, "fast", 4), turn(2, "slow", 4)]], clients=3)
    assert {"slow 0", "2", "fast 1"} <= set(texts(draw_client_ranks(run)))
    assert [t.get_text() for t in draw_client_ranks(run).axes[0].get_yticklabels()] == ["slow 0", "2", "fast 1"]
    many = draw_client_ranks(RUNS["crowd"]()).axes[0]
    assert [t.get_text() for t in many.get_yticklabels()] == ["fast (34)", "middle (33)", "slow (33)"]


def test_a_client_that_was_never_drawn_has_the_tier_of_the_configuration():
    run = clocked([[turn(0, "fast"), turn(1, "fast", 4)]], clients=3)
    tiers = [{"name": "fast", "count": 2}, {"name": "slow", "count": 1}]
    assert replace(run, config={**run.config, "tiers": tiers}).tiers == ("fast", "fast", "slow")
    assert run.tiers == ("fast", "fast", "")
    assert make().tiers == ()


def test_equal_ranks_of_which_all_were_done_need_no_figure():
    assert draw_client_ranks(clocked([[turn(0), turn(1)]])) is None
    assert draw_client_ranks(make()) is None
    assert draw_client_ranks(clocked([[turn(0), turn(1, fate="late", seconds=3.0)]])) is not None


def test_unequal_ranks_are_shown_without_simulated_hardware_too():
    run = make(rounds=1)
    trained = (replace(client(0), rank=4), replace(client(1), rank=8))
    run = replace(run, records=(run.records[0], replace(run.records[1], clients=trained)))
    assert draw_client_ranks(run).axes[0].images[0].get_array()[:2, 0].tolist() == [4, 8]
    assert draw_gantt(run) is None
    assert draw_clock(run) is None


def test_bars_are_download_training_and_upload_one_after_another():
    figure = draw_gantt(RUNS["usual"]())
    # round 1 lasts to the deadline of 2 s as the slowest, round 2 is 1.5 s; round 3 stops at 0.24 + 0.84 + 0.48 = 1.56 s
    assert [title(ax) for ax in figure.axes] == ["Round 1: first, slowest", "Round 3: median"]
    bars = [(b.get_y() + b.get_height() / 2, b.get_x(), b.get_width()) for b in figure.axes[0].patches]
    # clients 0, 2, 3: of 1 s, 1.8 s, and 4 s that are cut at 2 s: 0.4 s of download and 1.6 s of training
    expected = [(0, 0, 0.1), (1, 0, 0.18), (2, 0, 0.4), (0, 0.1, 0.7), (1, 0.18, 1.26), (2, 0.4, 1.6)]
    expected += [(0, 0.8, 0.2), (1, 1.44, 0.36), (2, 2.0, 0.0)]
    np.testing.assert_allclose(bars, expected, atol=1e-12)
    upright = [m.get_xdata()[0] for m in figure.axes[0].lines if list(m.get_ydata()) == [0, 1]]
    assert upright == [2.0]
    (sign,) = [m for m in figure.axes[0].lines if m.get_marker() != "None"]
    assert (sign.get_marker(), sign.get_color(), list(sign.get_ydata())) == ("x", LIGHT.alarm, [2])
    assert names(figure.legends[0]) == [
        "download", "training", "upload", "deadline", "partial", "dropped", "left out",
    ]  # fmt: skip


def test_of_rounds_that_are_equally_long_the_slowest_has_the_most_work_left():
    rounds = [[turn(0, fate="dropped", seconds=s), turn(1, "b")] for s in (3.0, 9.0, 4.0)]
    assert [title(ax) for ax in draw_gantt(clocked(rounds)).axes] == [
        "Round 1: first",
        "Round 2: slowest",
        "Round 3: median",
    ]


def test_equal_hardware_without_a_deadline_needs_no_gantt_chart():
    assert draw_gantt(clocked([[turn(0, rank=4), turn(1)]], deadline=None)) is None
    assert draw_gantt(clocked([[turn(0, rank=4), turn(1, "slow")]], deadline=None)) is not None
    switched_off = clocked(TURNS[1:2])
    about = {"deadline": {"enabled": False, "seconds": 2.0}}
    assert replace(switched_off, config=about).deadline is None


@pytest.mark.slow
def test_of_many_clients_the_slowest_are_shown():
    ax = draw_gantt(RUNS["beyond_a_panel"]()).axes[0]
    widths = [b.get_width() for b in ax.patches[:100]]  # download: a tenth of 0.50, ..., 1.49 s, tier by tier
    np.testing.assert_allclose(sorted(widths), np.arange(50, 150) / 1000)
    assert ax.get_ylabel() == "the 100 slowest clients"


def test_the_score_stands_at_the_simulated_second_in_which_it_was_reached():
    score, length, prompt, regret = draw_clock(RUNS["usual"]()).axes
    (line,) = score.lines
    np.testing.assert_allclose(line.get_xdata(), [0.0, 2.0, 3.5, 5.06])
    np.testing.assert_allclose(line.get_ydata(), [4.1, 4.0, 3.9, 3.8])
    assert score.get_xlabel() == "simulated seconds since the start"
    np.testing.assert_allclose(length.lines[-1].get_ydata(), [2.0, 1.5, 1.56])
    np.testing.assert_allclose(prompt.lines[-1].get_ydata(), [2 / 3, 1.0, 0.0])
    np.testing.assert_allclose(regret.lines[-1].get_ydata(), [1.25] * 3)


def test_compliance_is_shown_where_somebody_could_be_late_and_only_of_rounds_with_work():
    assert len(draw_clock(clocked(TURNS[1:2], deadline=None)).axes) == 3
    prompt = draw_clock(clocked([TURNS[1], [turn(0, fate="excluded")], TURNS[0]])).axes[2]
    assert list(prompt.lines[-1].get_xdata()) == [1, 3]


def test_a_target_is_a_line_at_the_metric():
    run = RUNS["labels"]()
    score = draw_clock(replace(run, config={**run.config, "evaluation": {"target_score": 0.7}})).axes[0]
    np.testing.assert_allclose(score.lines[0].get_ydata(), [0.5, 0.75, 1 - 0.5 / 3, 0.875])  # accuracy
    assert list(score.lines[1].get_ydata()) == [0.7, 0.7]
    assert "target" in [t.get_text() for t in score.texts]
    assert len(draw_clock(run).axes[0].lines) == 1
