"""The figures draw every run that can happen: short, lone, large, diverged, sparsely measured, forked, full of alarms."""

import math
from dataclasses import replace
from functools import cache

import matplotlib
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_hex

from fedfault.errors import UserError
from fedfault.records import RoundRecord
from fedfault.report import gallery
from fedfault.report.draw import render_png, render_svg
from fedfault.report.theme import DARK, LIGHT
from fedfault.runs.recorded import Fork, RunData
from handmade import clocked, finding, make, turn


@cache
def usual() -> RunData:
    """A run in which everything is measured, on simulated hardware, forked and found to fail."""
    fork = Fork("parent", 1, {"training.lr": (0.003, 0.001)}, make(rounds=5).records)
    turns = [
        [turn(k % 4, ("fast", "slow")[k % 2], 2 + r + k % 4, seconds=k % 4) for k in (r, r + 1)] for r in (1, 2, 3)
    ]
    found = (finding(round=3), finding("slow", 1, "suspect"))
    blamed = tuple(
        {"round": 2, "client": k, "score": "validation", "left_out": 0.1 - 0.1 * k, "shapley": 0.2, "error": 0.01}
        for k in range(3)
    )
    personal = tuple(
        {"client": k, "model": model, "loss": 3.0 + 0.1 * k - 0.2 * i, "targets": 10, "metrics": {}}
        for k in range(3)
        for i, model in enumerate(("global", "own", "tuned", "alone"))
    )
    run = clocked(turns, probed=True, forks=(fork,), findings=found, blamed=blamed, personal=personal)
    return replace(run, records=tuple(map(let_updates_be_stale, run.records)))


def let_updates_be_stale(record: RoundRecord) -> RoundRecord:
    """The record with updates of clients that were sent the model 0, 1, ... rounds before."""
    clients = (replace(c, probes={**c.probes, "staleness": float(s)}) for s, c in enumerate(record.clients))
    return replace(record, clients=tuple(clients))


def unsplit() -> RunData:
    run = make(general=False)
    return RunData(run.folder, run.records)


def unmeasurable() -> RunData:
    """No probe is a finite number."""
    records = (replace(r, probes=dict.fromkeys(r.probes, math.nan)) for r in usual().records)
    return replace(usual(), records=tuple(records))


RUNS = {
    "one_round": lambda: make(rounds=1, probed=True),
    "before_training": lambda: make(rounds=0),
    "one_client": lambda: make(clients=1, topics=("all",)),
    "every_third_round": lambda: make(rounds=7, every=3),
    "large": lambda: make(rounds=70, clients=300, topics=[f"topic {i}" for i in range(50)], every=10, probed=True),
    "diverged": lambda: make(loss=lambda r, t: 4.0 + t if r < 2 else math.nan),
    "infinite": lambda: make(loss=lambda r, t: math.inf),
    "exploding": lambda: make(rounds=6, loss=lambda r, t: 3.0 * 10**r + t),
    "awkward_names": lambda: make(topics=("$x$", "_hidden", "日本語 \U0001f600", "<b>" * 40)),
    "no_split": unsplit,
    "probes_not_finite": unmeasurable,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) if n in ("large", "probes_not_finite") else n for n in RUNS],
)
def test_every_run_is_drawn_without_a_warning(name):
    recorded = RUNS[name]()
    for panel, plot in gallery.FIGURES.items():
        figure = plot(recorded)
        if figure is not None:
            figure.draw_without_rendering()
            assert figure.axes, panel


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.FIGURES)
def test_nothing_that_is_drawn_is_cut_off(name):
    for narrow in (False, True):
        figure = gallery.FIGURES[name](usual(), narrow=narrow)
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.bbox_inches
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= page.x1
        assert box.y1 <= page.y1


@pytest.mark.slow
def test_what_was_not_measured_gives_no_figure():
    measured = {name for name, plot in gallery.FIGURES.items() if plot(make(general=False)) is not None}
    assert measured == {"loss_by_topic", "clients", "fairness", "participation", "split", "traffic"}
    assert gallery.FIGURES["split"](unsplit()) is None
    for name in ("participation", "fairness", "drift"):
        assert gallery.FIGURES[name](RUNS["before_training"]()) is None


@pytest.mark.slow
def test_rounds_are_whole_numbers():
    for run in (usual(), RUNS["one_round"](), make(rounds=70, every=10, probed=True)):
        for name in ("loss_by_topic", "drift", "participation", "traffic"):
            for ax in gallery.FIGURES[name](run).axes:
                if ax.get_xlabel() == "round":
                    assert all(float(tick).is_integer() for tick in ax.get_xticks())


@pytest.mark.slow
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)
def test_a_figure_has_the_colours_of_its_theme_and_fits_a_phone(theme):
    figure = gallery.FIGURES["general"](usual(), theme, narrow=True)
    assert figure.get_figwidth() == 4.0
    assert to_hex(figure.get_facecolor()) == theme.surface
    assert theme.palette[1] in render_svg(figure)
    assert render_png(figure, dpi=20).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_run_gives_the_same_picture():
    assert render_svg(gallery.FIGURES["general"](usual())) == render_svg(gallery.FIGURES["general"](usual()))


def test_figures_leave_pyplot_and_its_settings_alone():
    before = dict(matplotlib.rcParams)
    gallery.FIGURES["traffic"](usual(), DARK)
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # what pyplot holds on to


@pytest.mark.slow
def test_a_file_is_written_whole(tmp_path):
    gallery.write_figure(gallery.FIGURES["general"](usual()), tmp_path / "general.png", dpi=20)
    assert [p.name for p in tmp_path.iterdir()] == ["general.png"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_a_figure_is_written_as_its_ending_says(tmp_path, kind, begins):
    file = tmp_path / f"general{kind}"
    for _ in range(2):  # the same figure gives the same file
        gallery.write_figure(gallery.FIGURES["general"](usual()), file, dpi=20)
        before = file.read_bytes()
    assert before.startswith(begins)
    gallery.write_figure(gallery.FIGURES["general"](usual()), file, dpi=20)
    assert file.read_bytes() == before


def test_another_ending_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"general.jpg: a figure is written as .png, .pdf, .svg"):
        gallery.write_figure(gallery.FIGURES["general"](usual()), tmp_path / "general.jpg")
    assert not [*tmp_path.iterdir()]
