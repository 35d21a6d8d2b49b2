"""Commands of one run: `run`, `resume`, `fork`, `watch`, `check`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfault.cli.ending import end_on_signal, show_work, tell_end
from fedfault.cli.words import Plugins, Quiet, RunPath, Settings, split_configuration
from fedfault.processes import this_process

PANEL = "One run"  # in the help
commands = typer.Typer()


@contextlib.contextmanager
def _choose_prepare() -> Iterator[Any]:
    """Choose what prepares an experiment: for this process alone, or for all that torchrun has started."""
    if this_process().count == 1:
        from fedfault.setup.experiment import prepare

        yield prepare
    else:
        from fedfault.parallel.distributed import lead_team

        with lead_team() as others:
            yield others.prepare


@commands.command(
    rich_help_panel=PANEL, epilog="Example: `fedfault run my.yaml training.lr=1e-3 federation.algorithm=scaffold`"
)
def run(
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train, and write results/NAME with a report; goes on where it was stopped.

    Without a CONFIG: the quickstart.
    """
    config, overrides = split_configuration(settings)
    run_once(config, overrides, plugin or (), overwrite=overwrite, quiet=quiet)


def run_once(
    config: str | None,
    overrides: list[str],
    plugins: Sequence[str] = (),
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Make one run of a configuration, and print where its report is."""
    from fedfault.config import load

    loaded = load(config, overrides, plugins)
    from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    progress.say(f"{loaded.experiment.experiment_name}: {loaded.experiment.describe()}")
    from fedfault.session.start import start_run  # seconds, for torch

    named = any(word.startswith("experiment_name=") for word in overrides)
    options: dict[str, Any] = {"overwrite": overwrite, "named": named, "argv": sys.argv[1:]}
    with end_on_signal(), _choose_prepare() as ready:
        folder = start_run(loaded, progress, ready=ready, **options)
    tell_end(folder.path, progress)


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault resume results/quickstart`")
def resume(
    run: RunPath,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="settings that can change: federation.num_rounds (more of them), personalise, device, logging",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Continue a run that was stopped, to the same numbers as without the stop, or a run to more rounds."""
    with show_work(f"loading {run}", quiet=quiet):
        from fedfault.session.progress import Progress
        from fedfault.session.start import resume_run as go_on

    progress = Progress(quiet=quiet)
    with end_on_signal(), _choose_prepare() as ready:
        folder = go_on(run, progress, changes or [], ready=ready)
    tell_end(folder.path, progress)


@commands.command(
    rich_help_panel=PANEL, epilog="Example: `fedfault fork results/quickstart --round 6 training.lr=1e-3`"
)
def fork(
    run: RunPath,
    round: Annotated[int, typer.Option("--round", min=0, help="go on from the checkpoint of this round")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="what is different from there on, and experiment_name"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Go on from a round of a run with other settings, in a run of its own: what would have happened if."""
    with show_work(f"loading {run}", quiet=quiet):
        from fedfault.session.fork import fork_run as go_on
        from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    with end_on_signal():
        options: dict[str, Any] = {"overwrite": overwrite, "plugins": plugin or (), "argv": sys.argv[1:]}
        folder = go_on(run, round, changes or [], progress, **options)
    tell_end(folder.path, progress)


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault watch results/quickstart`")
def watch(run: RunPath) -> None:
    """Look on while another process trains a run: round, loss, findings, time left.

    Ends with the run, and changes nothing in its folder. Needs no model and no data.
    """
    from rich.console import Console

    from fedfault.session.follow import follow_run

    with contextlib.suppress(KeyboardInterrupt):  # who looked on has seen enough; the run goes on
        follow_run(run, Console(highlight=False))


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault check my.yaml --plot split.png`")
def check(
    settings: Settings = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="also write the picture of the split: .png, .pdf or .svg")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Say what a run would do, without training: who holds what, how different clients are, bytes per round."""
    from fedfault.config import load

    config, overrides = split_configuration(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.report.terminal import echo, find_width
    from fedfault.session.progress import Progress

    progress = Progress()
    progress.say(f"{loaded.experiment.experiment_name}: {loaded.experiment.describe()}")
    with progress.show_work("loading model and data"):
        from fedfault.setup.preview import preview  # seconds, for torch

        text = preview(loaded, plot, find_width())
    echo(text)
