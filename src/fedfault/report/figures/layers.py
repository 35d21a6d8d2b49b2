"""The figure of representations, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from fedfault.records import RoundRecord
from fedfault.report.draw import apply_theme, make_panels, name_line, set_loss_scale
from fedfault.report.theme import Theme
from fedfault.runs.recorded import RunData


class LayerPanel(NamedTuple):
    """A probe of every layer, and what is drawn beside it: of the last round, under a name."""

    title: str
    unit: str
    probe: str
    beside: str
    name: str
    colour: int  # of the palette, for what is beside


PANELS = (
    LayerPanel("Hidden states", "cosine to the base", "hidden_cosine", "client_cosine", "between clients", 1),
    LayerPanel("Their geometry", "CKA with the base", "cka", "client_cka", "between clients", 1),
    LayerPanel("Attention", "entropy / its maximum", "attention_entropy", "attention_entropy_base", "base", 3),
)


@apply_theme
def draw_layers(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw what each layer makes of the same text, beside the base: in the first, a middle and the last measured round."""
    shown = [p for p in PANELS if any(select_layers(r, p.probe) for r in run.records)]
    if not shown:
        return None
    fig, axes = make_panels(narrow, len(shown), 2.9)
    for ax, panel in zip(axes, shown, strict=True):
        _draw_panel(ax, run, theme, panel)
    handles = {name: h for ax in axes for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = 3 if narrow else len(handles)
    fig.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns, frameon=False)
    return fig


def _draw_panel(ax: Axes, run: RunData, theme: Theme, panel: LayerPanel) -> None:
    measured = [r for r in run.records if select_layers(r, panel.probe)]
    styles: tuple[dict[str, Any], ...] = (
        {"color": theme.palette[5], "lw": 1.4, "marker": "^", "ms": 4},
        {"color": theme.palette[0], "lw": 1.6, "marker": "s", "ms": 3.5},
        {"color": theme.ink, "lw": 2.4, "marker": "o", "ms": 4},
    )
    chosen = _choose_rounds(measured)
    drawn = []
    for record, style in zip(chosen, styles[-len(chosen) :], strict=True):
        points = select_layers(record, panel.probe)
        ax.plot(list(points), list(points.values()), **name_line(f"round {record.round}"), **style)
        drawn.append(points)
    if beside := select_layers(measured[-1], panel.beside):
        dashed: dict[str, Any] = {"color": theme.palette[panel.colour], "lw": 1.6, "ls": (0, (4, 2))}
        ax.plot(list(beside), list(beside.values()), **name_line(panel.name), **dashed)
        drawn.append(beside)
    set_loss_scale(ax, [v for points in drawn for v in points.values()])
    ax.set_yscale("linear")
    numbers = sorted({layer for points in drawn for layer in points})
    few = len(numbers) <= 8
    ax.xaxis.set_major_locator(FixedLocator(numbers) if few else MaxNLocator(8, integer=True))
    ax.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.unit)
    ax.set_xlabel("layer (0: embedding)" if numbers[0] == 0 else "layer")


def _choose_rounds(measured: Sequence[RoundRecord]) -> list[RoundRecord]:
    n = len(measured)
    return [measured[i] for i in sorted({0, (n - 1) // 2, n - 1})]


def select_layers(record: RoundRecord, probe: str) -> dict[int, float]:
    """Select the values of a probe that was taken of every layer, by the layer's number in rising order."""
    found = {
        int(layer): value
        for name, value in record.probes.items()
        for p, _, layer in [name.partition("/")]
        if p == probe
    }
    return dict(sorted(found.items()))
