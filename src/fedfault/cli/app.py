"""All commands together, the version, and the place of this process in a job."""

from __future__ import annotations

from typing import Annotated

import typer

from fedfault.cli import many, reading, sites, training
from fedfault.cli.groups import Commands
from fedfault.processes import check_command

app = typer.Typer(
    cls=Commands,
    help="A laboratory for federated fine-tuning of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for group in (training, reading, many, sites):
    app.add_typer(group.commands)


def _print_version(asked: bool) -> None:
    if asked:
        import fedfault

        typer.echo(f"fedfault {fedfault.__version__}")
        raise typer.Exit


@app.callback()
def _check_process(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    check_command(ctx.invoked_subcommand)
