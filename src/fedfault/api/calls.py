"""The public functions: each calls what the command of that name calls, and returns an object in the place of lines."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedfault.api.comparison import Comparison
from fedfault.api.run import Run
from fedfault.api.settings import Config, load_config, speak_python, spell_words, write_study
from fedfault.api.study import Study
from fedfault.arguments import take_list, take_path, take_whole
from fedfault.errors import UserError
from fedfault.processes import this_process
from fedfault.records import RoundRecord
from fedfault.runs.manifest import holds_run
from fedfault.saying import say_nothing
from fedfault.session.progress import Progress
from fedfault.types.algorithm import State

Where = Path | str | Run


class Text(str):
    """Text that a notebook and a terminal show as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        """The text itself."""
        return str(self)


@speak_python()
def run(
    config: Config = None,
    settings: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Train, and write the run folder with its report; goes on where it was stopped.

    config: a file, the name of a shipped configuration, or a mapping of settings; without one, the quickstart. settings and
    changes: what is different, as `{"training.lr": 1e-3}` and as `training__lr=1e-3`. plugins: files and modules with
    components of your own. Raises `UserError` where the command would end with status 2.
    """
    from fedfault.session.start import start_run

    _check_alone()
    words = spell_words(settings, changes)
    loaded = load_config(config, words, plugins)
    progress = Progress(quiet=quiet)
    progress.say(f"{loaded.experiment.experiment_name}: {loaded.experiment.describe()}")
    named = any(word.startswith("experiment_name=") for word in words)
    argv = _spell_command("run", config, words, plugins)
    return Run(start_run(loaded, progress, overwrite=overwrite, named=named, argv=argv).path)


def open(folder: Path | str) -> Run:
    """Open a run folder."""
    return Run(folder)


@speak_python()
def runs(folder: Path | str = "results", *wanted: str, sort: str = "age") -> builtins.list[Run]:
    """List the runs of a folder that can be read, in its folders and its studies; `wanted` and `sort` as `fedfault runs`."""
    from fedfault.compare.listing import list_runs

    found = list_runs(take_path(folder, "folder of runs"), [*map(str, wanted)], sort)
    return [Run(entry.run.folder) for entry in found if not entry.problem]


@speak_python()
def check(
    config: Config = None, settings: Mapping[str, Any] | None = None, *, plugins: Sequence[str] = (), **changes: Any
) -> Text:
    """Say what a run would do, without training: who holds what, how different clients are, bytes per round."""
    from fedfault.setup.preview import preview

    return Text(preview(load_config(config, spell_words(settings, changes), plugins)))


@speak_python()
def resume(run: Where, settings: Mapping[str, Any] | None = None, *, quiet: bool = False, **changes: Any) -> Run:
    """Continue a run that was stopped, to the same numbers as without the stop, or a run to more rounds.

    settings and changes, as of `fedfault.run`, of what can change: federation.num_rounds, personalise, device, logging.
    """
    from fedfault.session.start import resume_run

    _check_alone()
    return Run(resume_run(_find_folder(run), Progress(quiet=quiet), spell_words(settings, changes)).path)


@speak_python()
def fork(
    run: Where,
    settings: Mapping[str, Any] | None = None,
    *,
    round: int,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Go on from the checkpoint of a round with other settings, in a run of its own: what would have happened if."""
    from fedfault.session.fork import fork_run

    _check_alone()
    words, folder, round = spell_words(settings, changes), _find_folder(run), take_whole(round, "round")
    argv = ["fork", str(folder), "--round", str(round), *words, *_name_plugins(plugins)]
    options: dict[str, Any] = {"overwrite": overwrite, "plugins": take_list(plugins), "argv": argv}
    return Run(fork_run(folder, round, words, Progress(quiet=quiet), **options).path)


@speak_python()
def compare(runs: Sequence[Where], out: Path | str | None = None) -> Comparison:
    """Compare runs with the first of them: one table, paired differences with intervals, and a page with figures.

    out: the file of the page. Raises `UserError` where the second argument is a run: the first has all runs, in a list.
    """
    from fedfault.compare.page import compare as put_beside

    if isinstance(out, Run) or (out is not None and holds_run(take_path(out, "file"))):
        both = ", ".join(repr(str(_find_folder(one))) for one in (*take_list(runs), out))
        raise UserError(f"the runs are a list, ff.compare([{both}]); what follows it is the file of the page")
    folders = [_find_folder(one) for one in take_list(runs)]
    found, page = put_beside(
        folders, None if out is None else take_path(out, "file"), argv=["compare", *map(str, folders)]
    )
    return Comparison(found, page)


@speak_python()
def study(
    file: Path | str | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[str] = (),
    results_dir: Path | str | None = None,
    jobs: int | Literal["auto"] = 1,
    quiet: bool = False,
    **changes: Any,
) -> Study:
    """Run all of a study that is not done yet, write its report and return it.

    file: a study, the name of one that ships, or its keys as a mapping with an experiment_name. A run that fails stops no
    other; `Study.failures` says why. Raises `UserError` before the first run for anything that is wrong in the file, and
    after the last one if all have failed.
    """
    from fedfault.studies.file import load_study
    from fedfault.studies.page import write_page
    from fedfault.studies.runner import run_all

    _check_alone()
    words, place = (
        spell_words(settings, changes),
        None if results_dir is None else str(take_path(results_dir, "folder")),
    )
    named = not isinstance(file, Mapping) or "experiment_name" in file
    if not named and not any(word.startswith("experiment_name=") for word in words):
        raise UserError("the study has no experiment_name, which names its folder; give one")
    with write_study(file) as path:
        plan = load_study(path, words, place, _describe_study(file, words), take_list(plugins))
        found = run_all(plan, Progress(quiet=quiet), jobs=jobs)
    failures = {done.name: done.why for done in found if done.state == "failed"}
    if len(failures) == len(found):
        raise UserError("\n".join(f"{name}: {why}" for name, why in failures.items()))
    write_page(plan.folder)
    return Study(plan.folder, failures)


@speak_python()
def calibrate(
    config: Config = None,
    settings: Mapping[str, Any] | None = None,
    *,
    controls: int = 19,
    honest: bool = False,
    out: Path | str | None = None,
    plugins: Sequence[str] = (),
    quiet: bool = False,
    **changes: Any,
) -> Path:
    """Train control runs of a configuration, write the detectors' thresholds, and return the file.

    Controls have IID clients, or with `honest` those of the partition, none of them hostile, which `hostile_client` needs.
    """
    from fedfault.session.controls import calibrate_detectors

    _check_alone()
    if (controls := take_whole(controls, "controls")) < 3:
        raise UserError(f"controls={controls}: thresholds take three control runs at least, and 19 for a 5 % rate")
    words = spell_words(settings, changes)
    loaded = load_config(config, words, plugins)
    argv = [*_spell_command("calibrate", config, words, plugins), "--controls", str(controls)]
    argv += ["--honest"] if honest else []
    file = None if out is None else take_path(out, "file")
    return calibrate_detectors(loaded, controls, Progress(quiet=quiet), file, argv, same_partition=honest)


@speak_python()
def diagnose(
    run: Where | None = None,
    calibration: str | None = None,
    *,
    adapters: Path | str | None = None,
    csv: Path | str | None = None,
    pattern: str = "round_{round}/client_{client}",
    server: str | None = None,
    frozen: Sequence[str] = (),
    out: Path | str | None = None,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
) -> Run:
    """Judge a run again by its records, or a run of another program by its files; what is returned has the new verdict.

    adapters, csv and the rest as in the command (docs/monitor.md); out: the run folder that is then written, which has to be
    named. Raises `UserError` where the files do not fit, and where both are given.
    """
    from fedfault.monitor.adapters import PATTERN

    of_files = adapters or csv or out or server or take_list(frozen) or overwrite or pattern != PATTERN
    if run is not None and of_files:
        raise UserError(
            "diagnose a run, or the files of another program by adapters= and csv=, which pattern, server, frozen, out and "
            "overwrite are about, and not both"
        )
    if run is None:
        from fedfault.monitor.files import diagnose_files

        if out is None:
            raise UserError(
                "out= is missing: the run folder that is made of adapters= and csv=, as in 'results/theirs'"
            )
        files = [None if file is None else take_path(file, "file or folder") for file in (adapters, csv)]
        where: dict[str, Any] = {
            "pattern": pattern,
            "server": server,
            "frozen": take_list(frozen),
            "out": take_path(out, "folder"),
        }
        diagnose_files(*files, **where, calibration=calibration, plugins=take_list(plugins), overwrite=overwrite)
        return Run(out)
    from fedfault.diagnosis.watch import diagnose_run

    folder = _find_folder(run)
    told, kept = diagnose_run(folder, calibration, take_list(plugins))
    if not kept:
        raise UserError(told.splitlines()[-1])
    return Run(folder)


@speak_python()
def evaluate(run: Where, tasks: Sequence[str], round: int | None = None, *, clients: bool = False) -> Run:
    """Score a run's model beside its base by lm-evaluation-harness, also in its report.

    The run that is returned has the scores in `data.benchmarks`, a row for every model, task and metric.
    """
    from fedfault.api.harness import evaluate_run
    from fedfault.report.render import render_report

    folder = _find_folder(run)
    at = None if round is None else take_whole(round, "round")
    evaluate_run(Run(folder), take_list(tasks), at, clients=clients)
    render_report(folder)
    return Run(folder)


@speak_python()
def list(what: str | None = None, *, plugins: Sequence[str] = ()) -> Text:
    """Components and what they do; with a kind only those, with a name its options."""
    from fedfault.setup.preview import describe_components

    return Text(describe_components(what, take_list(plugins)))


def rounds(
    config: Config | Run = None,
    settings: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[str] = (),
    **changes: Any,
) -> Iterator[tuple[State, RoundRecord]]:
    """Yield (state, record) after every round of an experiment, first those before training: a loop of your own.

    Nothing is written and nothing watches; a state is a value, and `fedfault run` adds the folder and the detectors.
    """
    from fedfault.clustering.remedy import fill_in_clusters
    from fedfault.rounds.engine import begin
    from fedfault.rounds.engine import rounds as run_rounds
    from fedfault.runs.folder import RunFolder
    from fedfault.session.settings import load_own
    from fedfault.setup.experiment import prepare

    words = spell_words(settings, changes)
    if isinstance(config, Run):
        folder = RunFolder.open(config.folder)
        loaded = load_own(folder, folder.read_manifest(), words, take_list(plugins))
    else:
        loaded = load_config(config, words, plugins)
    exp = loaded.experiment
    fed = fill_in_clusters(prepare(exp), say_nothing)[0].federation
    yield from run_rounds(fed, begin(fed))


def _describe_study(file: Path | str | Mapping[str, Any], words: Sequence[str]) -> str:
    """The call as the report of a study names it."""
    own = "{...}" if isinstance(file, Mapping) else repr(str(file))
    return f"fedfault.study({', '.join([own, *map(repr, words)])})"


def _find_folder(run: Where) -> Path:
    return run.folder if isinstance(run, Run) else take_path(run, "run folder")


def _check_alone() -> None:
    """Raise `UserError` where torchrun has started several processes, which only commands can share."""
    if (count := this_process().count) > 1:
        raise UserError(
            f"{count} processes of torchrun share `fedfault run` and `fedfault resume` only; start this one alone"
        )


def _name_plugins(plugins: Sequence[str]) -> builtins.list[str]:
    return [word for plugin in take_list(plugins) for word in ("--plugin", plugin)]


def _spell_command(command: str, config: Config, words: Sequence[str], plugins: Sequence[str]) -> builtins.list[str]:
    """The words of the command that does the same with the same configuration."""
    own = spell_words(config, {}) if isinstance(config, Mapping) else [] if config is None else [str(config)]
    return [command, *own, *words, *_name_plugins(plugins)]
