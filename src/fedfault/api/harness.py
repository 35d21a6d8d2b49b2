"""Runs judged by lm-evaluation-harness: the base, the adapter and clients' own models on the same tasks.

What it finds is kept in benchmarks.json in the run's folder, a row for every model, task and metric.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from fedfault.api.models import explain_damage, load_adapter, load_base, load_trained, locate_personal
from fedfault.config.sections.data import SPOKEN
from fedfault.errors import UserError, quote, read_first_line
from fedfault.runs.files import lock_results, read_json, write_json
from fedfault.runs.recorded import RunData
from fedfault.storage import expand_home
from fedfault.text.conversing import choose_template
from fedfault.text.questions import find_stops

if TYPE_CHECKING:
    from fedfault.api.run import Run

FILE = "benchmarks.json"
BASE, SERVER = "base", "server"  # models of a row; others are `client ID`
KEYS = ("model", "round", "task", "metric", "filter")  # what tells one row from another
BATCH = 8  # requests in a pass
LOUD = ("lm_eval", "bitsandbytes", "transformers")  # packages that log their defaults and what they will deprecate


def evaluate_run(
    run: Run,
    tasks: Sequence[str],
    round: int | None = None,
    *,
    clients: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> None:
    """Score a run's models on tasks, and write or replace their rows in benchmarks.json.

    tasks: names that the harness knows, or its YAML files. round: the server's adapter after that round, which needs its
    checkpoint; clients: also the models that clients have of their own, of the end. Prompts are written by the chat template
    of the run where it learned from conversations, for the base too. say: is told which model is scored; bars of the harness
    show how far it is. Raises `UserError` for what is not there.
    """
    data = run.data
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; pip install 'fedfault[eval]'")
    if not tasks:
        raise UserError("name a task: --tasks NAME of lm-evaluation-harness, or a FILE.yaml of a task")
    kind = data.setting("data", "task_type")
    if data.headless:
        raise UserError(f"{data.folder} has learned labels (data.task_type={kind}); tasks are for language models")
    if round is not None and clients:
        raise UserError("--clients is about models at the end, and --round about an earlier one; give one of them")
    rows = []
    with _hush():
        names, manager = _find_tasks(tasks)
        for model, at, loaded, tokenizer in _iterate_models(run, round, clients=clients):
            say(f"scoring {model}" if model == BASE else f"scoring {model}, round {at}")
            found = _score(loaded, tokenizer, names, manager, spoken=kind in SPOKEN)
            rows += [{"model": model, "round": at, **row} for row in found]
    _keep_rows(data, rows)


@contextlib.contextmanager
def _hush() -> Iterator[None]:
    """Within the block libraries show bars and errors, and nothing of their defaults and deprecations."""
    loggers = [logging.getLogger(name) for name in LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # the harness asks git for a commit, and where there is no repository git says that this is fatal
    git = mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None, create=True)
    try:
        with warnings.catch_warnings(), git:
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _find_tasks(tasks: Sequence[str]) -> tuple[list[str], Any]:
    """The names of tasks, and lm_eval's manager that knows them. Raises `UserError` for a file or name that is none."""
    import yaml
    from lm_eval.tasks import TaskManager

    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        file = expand_home(task, "tasks")
        try:
            said = yaml.load(file.read_text(encoding="utf-8"), _Lenient)
        except FileNotFoundError:
            raise UserError(f"--tasks {task}: there is no such file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise UserError(f"--tasks {task} cannot be read: {read_first_line(e)}") from e
        if not isinstance(said, dict) or not isinstance(said.get("task"), str):
            raise UserError(f"--tasks {task} is no task of lm-evaluation-harness: it names none (`task: NAME`)")
        names.append(said["task"])
        folders.append(str(file.resolve().parent))
    shipped = any(not task.endswith((".yaml", ".yml")) for task in tasks)
    manager = TaskManager(include_path=folders or None, include_defaults=shipped)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UserError(f"lm-evaluation-harness has no task {unknown[0]!r}; `lm_eval --tasks list` names all")
    return names, manager


def _lenient_loader() -> Any:
    """A YAML loader that passes over lm_eval's own tags, such as !function."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)
    return Loader


_Lenient = _lenient_loader()


def _iterate_models(run: Run, round: int | None, *, clients: bool) -> Iterator[tuple[str, int, Any, Any]]:
    """Yield the models to score one after another, with their names, rounds and tokenizer; all share one base in memory."""
    data = run.data
    tokenizer = _load_tokenizer(run)
    if data.setting("model", "trainable") == "partial":
        if round is not None or clients:
            raise UserError("model.trainable=partial: only the model of the end can be scored")
        yield BASE, 0, load_base(data), tokenizer
        yield SERVER, data.rounds_done, load_trained(data, run.folder / "adapter"), tokenizer
        return
    model = run.adapter(round)
    with model.disable_adapter():
        yield BASE, 0, model, tokenizer
    yield SERVER, data.rounds_done if round is None else round, model, tokenizer
    if not clients:
        return
    if locate_personal(data, 0) == "adapter":
        raise UserError(f"{run.folder}: clients have no models of their own; leave --clients out")
    for k in range(data.num_clients):
        yield f"client {k}", data.rounds_done, load_adapter(data, run.folder / locate_personal(data, k)), tokenizer


def _load_tokenizer(run: Run) -> Any:
    import transformers

    folder = run.folder / "adapter"
    if not folder.is_dir():
        raise UserError(f"{run.folder} has no adapter yet; `fedfault resume {quote(run.folder)}` goes on with it")
    with explain_damage(run.data, folder):
        return transformers.AutoTokenizer.from_pretrained(str(folder))


def _score(model: Any, tokenizer: Any, names: list[str], manager: Any, *, spoken: bool) -> list[dict[str, Any]]:
    """Score a model on tasks: a row for every task, metric and filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if spoken:  # the base's own settings may not know the token by which the template ends a turn
        stops = find_stops(choose_template("auto", tokenizer, str(tokenizer.name_or_path)))
        model.generation_config.eos_token_id = sorted(stops)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=str(model.device))
    try:
        found = simple_evaluate(
            wrapped, tasks=names, task_manager=manager, log_samples=False, apply_chat_template=spoken
        )
    except Exception as e:  # tasks are programs of others, and read data from anywhere
        raise UserError(f"lm-evaluation-harness cannot score {', '.join(names)}: {read_first_line(e)}") from e
    return [row for name, own in found["results"].items() for row in _list_rows(name, own)]


def _list_rows(task: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the metrics of a task, which the harness calls `acc,none` and `acc_stderr,none`."""
    rows = []
    for key, value in found.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{metric}_stderr,{filtered}")
        error = float(error) if isinstance(error, int | float) else None
        about = {"task": task, "metric": metric, "filter": filtered, "value": float(value), "error": error}
        rows.append({**about, "examples": found.get("sample_len")})
    return rows


def _keep_rows(data: RunData, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to the run's folder, in the place of those of the same model, round, task and metric."""
    import lm_eval

    new, file = {tuple(row[key] for key in KEYS) for row in rows}, data.folder / FILE
    with lock_results(data.folder):  # others may have scored the run meanwhile
        old = read_json(file).get("rows", []) if file.is_file() else []
        kept = [row for row in old if tuple(row.get(key) for key in KEYS) not in new]
        write_json(file, {"lm_eval": lm_eval.__version__, "rows": [*kept, *map(dict, rows)]})
