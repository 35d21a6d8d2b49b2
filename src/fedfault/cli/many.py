"""Commands of many runs: `calibrate`, `study`, `mitigate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfault.cli.ending import SAME, end_on_signal, show_work
from fedfault.cli.groups import CommandsWithDefault
from fedfault.cli.words import JOBS, Plugins, Quiet, Settings, split_configuration

PANEL = "Many runs"  # in the help
commands = typer.Typer()

study_commands = typer.Typer(
    cls=CommandsWithDefault,
    help="Many runs that differ in a stated way: `fedfault study FILE`, then `fedfault study report DIR`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog="Example: `fedfault study quick`, then `fedfault study report results/quick`",
)
commands.add_typer(study_commands, name="study", rich_help_panel=PANEL)


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault calibrate my.yaml --controls 19`")
def calibrate(
    settings: Settings = None,
    controls: Annotated[
        int, typer.Option("--controls", min=3, help="IID control runs; 19 for a 5 % false-alarm rate")
    ] = 19,
    honest: Annotated[
        bool, typer.Option("--honest", help="not IID ones but honest ones of the partition, for hostile_client")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file for the thresholds, by default calibration.json beside the control runs"),
    ] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train control runs of a configuration and write the detectors' thresholds; goes on where it was stopped."""
    from fedfault.config import load

    config, overrides = split_configuration(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    kind = "honest controls" if honest else "IID controls"
    progress.say(f"{loaded.experiment.experiment_name}: {controls} {kind}; each {loaded.experiment.describe()}")
    from fedfault.session.controls import calibrate_detectors as learn  # seconds, for torch

    with end_on_signal(SAME):
        file = learn(loaded, controls, progress, out, argv=sys.argv[1:], same_partition=honest)
    typer.echo(f"calibration: {file}")


@study_commands.command(name="run", epilog="Example: `fedfault study quick seeds=10 --jobs 2`")
def run_study(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study, or the name of one that ships (quick, main)")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings of all runs, and seeds=N or seeds=auto"),
    ] = None,
    jobs: Annotated[str, typer.Option("--jobs", metavar="N|auto", help=JOBS)] = "1",
    task: Annotated[int | None, typer.Option("--task", help="only run I, from 1 on: for Slurm arrays")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="list the runs with their numbers and train none")] = False,
    results_dir: Annotated[str | None, typer.Option("--results-dir", help="the study goes to its folder NAME")] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Run all of a study that is not done yet; status 1 if a run failed. `run` may be left out."""
    with show_work(f"loading study {file}", quiet=quiet):
        from fedfault.studies import doors

    with end_on_signal(SAME):
        options: dict[str, Any] = {"plugins": plugin or (), "results_dir": results_dir, "only_plan": plan}
        status = doors.run_study(file, settings or [], jobs=doors.parse_jobs(jobs), task=task, quiet=quiet, **options)
    raise typer.Exit(status)


@study_commands.command(name="report", epilog="Example: `fedfault study report results/quick`")
def report_study(folder: Annotated[Path, typer.Argument(metavar="DIR", help="as in results/quick")]) -> None:
    """Write report.html and report.md of a study again. Needs no model and no data."""
    with show_work("loading the study"):
        from fedfault.studies.doors import write_report

    write_report(folder)


@commands.command(rich_help_panel=PANEL, epilog="Example: `fedfault mitigate results/quickstart --seeds 5`")
def mitigate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG|RUN] [KEY=VALUE]...", help="as in `fedfault run`, or a run folder to mend"),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="how many, from the configuration's own on")] = 1,
    encoder: Annotated[
        str, typer.Option("--encoder", help="backbone, minilm, or any model that model.name takes: what embeds texts")
    ] = "backbone",
    shrinkage: Annotated[
        float, typer.Option("--shrinkage", min=0, max=1, help="of the clusters' models to their mean, in every round")
    ] = 0.0,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Write and run a study: a model for each cluster of clients, beside other ways to train."""
    with show_work("loading the study", quiet=quiet):
        from fedfault.studies.mitigate import load_or_open
        from fedfault.studies.mitigate import mitigate as study_clusters

    loaded, known = load_or_open(*split_configuration(settings), plugin or ())
    with end_on_signal(SAME):
        options: dict[str, Any] = {"seeds": seeds, "encoder": encoder, "shrinkage": shrinkage, "known": known}
        status = study_clusters(loaded, quiet=quiet, **options)
    raise typer.Exit(status)
