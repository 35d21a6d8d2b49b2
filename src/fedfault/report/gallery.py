"""All figures of a run, in the order in which a reader should see them.

`FIGURES["loss_by_topic"](read("results/run"), theme.DARK, narrow=True)` is a matplotlib figure, or None where the run has
nothing to show in it.
"""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedfault.errors import UserError
from fedfault.report.draw import Plot, render_pdf, render_png, render_svg
from fedfault.report.figures.clients import draw_clients, draw_fairness, draw_labels
from fedfault.report.figures.clock import draw_clock, draw_gantt
from fedfault.report.figures.contributions import draw_contributions
from fedfault.report.figures.cost import draw_traffic
from fedfault.report.figures.heat import draw_cosines, draw_participation, draw_split
from fedfault.report.figures.layers import draw_layers
from fedfault.report.figures.leakage import draw_leakage
from fedfault.report.figures.losses import draw_general, draw_loss_by_topic
from fedfault.report.figures.personal import draw_personal
from fedfault.report.figures.privacy import draw_privacy
from fedfault.report.figures.rounds import (
    draw_control,
    draw_divergence,
    draw_drift,
    draw_generation,
    draw_gradients,
    draw_ranks,
)
from fedfault.report.figures.staleness import draw_staleness
from fedfault.report.figures.tiers import draw_client_ranks
from fedfault.report.theme import LIGHT
from fedfault.storage import delete_scratch_of, write_atomically

__all__ = ["FIGURES", "LIGHT", "draw_split", "write_figure"]

FIGURES: dict[str, Plot] = {
    "loss_by_topic": draw_loss_by_topic,
    "labels": draw_labels,
    "clients": draw_clients,
    "fairness": draw_fairness,
    "personal": draw_personal,
    "general": draw_general,
    "privacy": draw_privacy,
    "leakage": draw_leakage,
    "contributions": draw_contributions,
    "drift": draw_drift,
    "gradients": draw_gradients,
    "divergence": draw_divergence,
    "cosines": draw_cosines,
    "control": draw_control,
    "layers": draw_layers,
    "ranks": draw_ranks,
    "generation": draw_generation,
    "client_ranks": draw_client_ranks,
    "gantt": draw_gantt,
    "clock": draw_clock,
    "staleness": draw_staleness,
    "participation": draw_participation,
    "split": draw_split,
    "traffic": draw_traffic,
}


KINDS = (".png", ".pdf", ".svg")
MOST_PIXELS = 2**16  # on a side of a picture that matplotlib draws


def check_place(file: Path) -> None:
    """Raise `UserError` for a file whose ending is no kind of picture that figures are written as, and without a folder."""
    if file.suffix.lower() not in KINDS:
        raise UserError(f"{file}: a figure is written as {', '.join(KINDS)}; end the file's name so")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.absolute().parent}; make it, or give another file")


def write_figure(figure: Figure, file: Path, dpi: float = 150) -> None:
    """Write the figure as its file's ending says, atomically; dpi: of a PNG.

    Raises `UserError` as `check_place` does, and for a `dpi` of which matplotlib makes no picture.
    """
    check_place(file)
    most = MOST_PIXELS / max(figure.get_size_inches())
    if not _is_between(dpi, 1, most):
        raise UserError(f"dpi={dpi!r:.60}: give a number from 1 to {most:,.0f}, like dpi=300")
    kind = file.suffix.lower()
    content = (
        render_png(figure, dpi) if kind == ".png" else render_pdf(figure) if kind == ".pdf" else render_svg(figure)
    )
    delete_scratch_of(file)
    write_atomically(file, content)


def _is_between(given: Any, low: float, high: float) -> bool:
    return isinstance(given, Real) and low <= float(given) < high
