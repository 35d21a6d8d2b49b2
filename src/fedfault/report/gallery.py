"""All figures of a run, in the order in which a reader should see them.

`FIGURES["loss_by_topic"](read("results/run"), theme.DARK, narrow=True)` is a matplotlib figure, or None where the run has
nothing to show in it.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fedfault.report.draw import Plot, png
from fedfault.report.figures.clients import clients, fairness, labels
from fedfault.report.figures.clock import clock, gantt
from fedfault.report.figures.cost import traffic
from fedfault.report.figures.heat import cosines, participation, split
from fedfault.report.figures.layers import layers
from fedfault.report.figures.losses import general, loss_by_topic
from fedfault.report.figures.rounds import control, divergence, drift, generation, gradients, ranks
from fedfault.report.figures.tiers import client_ranks
from fedfault.report.theme import LIGHT
from fedfault.storage import write_atomically

__all__ = ["FIGURES", "LIGHT", "split", "write"]

FIGURES: dict[str, Plot] = {
    "loss_by_topic": loss_by_topic,
    "labels": labels,
    "clients": clients,
    "fairness": fairness,
    "general": general,
    "drift": drift,
    "gradients": gradients,
    "divergence": divergence,
    "cosines": cosines,
    "control": control,
    "layers": layers,
    "ranks": ranks,
    "generation": generation,
    "client_ranks": client_ranks,
    "gantt": gantt,
    "clock": clock,
    "participation": participation,
    "split": split,
    "traffic": traffic,
}


def write(figure: Figure, file: Path, dpi: float = 150) -> None:
    """Write the figure as a PNG file, there whole or not at all."""
    write_atomically(file, png(figure, dpi))
