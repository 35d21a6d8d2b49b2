"""Colours and fonts of the two appearances, light and dark, and functions that keep text readable on them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb

FONT = 9.0  # points
OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "WenQuanYi Micro Hei")


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; the report's style sheet uses the same ones."""

    name: str
    page: str  # around the surface
    surface: str
    ink: str
    muted: str
    grid: str
    empty: str  # a cell in which nothing happened
    alarm: str
    warn: str
    good: str
    palette: tuple[str, ...]  # after Okabe and Ito 2008, told apart by colour-blind readers; markers differ as well
    ramp: tuple[str, ...]  # from little to much
    both_ways: tuple[str, ...]  # from far below zero over zero to far above it

    @property
    def cmap(self) -> Colormap:
        """The sequential colour map of the heat maps."""
        return LinearSegmentedColormap.from_list(f"fedfault-{self.name}", list(self.ramp))

    @property
    def diverging(self) -> Colormap:
        """The colour map of heat maps around zero."""
        return LinearSegmentedColormap.from_list(f"fedfault-{self.name}-both-ways", list(self.both_ways))

    @property
    def variables(self) -> dict[str, str]:
        """The colours by the names that they have in the style sheet; those of text end in `-text`."""
        named = {
            n: getattr(self, n) for n in ("page", "surface", "ink", "muted", "grid", "empty", "alarm", "warn", "good")
        }
        named |= {f"p{i}": colour for i, colour in enumerate(self.palette)}
        return named | {f"p{i}-text": make_readable(colour, self) for i, colour in enumerate(self.palette)}

    @property
    def rc(self) -> Any:
        """Settings of matplotlib in force while a figure is made."""
        return {
            "text.usetex": False,
            "font.family": [f for f in ("DejaVu Sans", *OTHER_SCRIPTS) if f in list_fonts()],
            "font.size": FONT,
            "text.color": self.ink,
            "axes.labelcolor": self.muted,
            "axes.labelsize": FONT,
            "axes.titlesize": FONT + 1,
            "axes.titlecolor": self.ink,
            "axes.titlelocation": "left",
            "axes.titlepad": 9,
            "axes.facecolor": "none",
            "axes.edgecolor": self.grid,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "xtick.color": self.grid,
            "ytick.color": self.grid,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "xtick.labelsize": FONT - 0.5,
            "ytick.labelsize": FONT - 0.5,
            "figure.facecolor": self.surface,
            "lines.solid_capstyle": "round",
        }


LIGHT = Theme(
    name="light",
    page="#f6f7f9",
    surface="#ffffff",
    ink="#1c2430",
    muted="#566171",
    grid="#d9dee5",
    empty="#f1f3f6",
    alarm="#c02323",
    warn="#8a5a00",
    good="#1b7046",
    palette=("#0072b2", "#d55e00", "#009e73", "#b85c92", "#c98a00", "#49a5dd", "#5b3f99", "#7d6b58"),
    ramp=("#e6f0f7", "#8fbcd9", "#2f7fb5", "#0c3f66"),
    both_ways=("#9c4500", "#e8a06b", "#e1e5ea", "#7fb4d6", "#0c5687"),
)
DARK = Theme(
    name="dark",
    page="#0f1318",
    surface="#171c23",
    ink="#e7ebf0",
    muted="#a3aebb",
    grid="#333c47",
    empty="#1f262f",
    alarm="#ff7b72",
    warn="#f2bd4b",
    good="#5fcf91",
    palette=("#4ea8e6", "#f58646", "#2fc49a", "#e394c4", "#f2bd4b", "#9fd6fa", "#a994ee", "#bda78f"),
    ramp=("#22384a", "#2f6f9c", "#63b0de", "#d3eefc"),
    both_ways=("#ffb382", "#b4622c", "#38414c", "#35719b", "#93d0f7"),
)


@functools.cache
def list_fonts() -> frozenset[str]:
    """List the names of the fonts that matplotlib knows."""
    return frozenset(font_manager.fontManager.get_font_names())


@functools.cache
def _list_drawable() -> frozenset[int]:
    """List the code points for which an installed font has a glyph."""
    names = [f for f in ("DejaVu Sans", *OTHER_SCRIPTS) if f in list_fonts()]
    return frozenset(c for f in names for c in font_manager.get_font(font_manager.findfont(f)).get_charmap())


def make_label(text: str, limit: int = 22) -> str:
    """Make a name fit for a figure: one short line, no mathematics, `?` for every glyph that the fonts lack."""
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if ord(c) in _list_drawable() else "?" for c in text).replace("$", r"\$")


def make_run_label(name: str, limit: int = 22) -> str:
    """Make the name of a run fit for a figure, as `make_label`: cut in its middle, as runs of a kind differ at the end.

    >>> make_run_label("quickstart-fork", 11)
    'quick…-fork'
    """
    name = " ".join(name.split())
    head = limit // 2
    return make_label(name if len(name) <= limit else f"{name[:head]}…{name[head + 1 - limit :]}", limit)


def compute_luminance(colour: Any) -> float:
    """Compute the relative luminance, 0 for black to 1 for white (WCAG 2.1)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def compute_contrast(one: Any, other: Any) -> float:
    """Compute the contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((compute_luminance(one), compute_luminance(other)))
    return (high + 0.05) / (low + 0.05)


def choose_ink(colour: Any) -> str:
    """Choose black or white, whichever is easier to read on the colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: compute_contrast(ink, colour))


@functools.cache
def make_readable(colour: str, theme: Theme) -> str:
    """Mix the colour with as much ink as text needs to be read on the page (contrast 4.5, WCAG 2.1 AA)."""
    line, ink = np.array(to_rgb(colour)), np.array(to_rgb(theme.ink))
    mixed = (to_hex((1 - share) * line + share * ink) for share in np.linspace(0, 1, 11))
    return next(c for c in mixed if compute_contrast(c, theme.surface) >= 4.5)
