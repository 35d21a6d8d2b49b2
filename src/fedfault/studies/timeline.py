"""The figure of a study by the simulated clock: what every arm has learned by when, seed by seed and on average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedfault.measures.punctuality import elapsed_seconds
from fedfault.report.draw import make_canvas, set_loss_scale
from fedfault.report.theme import Theme, make_label
from fedfault.runs.recorded import RunData
from fedfault.studies.outcomes import TIMED
from fedfault.studies.results import Results

MOST = 8  # cells that can be told apart
POINTS = 200  # moments at which means over seeds are taken
STYLES = ("-", "--", "-.", ":")


def draw_timeline(r: Results, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the validation score over simulated seconds: a thin line a run, a thick one the mean over the seeds of a cell.

    Of seeds that all cells have, as other means could not be compared. None where no hypothesis is about a moment, where
    there is no such seed, for more cells than colours can tell apart, and for scores that one axis cannot have.
    """
    moments = sorted({float(found[1]) for a in r.answers if (found := TIMED.fullmatch(a.hypothesis.metric))})
    paired = _pair_runs(r)
    scores = {_name_score(run) for own in paired for run in own}
    courses = [[_read_course(run) for run in own] for own in zip(*paired, strict=True)]
    drawable = courses and len(courses) <= MOST and all(len(c) for own in courses for c in own)
    if not moments or len(scores) > 1 or not drawable:
        return None
    fig = make_canvas(narrow, 4.4 if narrow else 3.8)
    ax = fig.add_subplot()
    every = []
    for i, (cell, own) in enumerate(zip(r.study.cells, courses, strict=True)):
        colour = (theme.ink, *theme.palette)[i % (1 + len(theme.palette))]
        for course in own:
            ax.plot(*course.T, color=colour, lw=0.7, alpha=0.25)
        times, means = _average_courses(own)
        label = make_label(cell.name, 26)
        ax.plot(times, means, color=colour, lw=2.2, ls=STYLES[i % len(STYLES)], label=label, gid=label)
        every += [v for course in own for v in course[:, 1]]
    for moment in moments:
        ax.axvline(moment, color=theme.muted, lw=1, ls=(0, (4, 3)))
    set_loss_scale(ax, every)
    ax.set_xlabel("simulated seconds since the start")
    ax.set_ylabel(scores.pop())
    ax.grid(axis="both")
    fig.legend(loc="outside upper left", ncols=1 if narrow else 3, frameon=False, handlelength=2.4)
    return fig


def _pair_runs(r: Results) -> list[list[RunData]]:
    """The runs of every cell, in order, for each seed with which all of them are over."""
    by_seed = [[r.runs.get(cell.runs[i]) for cell in r.study.cells] for i in range(len(r.study.seeds))]
    return [
        [run for run in own if run is not None] for own in by_seed if all(run is not None and run.over for run in own)
    ]


def _name_score(run: RunData) -> str:
    metric = next(iter(run.metrics_measured), None)
    return f"validation {metric}" if metric else f"validation loss\n({run.unit})"


def _read_course(run: RunData) -> np.ndarray:
    """Seconds and validation scores of a run, (n, 2): its first metric of labels, or else its loss."""
    spent, metric = elapsed_seconds(run.records), next(iter(run.metrics_measured), None)
    rounds, values = run.metric("validation", metric) if metric else run.losses("validation")
    return np.array([(spent[n], v) for n, v in zip(rounds, values, strict=True) if n in spent])


def _average_courses(courses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over runs at moments that all of them have reached; between two evaluations a run is on the line."""
    until = min(float(course[-1, 0]) for course in courses)
    times = np.linspace(0.0, until, POINTS)
    return times, np.mean([np.interp(times, *course.T) for course in courses], axis=0)
