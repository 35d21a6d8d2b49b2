"""Functions that write numbers as a person says them, and the shapes in which the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

NOTHING = "–"
MANY = 40  # rounds, from which on points of figures are no longer marked one by one
METRICS = {  # names of metrics that are no words, as a reader sees them; docs/metrics.md has what they measure
    "exact_match": "exact match",
    "f1": "F1",
    "one_answer": "sameness of answers",
    "pearson": "Pearson correlation",
    "rouge_l": "ROUGE-L",
    "spearman": "Spearman correlation",
}
FATES = {"done": "done", "late": "late", "partial": "partial", "dropped": "dropped", "excluded": "left out"}


class Tile(NamedTuple):
    """A key number of a run, with its name and a remark."""

    name: str
    value: str
    remark: str = ""


class Table(NamedTuple):
    """Column names and rows of text; the first column names the row, the others are numbers unless listed as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = ()


def name_metric(metric: str) -> str:
    """Name a metric in words.

    >>> name_metric("rouge_l"), name_metric("accuracy"), name_metric("reward_margin")
    ('ROUGE-L', 'accuracy', 'reward margin')
    """
    return METRICS.get(metric, metric.replace("_", " "))


def format_share(share: float) -> str:
    """Write a share in per cent.

    >>> format_share(0.496)
    '50 %'
    """
    return f"{100 * share:.0f} %"


def format_number(value: float | None, form: str = ".3f") -> str:
    """Write a number; a dash when it is missing, and words when it is not finite. Zero has no sign that rounding left.

    >>> format_number(-0.25), format_number(-0.0001), format_number(None)
    ('−0.250', '0.000', '–')
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not finite"
    text = format(value, form)
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−")


def format_change(value: float | None) -> str:
    """Write a change of a loss with its sign, as sentences, tiles and figures do.

    >>> format_change(-0.004), format_change(0.126)
    ('0.00', '+0.13')
    """
    text = format_number(value, "+.2f")
    return "0.00" if text in ("+0.00", "−0.00") else text


def format_interval(found: tuple[float, float] | None, form: str = "+.3g") -> str:
    """Write an interval; a dash when it is missing, and one end where the other is infinite.

    >>> format_interval((0.1, 0.25)), format_interval((0.1, math.inf))
    ('+0.1 to +0.25', 'above +0.1')
    """
    if found is None:
        return NOTHING
    low, high = found
    if math.isfinite(low) and math.isfinite(high):
        return f"{format_number(low, form)} to {format_number(high, form)}"
    if math.isfinite(low) or math.isfinite(high):
        return f"above {format_number(low, form)}" if math.isfinite(low) else f"below {format_number(high, form)}"
    return "not finite"


def format_perplexity(loss: float | None) -> str:
    """Write the perplexity of a loss in nats per token."""
    if loss is None or not math.isfinite(loss):
        return format_number(loss)
    return f"{math.exp(loss):,.1f}" if loss < 12 else f"e^{loss:.1f}"


def format_bytes(count: float) -> str:
    """Write a number of bytes as a person says it, to three digits, so that parts and their sum agree.

    >>> format_bytes(1_032_192), format_bytes(2_064_384), format_bytes(655_500_000), format_bytes(999_999)
    ('1.03 MB', '2.06 MB', '656 MB', '1.00 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            value = count / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count:.0f} bytes"


def format_seconds(seconds: float) -> str:
    """Write a number of seconds as a person says it: `2.0 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def format_count(count: int, noun: str) -> str:
    """Write a count with its noun: `1 round`, `2 rounds`, `1,200 rounds`."""
    return f"{count:,} {noun}" + "s" * (count != 1)
