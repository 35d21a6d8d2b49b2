"""Experiment trackers that are told every round: trackio, TensorBoard, Weights & Biases, MLflow. None may disturb a run.

Each writes below the run's own folder, and a run that is continued goes on where it was:

    RUN/trackers/trackio/       TRACKIO_DIR=RUN/trackers/trackio trackio show --project fedfault
    RUN/trackers/tensorboard/   tensorboard --logdir RUN/trackers/tensorboard
    RUN/trackers/wandb/         wandb sync RUN/trackers/wandb/offline-run-*      (--append from a continued run's second on)
    RUN/trackers/mlflow/        mlflow ui --backend-store-uri RUN/trackers/mlflow  (with MLFLOW_ALLOW_FILE_STORE=true)

They get the configuration, numbers, what detectors say and the verdict, nothing of the environment. Names are chosen so
that tools, which sort them, show the scores of the mixture first: evaluation, evaluation_by_client, evaluation_by_topic,
evaluation_of_general, evaluation_of_personal, probes, probes_by_layer, seconds, traffic. A library's own variables keep
their meaning: who sets TRACKIO_DIR, TRACKIO_SPACE_ID, WANDB_MODE=online or MLFLOW_TRACKING_URI wants the run to go there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from fedfault.config.changes import flatten_settings
from fedfault.config.sections.data import METRICS
from fedfault.errors import UserError, suggest
from fedfault.records import ANSWERS, Finding, RoundRecord
from fedfault.saying import Say
from fedfault.storage import write_atomically

PROJECT = "fedfault"
VERDICT = "verdict"  # the name of the sentence after the last round
HEADLINES = ("evaluation/loss", "evaluation/perplexity", "evaluation/accuracy", "evaluation/pearson")  # beside HPARAMS
TRAINS = ("seed", "model", "data", "federation", "training")  # sections that say how a run trains
SECONDS = 60.0  # that a library may take to start, note a round or finish


class Tracker(Protocol):
    """A started run of one library. Making it starts it: (name, config, folder), the folder is there on a continued run."""

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None: ...

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Note the numbers of a round."""

    def tell(self, round: int, name: str, text: str) -> None:
        """Note a sentence: what a detector said in a round, or the verdict after the last one."""

    def finish(self) -> None:
        """Write out what is left."""


class Trackio:
    """A run in the project `fedfault` of trackio's database; a continued run is found by its name.

    What detectors say and the verdict are its alerts.
    """

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        resume = "allow" if folder.exists() else "never"
        self.library = _import_trackio(folder)
        self.run = self.library.init(
            project=PROJECT,
            name=name,
            config=dict(config),
            resume=resume,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(numbers), step=round)

    def tell(self, round: int, name: str, text: str) -> None:
        """See `Tracker`."""
        levels = self.library.AlertLevel
        level = levels.INFO if name == VERDICT else levels.ERROR if text.startswith("alarm") else levels.WARN
        self.run.alert(name, text, level=level, step=round)

    def finish(self) -> None:
        """See `Tracker`."""
        self.run.finish()


def _import_trackio(folder: Path) -> Any:
    """Import the library so that it writes to `folder`: it reads TRACKIO_DIR once, so that each run imports it anew."""
    if "TRACKIO_DIR" in os.environ:
        return importlib.import_module("trackio")
    folder.mkdir(parents=True, exist_ok=True)
    for module in [m for m in sys.modules if m.partition(".")[0] == "trackio"]:
        del sys.modules[module]
    os.environ["TRACKIO_DIR"] = str(folder.absolute())
    try:
        return importlib.import_module("trackio")
    finally:
        del os.environ["TRACKIO_DIR"]


class TensorBoard:
    """Event files, one for every start of the run, in a folder with its name, which the tool shows.

    The configuration is under TEXT and, as far as it says how the run trains, under HPARAMS; so are alarms and the verdict.
    Rounds that a run trains again after a way back take the place of those that it gave up.
    """

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        self.open = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.folder, self.last = str(folder / Path(name).name), -1
        self.writer = self.open(self.folder)
        hparams = importlib.import_module("torch.utils.tensorboard.summary").hparams
        for summary in hparams(_choose_hparams(config), dict.fromkeys(HEADLINES, 0.0)):
            self.writer.file_writer.add_summary(summary)
        text = json.dumps({"experiment_name": name, **config}, indent=1, default=str)
        self.writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))  # Markdown for code

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if round <= self.last:
            self.writer.close()
            self.writer = self.open(self.folder, purge_step=round)  # the tool drops what it has from there on
        self.last = round
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()

    def tell(self, round: int, name: str, text: str) -> None:
        """See `Tracker`."""
        self.writer.add_text(name, text, round)

    def finish(self) -> None:
        """See `Tracker`."""
        self.writer.close()


def _choose_hparams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the settings that say how a run trains, by dotted keys, as numbers, words and truth values."""
    flat = flatten_settings({key: config[key] for key in TRAINS if key in config})
    return {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in flat.items() if v is not None}


class Wandb:
    """An offline run in the project `fedfault`; a continued run has the same id, kept in the file run_id.

    Alarms and the verdict are in its summary. The library ignores numbers of a step below its last one, so that its steps go
    on where rounds are trained again after a way back; the axis of its charts is `round`. Host name, command line, git
    remote and printed lines, which the library would record too, are switched off.
    """

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        wandb = importlib.import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "run_id"
        if not id_file.is_file():
            write_atomically(id_file, uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=PROJECT,
            name=name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            reinit="create_new",  # beside a run that the calling program may have of its own
            dir=str(folder.parent.absolute()),  # the library adds wandb/
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_meta=True, x_disable_stats=True
            ),
        )
        self.run.define_metric("*", step_metric="round")
        self.again = folder / "rounds_again"  # how many rounds the run has trained again
        self.ahead, self.last = int(self.again.read_text(encoding="utf-8")) if self.again.is_file() else 0, -1

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if round <= self.last:
            self.ahead += self.last + 1 - round
            write_atomically(self.again, str(self.ahead))
        self.last = round
        self.run.log({"round": round, **numbers}, step=round + self.ahead)

    def tell(self, round: int, name: str, text: str) -> None:
        """See `Tracker`."""
        self.run.summary[name] = text

    def finish(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class Mlflow:
    """A run in the experiment `fedfault` of MLflow, in a store of files; a continued run has the id in the file run_id.

    The configuration becomes parameters by dotted keys, alarms and the verdict tags. Names and values are cut to what
    MLflow takes.
    """

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri()
        with _set_variables(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"):
            self.client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=uri)
            self.entities = importlib.import_module("mlflow.entities")
            folder.mkdir(parents=True, exist_ok=True)
            id_file = folder / "run_id"
            if id_file.is_file():
                self.id = id_file.read_text(encoding="utf-8")
                return
            known = self.client.get_experiment_by_name(PROJECT)
            experiment = self.client.create_experiment(PROJECT) if known is None else known.experiment_id
            self.id = str(self.client.create_run(experiment, run_name=name).info.run_id)
            write_atomically(id_file, self.id)
        pairs = [self.entities.Param(key, str(value)[:500]) for key, value in flatten_settings(config).items()]
        for first in range(0, len(pairs), 100):  # as many as MLflow takes at a time
            self.client.log_batch(self.id, params=pairs[first : first + 100])

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        found = [self.entities.Metric(_clean_name(name), value, now, round) for name, value in numbers.items()]
        self.client.log_batch(self.id, metrics=found)

    def tell(self, round: int, name: str, text: str) -> None:
        """See `Tracker`."""
        self.client.set_tag(self.id, _clean_name(name), text[:5000])
        if name == VERDICT:  # the description of the run, as the tool cuts long tags off
            self.client.set_tag(self.id, "mlflow.note.content", text[:5000])

    def finish(self) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.id)


def _clean_name(name: str) -> str:
    """Return a name with the signs that MLflow takes, of no more than its length."""
    return re.sub(r"[^\w./: -]", "_", name)[:250]


@contextlib.contextmanager
def _set_variables(**values: str) -> Iterator[None]:
    """Within the block, variables of the environment have these values, unless the user has given them others."""
    mine = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


LIBRARIES: dict[str, type[Tracker]] = {
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


class Trackers:
    """The trackers of a run. One that is not installed, fails or does not answer is switched off with one line.

    names: keys of `LIBRARIES`; say: is told that line. Raises `UserError` for another name.
    """

    def __init__(self, names: Sequence[str], say: Say) -> None:
        for name in names:
            if name not in LIBRARIES:
                known = ", ".join(LIBRARIES)
                raise UserError(f"no tracker called {name!r}{suggest(name, LIBRARIES)} (known: {known})")
        self.names, self.say = tuple(dict.fromkeys(names)), say
        self.running: dict[str, Tracker] = {}
        self.labelled = False

    @contextlib.contextmanager
    def open_run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[None]:
        """Within the block `log` reports the rounds of the run `name`; everything is written below `folder`."""
        self.labelled = config.get("data", {}).get("task_type") in METRICS
        for library in self.names:
            with self._switch_off_on_error(library):
                self.running[library] = _call_in_time(LIBRARIES[library], name, config, folder / library)
        try:
            yield
        finally:
            for library, tracker in list(self.running.items()):
                with self._switch_off_on_error(library):
                    _call_in_time(tracker.finish)
            self.running.clear()

    def log(self, record: RoundRecord) -> None:
        """Tell every tracker the numbers of a round."""
        found = collect_numbers(record, self.labelled)
        self._call_each("log", record.round, found)

    def tell(self, finding: Finding) -> None:
        """Tell every tracker what a detector said."""
        said = f"{finding.level} in round {finding.round}: {finding.sentence}"
        self._call_each("tell", finding.round, f"alarms/{finding.detector}", said)

    def conclude(self, round: int, verdict: Mapping[str, Any]) -> None:
        """Tell every tracker how the run ended, after its last round."""
        self._call_each("tell", round, VERDICT, f"{verdict['state']}: {verdict['sentence']}")

    def _call_each(self, what: str, *args: Any) -> None:
        """Call this method of every tracker that runs."""
        for library, tracker in list(self.running.items()):
            with self._switch_off_on_error(library):
                _call_in_time(getattr(tracker, what), *args)

    @contextlib.contextmanager
    def _switch_off_on_error(self, library: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as e:
            self.running.pop(library, None)
            lines = str(e).strip().splitlines()
            why = f"{type(e).__name__}: {lines[0][:200]}" if lines else type(e).__name__
            hint = ", pip install 'fedfault[trackers]'" if isinstance(e, ImportError) else ""
            self.say(f"warning: tracker {library} is switched off ({why}{hint}); training goes on")


def _call_in_time(call: Callable[..., Any], *args: Any) -> Any:
    """Return or raise what the call does; raise `TimeoutError` after `SECONDS`, when its thread is left behind.

    What libraries print goes nowhere: standard output is for results.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(call(*args))
        except BaseException as e:
            answer.set_exception(e)

    thread = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stdout(io.StringIO()):
        thread.start()
        thread.join(SECONDS)
    if not answer.done():
        raise TimeoutError(f"no answer within {SECONDS:g} seconds")
    return answer.result()


def collect_numbers(record: RoundRecord, labelled: bool = False) -> dict[str, float]:
    """Return what trackers are told of a round, by name; numbers that are not finite are left out.

    labelled: whether labels or scores are learned, of whose loss there is no perplexity.

    >>> collect_numbers(RoundRecord(1, probes={"update_norm": 0.5, "cosine": float("nan")}, bytes_up=8))
    {'probes/update_norm': 0.5, 'traffic/bytes_up': 8.0, 'traffic/bytes_down': 0.0}
    """
    found: dict[str, float] = {}
    labelled = labelled or any(score.metrics.keys() - {*ANSWERS} for score in record.scores.values())
    for name, score in record.scores.items():
        others = {**({} if labelled else {"perplexity": score.perplexity}), **score.metrics}
        place = _place_score(name)
        found |= {f"{place}/{key}": value for key, value in {"loss": score.loss, **others}.items()}
    found |= {f"probes{'_by_layer' * ('/' in name)}/{name}": value for name, value in record.probes.items()}
    found |= {"traffic/bytes_up": record.bytes_up, "traffic/bytes_down": record.bytes_down}
    found |= {f"seconds/{name}": value for name, value in record.seconds.items()}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _place_score(name: str) -> str:
    """Return the group of an evaluation set; that of the mixture sorts first.

    >>> [_place_score(name) for name in ("validation", "general", "client/3")]
    ['evaluation', 'evaluation_of_general', 'evaluation_by_client/3']
    """
    kind, _, which = name.partition("/")
    return (
        f"evaluation_by_{kind}/{which}" if which else "evaluation" if name == "validation" else f"evaluation_of_{name}"
    )
