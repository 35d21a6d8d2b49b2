"""Words that commands share: the configuration and its settings, plug-ins, a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JOBS = "processes that run side by side; auto: runs train together on a GPU with room, on a CPU one after another"

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="a YAML file or the name of one that ships (quickstart, default), then settings",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="a file or module with components of your own; may be given repeatedly"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors and the result")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, as in results/quickstart")]


def split_configuration(settings: list[str] | None) -> tuple[str | None, list[str]]:
    """Split words into the configuration, if the first one names one, and the overrides."""
    words = list(settings or [])
    config = words.pop(0) if words and "=" not in words[0] else None
    return config, words
