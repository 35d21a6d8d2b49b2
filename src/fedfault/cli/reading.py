"""Commands about what came of runs, and about components: `report`, `compare`, `runs`, `diagnose`, `list` and more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfault.cli.ending import end_on_signal, print_table, show_work
from fedfault.cli.words import Plugins, Quiet, RunPath
from fedfault.errors import UserError, explain_os_error, quote

PANEL = "What came of it"  # in the help
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault report results/quickstart`")
def report(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the page and its plots, where the run's cannot be written")
    ] = None,
) -> None:
    """Write report.html and the plots of a run again."""
    from fedfault.report.render import render_report

    try:
        with show_work("drawing the report"):
            page = render_report(run, out=out)
    except OSError as e:
        raise UserError(f"{explain_os_error(e)}; --out FOLDER writes the report elsewhere") from e
    typer.echo(f"report: {page}")


@commands.command(
    rich_help_panel=PANEL, epilog="Example: `fedfault compare results/quickstart results/quickstart-fork`"
)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run folders; the others are compared with the first")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="file for the page")] = None,
) -> None:
    """Runs beside one another: one table, paired statistics, and a page with figures.

    Needs no model and no data.
    """
    from fedfault.report.terminal import echo, find_width

    with show_work("drawing the comparison"):
        from fedfault.compare.page import compare as beside
        from fedfault.compare.page import format_comparison

        found, page = beside(runs, out, argv=sys.argv[1:])
    echo(format_comparison(found, find_width()))
    typer.echo(f"page: {page}")


@commands.command(
    rich_help_panel=PANEL, epilog="Example: `fedfault runs results federation.algorithm=scaffold --sort after`"
)
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="the folder that holds them")] = Path("results"),
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="only runs with these settings, or this state")
    ] = None,
    sort: Annotated[str, typer.Option("--sort", help="name, state, rounds, score, before, after or age")] = "age",
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON, and write no page")] = False,
) -> None:
    """List the runs of a folder: state, scores before and after, settings that differ.

    Writes index.html beside them, with links to their reports. Needs no model and no data.
    """
    with show_work("reading the runs"):
        from fedfault.compare import listing

        found = listing.list_runs(folder, wanted or [], sort)
    if as_json:
        import json

        typer.echo(json.dumps([entry.to_json() for entry in found], indent=1))
        return
    if not found:
        raise UserError(
            f"no run in {folder} matches {' and '.join(wanted or [])}; `fedfault runs {quote(folder)}` lists "
            "what there is"
        )
    listing.print_list(found)
    try:
        typer.echo(f"page: {listing.write_index(folder, found)}")
    except OSError as e:  # somebody else's folder: the list is what was asked for
        typer.echo(f"no page: {explain_os_error(e)}")


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault diagnose results/quickstart`")
def diagnose(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="a run folder, as in results/quickstart")] = None,
    adapters: Annotated[
        Path | None, typer.Option("--adapters", help="instead: a folder with an adapter for each client and round")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="instead, or beside adapters: a table with round, loss, client")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            help="where in the folder a client's adapter lies, by default round_{round}/client_{client}",
            show_default=False,  # with its bracket it is cut at 60 columns
        ),
    ] = "round_{round}/client_{client}",
    server: Annotated[
        str | None, typer.Option("--server", help="where the server's lies; else server or global instead of a client")
    ] = None,
    frozen: Annotated[
        list[str] | None, typer.Option("--frozen", metavar="NAME", help="tensors that should stand still, as lora_A")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="write what was found there as a run folder")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace such a folder")] = False,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="packaged, auto, none or a file, instead of what it was"),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Judge a run again by its records, or a run of another program by its files: verdict, findings, what to try.

    Needs no model and no data. docs/monitor.md says how files should look.
    """
    from fedfault.monitor.adapters import PATTERN

    if run is not None and (adapters or csv or out or frozen or server or overwrite or pattern != PATTERN):
        raise UserError(
            "a run folder has all that is needed; the other options are for --adapters and --csv without one"
        )
    from fedfault.report.terminal import echo

    if run is not None:
        with show_work("judging the records"):
            from fedfault.diagnosis.watch import diagnose_run

            said = diagnose_run(run, calibration, plugin or ())[0]
        echo(said)
        return
    from fedfault.monitor.files import diagnose_files

    where: dict[str, Any] = {"pattern": pattern, "server": server, "frozen": frozen or (), "out": out}
    echo(diagnose_files(adapters, csv, **where, calibration=calibration, plugins=plugin or (), overwrite=overwrite))


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault evaluate results/quickstart --tasks my_task.yaml`")
def evaluate(
    run: RunPath,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="FILE_OR_NAME", help="a task's YAML file or its name; may be given repeatedly"),
    ] = None,
    round: Annotated[
        int | None, typer.Option("--round", min=0, help="of the server's adapter; by default that of the end")
    ] = None,
    clients: Annotated[bool, typer.Option("--clients", help="also the models that clients have of their own")] = False,
) -> None:
    """Score a run's model, and its base beside it, by lm-evaluation-harness; in the run's folder and report.

    Tasks of the harness read their data from the Hub; a file may read it from a local one.
    """
    with show_work("loading lm-evaluation-harness"):
        from fedfault.api.harness import evaluate_run
        from fedfault.api.run import Run
        from fedfault.report.render import render_report
        from fedfault.report.tables import tabulate_benchmarks

    evaluate_run(Run(run), tasks or [], round, clients=clients, say=lambda line: typer.echo(line, err=True))
    print_table(tabulate_benchmarks(Run(run).data))
    with show_work("drawing the report"):
        page = render_report(run)
    typer.echo(f"report: {page}")


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault blame results/quickstart --round 3`")
def blame(
    run: RunPath,
    round: Annotated[
        int | None, typer.Option("--round", help="a round, which is made again; by default all rounds")
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", min=0, help="permutations with their reverses, for Shapley values; 0: none")
    ] = 8,
    quiet: Quiet = False,
) -> None:
    """Say who did what: scores without each client's update, and Shapley values; in the run's folder and report.

    Rounds are trained again from a checkpoint, as uploads are not kept, and must come out as they were.
    """
    with show_work("loading the run", quiet=quiet):
        from fedfault.report.contributions import tabulate_contributions
        from fedfault.report.render import render_report
        from fedfault.runs.read import read_run
        from fedfault.session.blame import blame_run
        from fedfault.session.progress import Progress

    with end_on_signal():
        blame_run(run, Progress(quiet=quiet), round, pairs)
    print_table(tabulate_contributions(read_run(run)))
    with show_work("drawing the report", quiet=quiet):
        page = render_report(run)
    typer.echo(f"report: {page}")


@commands.command(name="list", rich_help_panel=PANEL, epilog="Example: `fedfault list scaffold`")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[KIND|NAME]", help="algorithm, partition, corpus, model, or one component")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Components and what they do; with a KIND only those, with a NAME its options."""
    from fedfault.report.terminal import echo
    from fedfault.setup.preview import describe_components

    echo(describe_components(what, plugin or ()))


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault contract tests/newcomers/sign_step.py`")
def contract(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a plug-in: a file or module with components")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options that its components are built with")
    ] = None,
) -> None:
    """Check the components of a plug-in against all rules of their kinds, a line each; status 1 if one is broken."""
    from fedfault.report.terminal import echo
    from fedfault.testing.contract import check_plugin

    raise typer.Exit(check_plugin(file, options or [], echo))
