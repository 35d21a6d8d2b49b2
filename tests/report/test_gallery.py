"""The figures draw every run that can happen: short, lone, large, diverged, sparsely measured, forked, full of alarms."""

import dataclasses
import math

import matplotlib
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_hex

from fedfault.report import gallery
from fedfault.report.draw import png, svg
from fedfault.report.theme import DARK, LIGHT
from fedfault.runs.recorded import Fork, RunData
from handmade import clocked, finding, make, turn

FORK = Fork("parent", 1, {"training.lr": (0.003, 0.001)}, make(rounds=5).records)
TURNS = [[turn(k % 4, ("fast", "slow")[k % 2], 2 + r + k % 4, seconds=k % 4) for k in (r, r + 1)] for r in (1, 2, 3)]
USUAL = clocked(TURNS, probed=True, forks=(FORK,), findings=(finding(round=3), finding("slow", 1, "suspect")))
BARE = make(general=False)
RUNS = {
    "one_round": make(rounds=1, probed=True),
    "before_training": make(rounds=0),
    "one_client": make(clients=1, topics=("all",)),
    "every_third_round": make(rounds=7, every=3),
    "large": make(rounds=70, clients=300, topics=tuple(f"topic {i}" for i in range(50)), every=10, probed=True),
    "diverged": make(loss=lambda r, t: 4.0 + t if r < 2 else math.nan),
    "infinite": make(loss=lambda r, t: math.inf),
    "exploding": make(rounds=6, loss=lambda r, t: 3.0 * 10**r + t),
    "awkward_names": make(topics=("$x$", "_hidden", "日本語 \U0001f600", "<b>" * 40)),
    "no_split": RunData(BARE.folder, BARE.records),
    "probes_not_finite": dataclasses.replace(
        USUAL,
        records=tuple(dataclasses.replace(r, probes=dict.fromkeys(r.probes, math.nan)) for r in USUAL.records),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.FIGURES)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_figure_draws_every_run_without_a_warning(run, name):
    figure = gallery.FIGURES[name](run)
    if figure is not None:
        figure.draw_without_rendering()
        assert figure.axes


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", gallery.FIGURES)
def test_nothing_that_is_drawn_is_cut_off(name, narrow):
    figure = gallery.FIGURES[name](USUAL, narrow=narrow)
    figure.draw_without_rendering()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1


def test_what_was_not_measured_gives_no_figure():
    measured = {name for name, plot in gallery.FIGURES.items() if plot(BARE) is not None}
    assert measured == {"loss_by_topic", "clients", "fairness", "participation", "split", "traffic"}
    assert gallery.FIGURES["split"](RUNS["no_split"]) is None
    for name in ("participation", "fairness", "drift"):
        assert gallery.FIGURES[name](RUNS["before_training"]) is None


def test_rounds_are_whole_numbers():
    for run in (USUAL, RUNS["one_round"], RUNS["large"]):
        for name in ("loss_by_topic", "drift", "participation", "traffic"):
            for ax in gallery.FIGURES[name](run).axes:
                if ax.get_xlabel() == "round":
                    assert all(float(tick).is_integer() for tick in ax.get_xticks())


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)
def test_a_figure_has_the_colours_of_its_theme_and_fits_a_phone(theme):
    figure = gallery.FIGURES["general"](USUAL, theme, narrow=True)
    assert figure.get_figwidth() == 4.0
    assert to_hex(figure.get_facecolor()) == theme.surface
    assert theme.palette[1] in svg(figure)
    assert png(figure, dpi=20).startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_picture():
    assert svg(gallery.FIGURES["general"](USUAL)) == svg(gallery.FIGURES["general"](USUAL))


def test_figures_leave_pyplot_and_its_settings_alone():
    before = dict(matplotlib.rcParams)
    gallery.FIGURES["traffic"](USUAL, DARK)
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # what pyplot holds on to


def test_a_file_is_written_whole(tmp_path):
    gallery.write(gallery.FIGURES["general"](USUAL), tmp_path / "general.png", dpi=20)
    assert [p.name for p in tmp_path.iterdir()] == ["general.png"]
