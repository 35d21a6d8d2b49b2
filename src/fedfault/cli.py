"""The command line. Heavy imports happen inside the commands, so that help answers at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedfault.errors import UserError

app = typer.Typer(
    help="A laboratory for federated fine-tuning of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="a YAML file or the name of one that ships (quickstart, default), then settings",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors and the result")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, as in results/quickstart")]


def _split(settings: list[str] | None) -> tuple[str | None, list[str]]:
    """The configuration, if the first word is one, and the overrides."""
    words = list(settings or [])
    config = words.pop(0) if words and "=" not in words[0] else None
    return config, words


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """An interrupt ends with status 130 and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; `fedfault resume RUN` goes on from the last finished round", err=True)
        raise typer.Exit(130) from None


@app.command()
def run(
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    quiet: Quiet = False,
) -> None:
    """Train, and write results/NAME with a report. Without a CONFIG: the quickstart."""
    from fedfault.config import load

    config, overrides = _split(settings)
    loaded = load(config, overrides)
    from fedfault import session
    from fedfault.progress import Progress

    named = any(word.startswith("experiment_name=") for word in overrides)
    with _stoppable():
        folder = session.start(loaded, Progress(quiet=quiet), overwrite=overwrite, named=named, argv=sys.argv[1:])
    typer.echo(f"report: {folder.path / 'report.html'}")


@app.command()
def resume(run: RunPath, quiet: Quiet = False) -> None:
    """Continue a run that was stopped, to the same numbers as without the stop."""
    from fedfault import session
    from fedfault.progress import Progress

    with _stoppable():
        folder = session.resume(run, Progress(quiet=quiet))
    typer.echo(f"report: {folder.path / 'report.html'}")


@app.command()
def fork(
    run: RunPath,
    round: Annotated[int, typer.Option("--round", min=0, help="go on from the checkpoint of this round")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="what is different from there on, and experiment_name"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    quiet: Quiet = False,
) -> None:
    """Go on from a round of a run with other settings, in a run of its own: what would have happened if."""
    from fedfault.fork import fork as go_on
    from fedfault.progress import Progress

    with _stoppable():
        folder = go_on(run, round, changes or [], Progress(quiet=quiet), overwrite=overwrite, argv=sys.argv[1:])
    typer.echo(f"report: {folder.path / 'report.html'}")


@app.command()
def check(
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="also write the picture of the split to this PNG")] = None,
) -> None:
    """Say what a run would do, without training: who holds what, how different clients are, bytes per round."""
    from fedfault.config import load

    config, overrides = _split(settings)
    loaded = load(config, overrides)
    from fedfault.preview import preview

    typer.echo(preview(loaded, plot))


@app.command()
def report(run: RunPath) -> None:
    """Write report.html and the plots of a run again."""
    from fedfault.report.render import render

    typer.echo(f"report: {render(run)}")


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run folders; the others are compared with the first")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="file for the page")] = None,
) -> None:
    """Runs beside one another: one table, paired statistics, and a page with figures. Needs no model and no data."""
    import shutil

    from fedfault.compare.page import compare as beside
    from fedfault.compare.page import told

    found, page = beside(runs, out, argv=sys.argv[1:])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    typer.echo(told(found, width))
    typer.echo(f"page: {page}")


@app.command()
def diagnose(
    run: RunPath,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="packaged, none or a file, instead of what the run was judged by"),
    ] = None,
) -> None:
    """Judge a run again by its records: verdict, findings, what to try. Needs no model and no data."""
    from fedfault.watch import diagnose as judge

    typer.echo(judge(run, calibration))


@app.command()
def calibrate(
    settings: Settings = None,
    controls: Annotated[
        int, typer.Option("--controls", min=3, help="IID control runs; 19 for a 5 % false-alarm rate")
    ] = 19,
    out: Annotated[Path | None, typer.Option("--out", help="file for the thresholds")] = None,
    quiet: Quiet = False,
) -> None:
    """Train IID control runs of a configuration and write the detectors' thresholds; goes on where it was stopped."""
    from fedfault.config import load

    config, overrides = _split(settings)
    loaded = load(config, overrides)
    from fedfault.controls import calibrate as learn
    from fedfault.progress import Progress

    with _stoppable():
        file = learn(loaded, controls, Progress(quiet=quiet), out, argv=sys.argv[1:])
    typer.echo(f"calibration: {file}")


@app.command(name="list")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[KIND|NAME]", help="algorithm, partition, corpus, model, or one component")
    ] = None,
) -> None:
    """Components and what they do; with a KIND only those, with a NAME its options."""
    from fedfault.preview import components

    typer.echo(components(what))


flower = typer.Typer(
    help="The same run over Flower: in its simulation, or on real nodes (docs/deploy.md).", no_args_is_help=True
)
app.add_typer(flower, name="flower")


@flower.command(name="run")
def flower_run(
    settings: Settings = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="processes that clients train in")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run of that name")] = False,
    quiet: Quiet = False,
) -> None:
    """Train in Flower's simulation, and write results/NAME as `fedfault run` does. One that was stopped goes on."""
    from fedfault.config import load

    config, overrides = _split(settings)
    loaded = load(config, overrides)
    from fedfault.flower.simulation import simulate
    from fedfault.progress import Progress

    with _stoppable():
        folder = simulate(loaded, Progress(quiet=quiet), workers=workers, overwrite=overwrite, argv=sys.argv[1:])
    typer.echo(f"report: {folder.path / 'report.html'}")


@flower.command()
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


def main() -> None:
    """Entry point: bad input ends with a message and status 2."""
    try:
        app()
    except UserError as e:
        typer.echo(f"error: {e}", err=True)
        sys.exit(2)
