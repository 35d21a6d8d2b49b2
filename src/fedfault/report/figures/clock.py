"""Figures of the simulated clock: how long each client took for what, and what the model had learned by when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedfault.measures.punctuality import elapsed_seconds, has_work
from fedfault.records import RoundRecord, Turn
from fedfault.report.draw import (
    apply_theme,
    draw_end_labels,
    draw_line,
    make_canvas,
    make_panels,
    name_line,
    set_loss_scale,
    style_dots,
)
from fedfault.report.figures.rounds import HEIGHT, Curve, Panel, draw_panel
from fedfault.report.figures.tiers import MARKS, choose_fate_colours, order_by_tier, set_tier_axis
from fedfault.report.theme import Theme
from fedfault.report.words import FATES, name_metric
from fedfault.runs.recorded import RunData

MOST = 100  # clients in a panel
PARTS = {"down": ("download", 5), "compute": ("training", 0), "up": ("upload", 1)}  # name and colour of the palette


@apply_theme
def draw_gantt(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw what every client did when, in the first round, in the one of median length and in the slowest."""
    timed = [r for r in run.records if r.turns]
    if not timed or (len({t.tier for r in timed for t in r.turns}) < 2 and run.deadline is None):
        return None
    chosen = _choose_rounds(timed)
    rows = max(min(len(r.turns), MOST) for r, _ in chosen)
    height = min(max(0.9 + 0.2 * rows, 1.6), 3.8 if narrow else 5.0)
    fig = make_canvas(narrow, 0.4 + height * (len(chosen) if narrow else 1))
    axes = [fig.add_subplot(*((len(chosen), 1) if narrow else (1, len(chosen))), i + 1) for i in range(len(chosen))]
    until = 1.15 * max(run.deadline or 0.0, *(t.seconds for r, _ in chosen for t in r.turns)) or 1.0
    sign = min(max(72 * 0.7 * (height - 0.9) / rows, 2.5), 5.0)  # points
    for ax, (record, names) in zip(axes, chosen, strict=True):
        _draw_round(ax, run, theme, record, until, sign)
        ax.set_title(f"Round {record.round}: {', '.join(names)}")
    for ax in [] if narrow else axes[1:]:
        ax.set_ylabel("")
    handles = _make_legend(run, theme, [t for r, _ in chosen for t in r.turns])
    fig.legend(
        handles=handles,
        loc="outside upper left",
        columnspacing=1.2,
        handlelength=1.4,
        ncols=4 if narrow else len(handles),
        frameon=False,
    )
    return fig


def find_seconds(record: RoundRecord) -> float:
    """Find how many simulated seconds a round took."""
    return record.probes["round_seconds"]


def _choose_rounds(timed: Sequence[RoundRecord]) -> list[tuple[RoundRecord, list[str]]]:
    """Choose the first round, that of (lower) median length and the slowest, each once and in order, with what it is.

    Of rounds that a deadline made equally long, the slowest is the one with the most work left.
    """
    ranked = sorted(timed, key=lambda r: (find_seconds(r), max(t.needed for t in r.turns)))
    found: dict[int, tuple[RoundRecord, list[str]]] = {}
    for name, record in (("first", timed[0]), ("median", ranked[(len(ranked) - 1) // 2]), ("slowest", ranked[-1])):
        found.setdefault(record.round, (record, []))[1].append(name)
    return [found[round] for round in sorted(found)]


def _draw_round(ax: Axes, run: RunData, theme: Theme, record: RoundRecord, until: float, sign: float) -> None:
    """Draw a bar a client, a thin line on to where all of its work would have ended, and its fate at the end."""
    longest = sorted(record.turns, key=lambda t: -t.needed)[:MOST]
    turns = {t.client: t for t in longest}
    order = order_by_tier(run, turns)
    for name, (_, colour) in PARTS.items():
        starts = [_find_start(turns[k], name) for k in order]
        widths = [getattr(turns[k], name) for k in order]
        ax.barh(range(len(order)), widths, left=starts, height=0.7, color=theme.palette[colour], lw=0)
    colours = choose_fate_colours(theme)
    for y, turn in enumerate(turns[k] for k in order):
        end = max(turn.seconds, min(turn.needed, 0.93 * until))
        if end > turn.seconds:
            ax.plot([turn.seconds, end], [y, y], color=theme.muted, lw=1, zorder=1)
        if turn.fate != "done":
            ax.plot(
                end + 0.03 * until, y, color=colours[turn.fate], ls="", ms=sign, mew=0.28 * sign, **MARKS[turn.fate]
            )
    if run.deadline is not None:
        ax.axvline(run.deadline, color=theme.ink, lw=1.2, ls=(0, (4, 3)))
    ax.set_xlim(0, until)
    ax.set_ylim(len(order) - 0.4, -0.6)
    set_tier_axis(ax, run, theme, order, 10)
    if len(record.turns) > MOST:
        ax.set_ylabel(f"the {MOST} slowest clients")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("simulated seconds")
    ax.grid(axis="x")


def _find_start(turn: Turn, part: str) -> float:
    """Find the second in which a part of a client's round begins."""
    before = list(PARTS)[: list(PARTS).index(part)]
    return float(sum(getattr(turn, name) for name in before))


def _make_legend(run: RunData, theme: Theme, turns: Sequence[Turn]) -> list[Patch | Line2D]:
    """Make the legend entries of all that is in the panels."""
    there = {name: about for name, about in PARTS.items() if any(getattr(t, name) for t in turns)}
    handles: list[Patch | Line2D] = [Patch(color=theme.palette[c], label=title) for title, c in there.values()]
    if run.deadline is not None:
        handles.append(Line2D([], [], color=theme.ink, lw=1.2, ls=(0, (4, 3)), label="deadline"))
    for fate, style in MARKS.items():
        if any(t.fate == fate for t in turns):
            look: dict[str, Any] = {"ls": "", "ms": 6, "mew": 1.4, "color": choose_fate_colours(theme)[fate]}
            handles.append(Line2D([], [], label=FATES[fate], **look, **style))
    return handles


@apply_theme
def draw_clock(run: RunData, theme: Theme, narrow: bool) -> Figure | None:
    """Draw the validation score over simulated seconds, and by round its length, who was in time, and the regret."""
    spent, scored = elapsed_seconds(run.records), _choose_score(run)
    if not any(r.turns for r in run.records):
        return None
    busy = {r.round for r in run.records if has_work(r)}
    prompt = [(n, v) for n, v in zip(*run.probe("compliance"), strict=True) if n in busy]
    length, regret = Curve(run.probe("round_seconds")), Curve(run.probe("regret"), 4)
    wanted = [
        Panel("Length of the rounds", "simulated seconds", [length], run.deadline),
        Panel(
            "Done by the deadline",
            "share of the clients",
            [Curve(([n for n, _ in prompt], [v for _, v in prompt]), 2)],
            1.0,
        ),
        Panel("Against the shortest round", "regret (1: none)", [regret], 1.0),
    ]
    late = any(t.fate not in ("done", "excluded") for r in run.records for t in r.turns)
    shown = [p for i, p in enumerate(wanted) if p.curves[0].points[0] and (i != 1 or late or run.deadline is not None)]
    fig, axes = make_panels(narrow, len(shown) + bool(scored[1]), HEIGHT)
    if scored[1]:
        _draw_score(axes.pop(0), run, theme, spent, scored)
    for ax, panel in zip(axes, shown, strict=True):
        draw_panel(ax, run, theme, panel)
    return fig


def _choose_score(run: RunData) -> tuple[str, list[int], list[float]]:
    """Choose the validation score to draw, the first metric of labels or else the loss: its name, rounds and values."""
    metric = next(iter(run.metrics_measured), None)
    if metric:
        return (f"validation {name_metric(metric)}", *run.metric("validation", metric))
    return (f"validation loss\n({run.unit})", *run.losses("validation"))


def _draw_score(
    ax: Axes, run: RunData, theme: Theme, spent: Mapping[int, float], scored: tuple[str, list[int], list[float]]
) -> None:
    """Draw a score over the simulated time until then, and its target."""
    name, rounds, values = scored
    target = run.setting("evaluation", "target_score") if run.metrics_measured else None
    scale, unit = _choose_unit(max(spent.values()))
    set_loss_scale(ax, values if target is None else [*values, target])
    at = [spent[n] / scale for n in rounds]
    draw_line(
        ax, at, values, theme, color=theme.ink, lw=2.4, **name_line(name.partition("\n")[0]), **style_dots(rounds)
    )
    if target is not None:
        ax.axhline(target, color=theme.muted, lw=1.2, ls=(0, (4, 3)))
        draw_end_labels(ax, [(target, "target", theme.muted)], theme, height=HEIGHT - 0.9)
    ax.set_xlabel(f"simulated {unit} since the start")
    ax.set_ylabel(name)
    ax.set_title("Validation, by the simulated clock")


def _choose_unit(seconds: float) -> tuple[float, str]:
    return (1.0, "seconds") if seconds < 600 else (60.0, "minutes") if seconds < 36000 else (3600.0, "hours")
