"""The figures draw every run that can happen: short, lone, large, diverged, sparsely measured."""

import dataclasses
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_hex

from fedfault import plots
from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.report.data import RunData
from fedfault.report.draw import MARKERS, as_text, contrast, label, png, spread, svg, topic_colours


def client(k, loss=3.0):
    return ClientRecord(k, 0.5, 5, 320, loss, 1.0, 0.1, 1000, 2000)


def make(
    rounds=3, clients=4, topics=("news", "code"), every=1, loss=lambda r, t: 4.0 - 0.1 * r + 0.2 * t, general=True
):
    """A run in which client k mostly holds topic k mod T and two clients train a round."""
    held = [[9 if t == k % len(topics) else 1 for t in range(len(topics))] for k in range(clients)]
    records = []
    for r in range(rounds + 1):
        scores = {}
        if r % every == 0:
            scores = {f"topic/{t}": Score(loss(r, i), 10) for i, t in enumerate(topics)}
            scores |= {f"client/{k}": Score(loss(r, k), 10) for k in range(clients)}
            scores["validation"] = Score(loss(r, 0.5), 10)
            if general:
                scores["general"] = Score(3.0 + 0.01 * r, 10)
        who = [client(k % clients, loss(r, k)) for k in dict.fromkeys((r % clients, (r + 1) % clients))] if r else []
        probes = {"update_divergence": 1.2, "update_cosine": 0.6} if r else {}
        moved = 1000 * len(who)
        records.append(RoundRecord(r, tuple(who), scores, probes, moved, 2 * moved, {"train": 1.0, "evaluate": 0.5}))
    split = {"topics": list(topics), "clients": held, "tokens": [1000 * (k + 1) for k in range(clients)]}
    return RunData(Path("run"), tuple(records), {"experiment_name": "run"}, {}, split)


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]]


RUNS = {
    "usual": make(),
    "one_round": make(rounds=1),
    "before_training": make(rounds=0),
    "one_client": make(clients=1, topics=("all",)),
    "no_general": make(general=False),
    "every_third_round": make(rounds=7, every=3),
    "large": make(rounds=70, clients=300, topics=tuple(f"topic {i}" for i in range(50)), every=10),
    "diverged": make(loss=lambda r, t: 4.0 + t if r < 2 else math.nan),
    "infinite": make(loss=lambda r, t: math.inf),
    "exploding": make(rounds=6, loss=lambda r, t: 3.0 * 10**r + t),
    "constant": make(loss=lambda r, t: 2.0),
    "awkward_names": make(topics=("$x$", "_hidden", "日本語 \U0001f600", "<b>" * 40)),
    "entropy": dataclasses.replace(make(), split={**make().split, "floor": {"validation": 1.5}}),
    "no_split": RunData(Path("run"), make().records),
}


@pytest.mark.parametrize("name", plots.FIGURES)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_figure_draws_every_run_without_a_warning(run, name):
    figure = plots.FIGURES[name](run)
    if figure is not None:
        figure.draw_without_rendering()
        assert figure.axes


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=lambda t: t.name)
def test_a_figure_has_the_colours_of_its_theme_and_fits_a_phone(theme):
    figure = plots.general(RUNS["usual"], theme, narrow=True)
    assert figure.get_figwidth() == 4.0
    assert to_hex(figure.get_facecolor()) == theme.surface
    assert theme.palette[1].encode() in svg(figure)
    assert png(figure, dpi=20).startswith(b"\x89PNG")


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", plots.FIGURES)
def test_nothing_that_is_drawn_is_cut_off(name, narrow):
    figure = plots.FIGURES[name](RUNS["usual"], narrow=narrow)
    figure.draw_without_rendering()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1


def test_what_was_not_measured_gives_no_figure():
    assert plots.general(RUNS["no_general"]) is None
    assert plots.split(RUNS["no_split"]) is None
    assert plots.divergence(RUNS["before_training"]) is None
    assert plots.participation(RUNS["before_training"]) is None


def test_the_lines_are_the_recorded_losses():
    lines = plots.loss_by_topic(RUNS["every_third_round"]).axes[0].get_lines()
    by_end = {round(float(line.get_ydata()[-1]), 6): line for line in lines}
    assert list(by_end[3.4].get_xdata()) == [0, 3, 6]  # news, t = 0: 4.0 - 0.1 * 6
    np.testing.assert_allclose(by_end[3.6].get_ydata(), [4.2, 3.9, 3.6])  # code, t = 1


def test_a_marker_says_that_the_topic_took_part():
    run = make(rounds=3, clients=4)
    records = (run.records[0], *(RoundRecord(r.round, (client(0),), r.scores) for r in run.records[1:]))  # news alone
    figure = plots.loss_by_topic(RunData(run.folder, records, split=run.split))
    news, code = figure.axes[0].get_lines()[:2]
    assert (news.get_marker(), news.get_markevery()) == (MARKERS[0], [1, 2, 3])
    assert code.get_marker() == "None"


def test_forgetting_is_the_difference_to_round_zero():
    change = plots.general(RUNS["usual"]).axes[0].get_lines()[1].get_ydata()
    np.testing.assert_allclose(change, [0.0, 0.01, 0.02, 0.03], atol=1e-12)


def test_the_client_fan_is_percentiles():
    run = make(rounds=1, clients=11, loss=lambda r, t: float(t))  # held-out losses 0, 1, ..., 10
    ends = sorted(line.get_ydata()[-1] for line in plots.clients(run).axes[0].get_lines())
    assert ends == [0.0, 5.0, 10.0]


def test_a_loss_that_is_not_finite_is_marked_and_named():
    for plot in (plots.loss_by_topic, plots.clients):
        assert "× not finite" in texts(plot(RUNS["diverged"]))
        assert "× not finite" not in texts(plot(RUNS["usual"]))


def test_traffic_adds_up():
    up, down = plots.traffic(make(rounds=2)).axes[0].get_lines()
    np.testing.assert_allclose(up.get_ydata(), [0, 0.002, 0.004])  # MB, two clients a round
    np.testing.assert_allclose(down.get_ydata(), [0, 0.004, 0.008])


def test_rounds_are_whole_numbers():
    for name in ("one_round", "usual", "large"):
        for plot in plots.FIGURES.values():
            for ax in plot(RUNS[name]).axes:
                if ax.get_xlabel() == "round":
                    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_labels_stay_few_and_apart_when_there_are_many():
    assert len([t for t in texts(plots.participation(RUNS["large"])) if t.startswith("topic")]) <= 25
    assert spread([0.5, 0.5, 0.5], 0.2) == pytest.approx([0.3, 0.5, 0.7])
    assert spread([0.1, 0.6], 0.2) == [0.1, 0.6]
    assert spread([0.9, 1.0, 1.0], 0.2) == pytest.approx([0.6, 0.8, 1.0])  # not into the title
    assert spread([], 0.2) == []


def test_a_topic_has_one_colour_and_its_name_can_be_read():
    for theme in (plots.LIGHT, plots.DARK):
        colours = topic_colours(RUNS["large"], theme)
        assert len(set(colours.values())) == len(colours) == len(theme.palette)
        assert all(contrast(as_text(c, theme), theme.surface) >= 4.5 for c in colours.values())


def test_labels_are_one_short_line_of_plain_text():
    assert label("a\n b" + "c" * 50, 8) == "a bcccc…"
    assert label("$x$") == r"\$x\$"
    assert label("\U0001f9ff\x07") == "??"


def test_the_same_run_gives_the_same_picture():
    assert svg(plots.general(RUNS["usual"])) == svg(plots.general(RUNS["usual"]))


def test_figures_leave_pyplot_and_its_settings_alone():
    before = dict(matplotlib.rcParams)
    plots.traffic(RUNS["usual"], plots.DARK)
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # what pyplot holds on to


def test_save_all_writes_what_there_is(tmp_path):
    written = plots.save_all(RUNS["no_general"], tmp_path / "plots", dpi=20)
    assert {p.stem for p in written} == set(plots.FIGURES) - {"general"}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {p.name for p in written}


def test_a_known_entropy_is_a_line_below_the_losses():
    figure = plots.loss_by_topic(RUNS["entropy"])
    ax = figure.axes[0]
    (level,) = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert level == 1.5
    assert ax.get_ylim()[0] < 1.5
    assert "entropy" in texts(figure)
    assert "entropy" not in texts(plots.loss_by_topic(RUNS["usual"]))
