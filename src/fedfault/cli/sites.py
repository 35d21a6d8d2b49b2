"""Commands of real sites: `flower run`, `flower keys`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedfault.cli.ending import SAME, end_on_signal, tell_end
from fedfault.cli.groups import Commands
from fedfault.cli.words import Plugins, Quiet, Settings, split_configuration
from fedfault.errors import UserError

PANEL = "Real sites"  # in the help
commands = typer.Typer()

flower_commands = typer.Typer(
    cls=Commands,
    help="The same run over Flower: in its simulation, or on real nodes (docs/deploy.md).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
commands.add_typer(flower_commands, name="flower", rich_help_panel=PANEL)


@flower_commands.command(name="run", epilog="Example: `fedfault flower run my.yaml --workers 2`")
def flower_run(
    settings: Settings = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="processes that clients train in")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train in Flower's simulation, and write results/NAME as `fedfault run` does. One that was stopped goes on."""
    from fedfault.config import load

    config, overrides = split_configuration(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.flower.simulation import simulate
    from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    with end_on_signal(SAME):
        folder = simulate(loaded, progress, workers=workers, overwrite=overwrite, argv=sys.argv[1:])
    tell_end(folder.path, progress)


@flower_commands.command(
    epilog="Example: `fedfault flower keys keys --host fl.example.org --site clinic-a --site clinic-b`"
)
def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where they are written")],
    host: Annotated[list[str], typer.Option("--host", help="name or IP address of the SuperLink, as sites see it")],
    site: Annotated[list[str], typer.Option("--site", help="name of a site; its key pair is NAME and NAME.pub")],
) -> None:
    """Make the certificates and keys of a deployment: give each site only ca.crt and its own pair."""
    try:
        from fedfault.flower.keys import make_keys
    except ImportError as e:
        raise UserError(f'{e.name} is not installed; pip install "fedfault[flower]"') from e

    for file in make_keys(folder, host, site):
        typer.echo(file)
