"""The command line: every command and its options. Imports happen inside commands, so that help answers at once."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
import typer
from typer.core import TyperGroup

from fedfault.errors import UserError, explain_os_error, is_out_of_memory, read_first_line, suggest
from fedfault.processes import check_command, this_process


class _Group(TyperGroup):
    """Commands, of which an unknown one and an unknown option are refused in a sentence that says what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with _explain_option():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, which is the first word."""
        if args[0] not in self.commands:
            raise UserError(
                f"no command {args[0][:60]!r}{suggest(args[0], self.commands)} (known: {', '.join(self.commands)})"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own words and run it."""
        with _explain_option():
            return super().invoke(ctx)


@contextlib.contextmanager
def _explain_option() -> Iterator[None]:
    """Say what is meant where a command does not have an option."""
    try:
        yield
    except click.NoSuchOption as e:
        from fedfault.config.explain import explain_flag

        options = [] if e.ctx is None else [flag for known in e.ctx.command.params for flag in known.opts]
        raise UserError(explain_flag(e.option_name, [flag for flag in options if flag.startswith("-")])) from None


class _WithDefault(_Group):
    """A group whose first command, `run`, may be left out: `fedfault study FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


JOBS = "processes that run side by side; auto: runs train together on a GPU with room, on a CPU one after another"
TRAIN, READ, MANY, SITES = "One run", "What came of it", "Many runs", "Real sites"  # groups of commands in the help

app = typer.Typer(
    cls=_Group,
    help="A laboratory for federated fine-tuning of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

study_commands = typer.Typer(
    cls=_WithDefault,
    help="Many runs that differ in a stated way: `fedfault study FILE`, then `fedfault study report DIR`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(study_commands, name="study", rich_help_panel=MANY)

flower_commands = typer.Typer(
    cls=_Group,
    help="The same run over Flower: in its simulation, or on real nodes (docs/deploy.md).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(flower_commands, name="flower", rich_help_panel=SITES)

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


def _split_words(settings: list[str] | None) -> tuple[str | None, list[str]]:
    """Split words into the configuration, if the first one names one, and the overrides."""
    words = list(settings or [])
    config = words.pop(0) if words and "=" not in words[0] else None
    return config, words


SAME = "the same command goes on where it was stopped"


@contextlib.contextmanager
def _end_on_signal(on: str = "`fedfault resume RUN` goes on from the last finished round") -> Iterator[None]:
    """End the process with status 130 at an interrupt and 143 at SIGTERM, and say how to go on."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as e:
        typer.echo(f"stopped; {on}", err=True)
        raise typer.Exit(128 + (e.args[0] if e.args else signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # Slurm sends it to every process of a job, and the job's script once more
    raise KeyboardInterrupt(number)


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


@app.command(
    rich_help_panel=TRAIN, epilog="Example: `fedfault run my.yaml training.lr=1e-3 federation.algorithm=scaffold`"
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
    config, overrides = _split_words(settings)
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
    with _end_on_signal(), _choose_prepare() as ready:
        folder = start_run(loaded, progress, ready=ready, **options)
    _tell_end(folder.path, progress)


def _print_table(table: Any) -> None:
    """Print a table of a report in plain lines; None: nothing could be measured, and that is said."""
    rows = [("nothing was measured",)] if table is None else [table.columns, *table.rows]
    for row in rows:
        typer.echo("  ".join(map(str, row)))


def _tell_end(folder: Path, progress: Any) -> None:
    """Say how a run ended and what can be done with it; its report is the only line on standard output."""
    from fedfault.report.summary import describe_end
    from fedfault.runs.read import read_run

    for line in describe_end(read_run(folder)):
        progress.say(line)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command(rich_help_panel=TRAIN, epilog="Example: `fedfault resume results/quickstart`")
def resume(
    run: RunPath,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="settings that may change, such as more federation.num_rounds; device, logging",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Continue a run that was stopped, to the same numbers as without the stop, or a run to more rounds."""
    from fedfault.session.progress import Progress
    from fedfault.session.start import resume_run as go_on

    progress = Progress(quiet=quiet)
    with _end_on_signal(), _choose_prepare() as ready:
        folder = go_on(run, progress, changes or [], ready=ready)
    _tell_end(folder.path, progress)


@app.command(rich_help_panel=TRAIN, epilog="Example: `fedfault fork results/quickstart --round 6 training.lr=1e-3`")
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
    from fedfault.session.fork import fork_run as go_on
    from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    with _end_on_signal():
        options: dict[str, Any] = {"overwrite": overwrite, "plugins": plugin or (), "argv": sys.argv[1:]}
        folder = go_on(run, round, changes or [], progress, **options)
    _tell_end(folder.path, progress)


@app.command(rich_help_panel=TRAIN, epilog="Example: `fedfault watch results/quickstart`")
def watch(run: RunPath) -> None:
    """Look on while another process trains a run: round, loss, findings, time left.

    Ends with the run, and changes nothing in its folder. Needs no model and no data.
    """
    from rich.console import Console

    from fedfault.session.follow import follow_run

    with contextlib.suppress(KeyboardInterrupt):  # who looked on has seen enough; the run goes on
        follow_run(run, Console(highlight=False))


@app.command(rich_help_panel=TRAIN, epilog="Example: `fedfault check my.yaml --plot split.png`")
def check(
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="also write the picture of the split to this PNG")] = None,
    plugin: Plugins = None,
) -> None:
    """Say what a run would do, without training: who holds what, how different clients are, bytes per round."""
    from fedfault.config import load

    config, overrides = _split_words(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.setup.preview import preview

    typer.echo(preview(loaded, plot))


@app.command(rich_help_panel=READ, epilog="Example: `fedfault report results/quickstart`")
def report(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the page and its plots, where the run's cannot be written")
    ] = None,
) -> None:
    """Write report.html and the plots of a run again."""
    from fedfault.report.render import render_report

    try:
        page = render_report(run, out=out)
    except OSError as e:
        raise UserError(f"{explain_os_error(e)}; --out FOLDER writes the report elsewhere") from e
    typer.echo(f"report: {page}")


@app.command(rich_help_panel=READ, epilog="Example: `fedfault compare results/quickstart results/quickstart-fork`")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run folders; the others are compared with the first")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="file for the page")] = None,
) -> None:
    """Runs beside one another: one table, paired statistics, and a page with figures.

    Needs no model and no data.
    """
    import shutil

    from fedfault.compare.page import compare as beside
    from fedfault.compare.page import format_comparison

    found, page = beside(runs, out, argv=sys.argv[1:])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    typer.echo(format_comparison(found, width))
    typer.echo(f"page: {page}")


@app.command(rich_help_panel=READ, epilog="Example: `fedfault runs results federation.algorithm=scaffold --sort after`")
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
    from fedfault.compare import listing

    found = listing.list_runs(folder, wanted or [], sort)
    if as_json:
        import json

        typer.echo(json.dumps([entry.to_json() for entry in found], indent=1))
        return
    listing.print_list(found)
    typer.echo(f"page: {listing.write_index(folder, found)}")


@app.command(rich_help_panel=READ, epilog="Example: `fedfault diagnose results/quickstart`")
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
            help="where in the folder a client's adapter lies",
            show_default="round_{round}/ client_{client}",
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
    if run is not None and (adapters or csv or out or frozen or server or overwrite):
        raise UserError(
            "a run folder has all that is needed; the other options are for --adapters and --csv without one"
        )
    if run is not None:
        from fedfault.diagnosis.watch import diagnose_run

        typer.echo(diagnose_run(run, calibration, plugin or ())[0])
        return
    from fedfault.monitor.files import diagnose_files

    where: dict[str, Any] = {"pattern": pattern, "server": server, "frozen": frozen or (), "out": out}
    typer.echo(
        diagnose_files(adapters, csv, **where, calibration=calibration, plugins=plugin or (), overwrite=overwrite)
    )


@app.command(rich_help_panel=READ, epilog="Example: `fedfault evaluate results/quickstart --tasks my_task.yaml`")
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
    from fedfault.api.harness import evaluate_run
    from fedfault.api.run import Run
    from fedfault.report.render import render_report
    from fedfault.report.tables import tabulate_benchmarks

    evaluate_run(Run(run), tasks or [], round, clients=clients)
    _print_table(tabulate_benchmarks(Run(run).data))
    typer.echo(f"report: {render_report(run)}")


@app.command(rich_help_panel=READ, epilog="Example: `fedfault blame results/quickstart --round 3`")
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
    from fedfault.report.contributions import tabulate_contributions
    from fedfault.report.render import render_report
    from fedfault.runs.read import read_run
    from fedfault.session.blame import blame_run
    from fedfault.session.progress import Progress

    with _end_on_signal():
        blame_run(run, Progress(quiet=quiet), round, pairs)
    _print_table(tabulate_contributions(read_run(run)))
    typer.echo(f"report: {render_report(run)}")


@app.command(rich_help_panel=MANY, epilog="Example: `fedfault calibrate my.yaml --controls 19`")
def calibrate(
    settings: Settings = None,
    controls: Annotated[
        int, typer.Option("--controls", min=3, help="IID control runs; 19 for a 5 % false-alarm rate")
    ] = 19,
    out: Annotated[Path | None, typer.Option("--out", help="file for the thresholds")] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train IID control runs of a configuration and write the detectors' thresholds; goes on where it was stopped."""
    from fedfault.config import load

    config, overrides = _split_words(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.session.controls import calibrate_detectors as learn
    from fedfault.session.progress import Progress

    with _end_on_signal(SAME):
        file = learn(loaded, controls, Progress(quiet=quiet), out, argv=sys.argv[1:])
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
    from fedfault.studies import doors

    with _end_on_signal(SAME):
        options: dict[str, Any] = {"plugins": plugin or (), "results_dir": results_dir, "only_plan": plan}
        status = doors.run_study(file, settings or [], jobs=doors.parse_jobs(jobs), task=task, quiet=quiet, **options)
    raise typer.Exit(status)


@study_commands.command(name="report", epilog="Example: `fedfault study report results/quick`")
def report_study(folder: Annotated[Path, typer.Argument(metavar="DIR", help="as in results/quick")]) -> None:
    """Write report.html and report.md of a study again. Needs no model and no data."""
    from fedfault.studies.doors import write_report

    write_report(folder)


@app.command(rich_help_panel=MANY, epilog="Example: `fedfault mitigate results/quickstart --seeds 5`")
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
    from fedfault.studies.mitigate import mitigate as study_clusters
    from fedfault.studies.mitigate import read_experiment

    loaded, known = read_experiment(*_split_words(settings), plugin or ())
    with _end_on_signal(SAME):
        options: dict[str, Any] = {"seeds": seeds, "encoder": encoder, "shrinkage": shrinkage, "known": known}
        status = study_clusters(loaded, quiet=quiet, **options)
    raise typer.Exit(status)


@app.command(name="list", rich_help_panel=READ, epilog="Example: `fedfault list scaffold`")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[KIND|NAME]", help="algorithm, partition, corpus, model, or one component")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Components and what they do; with a KIND only those, with a NAME its options."""
    from fedfault.setup.preview import describe_components

    typer.echo(describe_components(what, plugin or ()))


@app.command(rich_help_panel=READ, epilog="Example: `fedfault contract tests/newcomers/sign_step.py`")
def contract(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a plug-in: a file or module with components")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options that its components are built with")
    ] = None,
) -> None:
    """Check the components of a plug-in against all rules of their kinds, a line each; status 1 if one is broken."""
    from fedfault.testing.contract import check_plugin

    raise typer.Exit(check_plugin(file, options or [], typer.echo))


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

    config, overrides = _split_words(settings)
    loaded = load(config, overrides, plugin or ())
    from fedfault.flower.simulation import simulate
    from fedfault.session.progress import Progress

    progress = Progress(quiet=quiet)
    with _end_on_signal(SAME):
        folder = simulate(loaded, progress, workers=workers, overwrite=overwrite, argv=sys.argv[1:])
    _tell_end(folder.path, progress)


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


def run_guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: bad input gives a message and status 2."""
    try:
        if this_process().rank:  # the first process of a job has the command, the others help it
            if "--help" in sys.argv:
                return 0
            from fedfault.parallel.distributed import serve_team

            return serve_team()
        return command() or 0
    except UserError as e:
        typer.echo(f"error: {e}", err=True)
        return 2
    except OSError as e:
        if e.filename is None:  # not about a file: a closed pipe, a lost connection
            raise
        typer.echo(f"error: {explain_os_error(e)}", err=True)
        return 2
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        typer.echo(
            "error: out of memory; choose a smaller model.name, or lower federation.clients_per_round, model.lora.r_max or "
            f"model.max_length ({read_first_line(e)})",
            err=True,
        )
        return 2
    except typer.Exit as e:
        return e.exit_code
    except KeyboardInterrupt:
        typer.echo(f"stopped; {SAME}", err=True)
        return 130


def main() -> None:
    """Run the command line, and exit with its status."""
    if status := run_guarded(app):
        sys.exit(status)
