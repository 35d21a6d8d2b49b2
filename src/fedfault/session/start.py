"""One run from configuration to report, and its continuation after a stop."""

from __future__ import annotations

import datetime
import itertools
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import fedfault
from fedfault.backbones.load import Say
from fedfault.clustering.remedy import in_clusters
from fedfault.config.files import dump
from fedfault.config.loading import Loaded, load
from fedfault.config.schema import METRICS, Experiment
from fedfault.data.labelled import classes
from fedfault.diagnosis.watch import Watch, describe_finding
from fedfault.errors import UserError
from fedfault.processes import place
from fedfault.records import Finding, RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.runs.folder import RunFolder, best_round, is_run
from fedfault.runs.outcome import summary
from fedfault.runs.read import read_config
from fedfault.session import rollback
from fedfault.session.progress import Progress
from fedfault.session.trackers import Trackers
from fedfault.setup.experiment import Prepared, facts, prepare
from fedfault.types.algorithm import State

CARD_NOTES = {  # trait of the aggregation -> what a user of the exported adapter has to know
    "folds": "The run added to the frozen weights too; this adapter stands for the whole change of the original model.",
    "private": (
        "Each client has kept a part of its adapter to itself. Here its place is taken by the mean over all clients, which "
        "none of them uses: the score `personal` is not this adapter's."
    ),
}
Ready = Callable[[Experiment, Say], Prepared]  # `prepare`, or what lends model and data from run to run
VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def start(
    loaded: Loaded,
    progress: Progress,
    *,
    overwrite: bool = False,
    named: bool = True,
    argv: Sequence[str] = (),
    ready: Ready = prepare,
    draw: bool = True,
) -> RunFolder:
    """Run an experiment, or continue it where it was stopped. Returns its folder, finished; `draw` its report, too.

    Only a run of the very same configuration is continued. Unless the run is `named` by the user, a run of the same
    name but another configuration is left alone and this one is called NAME-2, NAME-3 and so on. Raises `UserError`
    before anything is written when the folder is taken or the experiment cannot be prepared.
    """
    loaded = loaded if named else _free_name(loaded, overwrite, progress)
    exp = loaded.experiment
    path = _path(exp)
    if not overwrite and _begun(path, loaded):
        progress.say(f"note: {path} was stopped before its end and goes on; --overwrite would start it again")
        return resume(path, progress, ready=ready, draw=draw)
    RunFolder.check_free(path, overwrite=overwrite)
    Watch(loaded.resolved)  # a calibration that does not fit is refused before anything is written
    for note in loaded.notes:
        progress.say(f"note: {note}")
    clock = time.perf_counter()
    prepared, found = in_clusters(ready(exp, progress.say), progress.say)
    folder = RunFolder.create(path, overwrite=overwrite)
    with folder.locked():
        (folder.path / "config.yaml").write_text(dump(loaded.resolved), encoding="utf-8")
        manifest = _manifest(prepared, argv, loaded.notes) | ({"found": found} if found else {})
        manifest["seconds"] = {"prepare": time.perf_counter() - clock}
        folder.write_json("manifest.json", manifest)
        _describe_split(folder, prepared, progress)
        _go(folder, prepared, begin(prepared.federation), progress, manifest, draw=draw)
    return folder


def _describe_split(folder: RunFolder, p: Prepared, progress: Progress) -> None:
    if p.data_elsewhere:
        return
    folder.write_json("split.json", p.split.to_json())
    found = p.heterogeneity(progress.say)
    folder.write_json("heterogeneity.json", found)
    for sentence in found["sentences"]:
        progress.say(sentence)


def _path(exp: Experiment) -> Path:
    return Path(exp.logging.results_dir).expanduser() / exp.experiment_name


def _free_name(loaded: Loaded, overwrite: bool, progress: Progress) -> Loaded:
    """The first of NAME, NAME-2, ... that is free or holds this very configuration."""
    name = loaded.experiment.experiment_name
    for number in itertools.count(1):
        candidate = _renamed(loaded, name if number == 1 else f"{name}-{number}")
        path = _path(candidate.experiment)
        taken = is_run(path)
        if not taken and overwrite and number > 1:
            return loaded
        if not taken or _holds(path, candidate):
            if number > 1:
                progress.say(f"note: {_path(loaded.experiment)} holds a run with other settings; this one is {path}")
            return candidate
    raise AssertionError("unreachable")


def _begun(path: Path, loaded: Loaded) -> bool:
    """Whether the folder holds this very run, from its first round on, and not its end."""
    if not is_run(path) or not _holds(path, loaded):
        return False
    manifest = RunFolder(path).read_json("manifest.json")
    return manifest.get("status") == "running" and "parent" not in manifest  # a fork's past is another one


def _holds(path: Path, loaded: Loaded) -> bool:
    return read_config(path) == loaded.resolved


def _renamed(loaded: Loaded, name: str) -> Loaded:
    return replace(
        loaded,
        experiment=loaded.experiment.model_copy(update={"experiment_name": name}),
        resolved={**loaded.resolved, "experiment_name": name},
    )


def resume(path: Path, progress: Progress, *, ready: Ready = prepare, draw: bool = True) -> RunFolder:
    """Continue a run from its newest whole checkpoint; a finished run gets back any missing result.

    Raises `UserError` when the folder is no run, is damaged, or when its data or model are no longer the same.
    """
    folder = RunFolder.open(path)
    with folder.locked():
        manifest = folder.read_json("manifest.json")
        rollback.repair(folder, manifest)
        loaded = load(folder.path / "config.yaml", rollback.settings(manifest))
        clock = time.perf_counter()
        prepared = ready(loaded.experiment, progress.say)
        _check_same(manifest, facts(prepared))
        fed = prepared.federation
        _check_place(folder, manifest, fed)
        if folder.kept() or "parent" in manifest:  # a fork never starts from the beginning
            state, warnings = folder.load(fed.task.layout, prepared.model.device)
        else:
            state, warnings = begin(fed), []  # stopped before the first checkpoint
        for warning in warnings:
            progress.say(f"warning: {warning}")
        progress.say(f"continuing after round {state.round} of {fed.num_rounds}")
        if not (folder.path / "heterogeneity.json").is_file():
            _describe_split(folder, prepared, progress)
        manifest["seconds"]["prepare"] += time.perf_counter() - clock
        _go(folder, prepared, state, progress, manifest, draw=draw)
    return folder


def _go(
    folder: RunFolder, p: Prepared, state: State, progress: Progress, manifest: dict[str, Any], *, draw: bool = True
) -> None:
    """Train to the end, a checkpoint after every round, then write the results."""
    clock = time.perf_counter()
    config = p.config.model_dump()
    watch, trackers = Watch(config), Trackers(p.config.logging.trackers, progress.say)
    manifest.pop("stopped", None)
    said: tuple[str, ...] = ()
    with trackers.started(p.config.experiment_name, config, folder.path / "trackers"):
        while True:
            state, alarms = _train(folder, p, state, progress, watch, trackers, said)
            if not alarms or p.config.federation.on_failure == "stop":
                break
            said = ()
            if (back := rollback.roll_back(folder, p, alarms, manifest, progress)) is not None:
                p, state, said = back[0], back[1], (back[2],)
                watch = Watch(p.config.model_dump())
    alarms = alarms if state.round < p.federation.num_rounds else []  # at the end there is nothing to stop
    if alarms:
        manifest["stopped"] = {"round": state.round, "by": [f.detector for f in alarms]}
        progress.say(f"stopped after round {state.round}, as federation.on_failure=stop asks")
    trained = time.perf_counter()
    _finish(folder, p, state, folder.records(), manifest, watch)
    manifest["seconds"]["rounds"] = manifest["seconds"].get("rounds", 0.0) + trained - clock
    manifest["seconds"]["results"] = time.perf_counter() - trained
    manifest["status"] = "stopped" if alarms else "finished"
    folder.write_json("manifest.json", manifest)
    if draw:
        from fedfault.report.render import render

        render(folder.path)


def _train(
    folder: RunFolder,
    p: Prepared,
    state: State,
    progress: Progress,
    watch: Watch,
    trackers: Trackers,
    said: tuple[str, ...],
) -> tuple[State, list[Finding]]:
    """Rounds to the end, or to the first alarm that the run should not pass: where it got, and those alarms.

    `said` are events of the first of them.
    """
    records = folder.rewind(state.round)
    with progress.rounds(p.federation.num_rounds, records):
        for after, measured in rounds(p.federation, state):
            record, said = replace(measured, events=(*said, *measured.events)), ()
            folder.append(record)
            records.append(record)
            folder.save(after, p.config.logging.keep_checkpoints, best_round(records))
            state = after
            progress.show(record)
            trackers.log(record)
            found = watch.find_new(records)
            for finding in found:
                progress.say(describe_finding(finding))
            if found:
                watch.write_findings(folder.path, records)
            alarms = [f for f in found if f.level == "alarm"]
            if alarms and p.config.federation.on_failure != "continue":
                return state, alarms
    return state, []


def _finish(
    folder: RunFolder, p: Prepared, state: State, records: list[RoundRecord], manifest: dict[str, Any], watch: Watch
) -> None:
    from fedfault.backbones.export import export

    watch.write_findings(folder.path, records)
    metric, target = p.config.metric, p.config.evaluation.target_score
    aim = None if metric is None or target is None else (metric, target)
    found = {**summary(records, p.split.bytes_per_token, aim), "verdict": watch.judge(records)}
    folder.write_json("metrics.json", found)
    folder.write_clients(records)
    labels = classes(p.config, p.split.corpus)
    card, place = _card(p, found, manifest, labels), folder.path / "adapter"
    models = p.federation.algorithm.models(state)
    mean = f"\nThis is the mean of {', '.join(models)}, which lie beside it and which clients use.\n" if models else ""
    export(place, p.backbone, p.model, state.adapter, card + mean, state.base, labels)
    for name, x in models.items():
        own = f"\nThis is {name}; the scores above are those of the mean of {', '.join(models)}.\n"
        export(place / name, p.backbone, p.model, x, card + own, state.base, labels)


def _check_same(manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """A continued run must see the data and the model that it started with."""
    for what in ("corpus", "model"):
        before = manifest.get(what, {}).get("fingerprint")
        if before != now[what]["fingerprint"]:
            raise UserError(
                f"the {what} is not the one this run started with ({manifest.get(what, {}).get('source')} then, "
                f"{now[what]['source']} now); start a new run"
            )


def _check_place(folder: RunFolder, manifest: dict[str, Any], fed: Federation) -> None:
    """What clients keep is where they are: a run cannot move."""
    if manifest.get("over_flower", False) != fed.memory_elsewhere:
        there, here = "over Flower", "in one process"
        before, how = (here, "fedfault resume") if fed.memory_elsewhere else (there, "fedfault flower run")
        raise UserError(
            f"{folder.path} is a run {before}, and what its clients keep is there; continue it with `{how}`, or give "
            "another experiment_name"
        )


def _manifest(p: Prepared, argv: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    import torch

    return {
        "status": "running",
        "fedfault": fedfault.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
        "platform": platform.platform(),
        "device": str(p.model.device),
        "threads": torch.get_num_threads(),
        "processes": place().count,
        "precision": p.backbone.precision,
        "command": shlex.join(["fedfault", *argv]),
        "argv": list(argv),
        "seed": p.config.seed,
        "over_flower": p.federation.memory_elsewhere,
        "data_elsewhere": p.data_elsewhere,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "notes": list(notes),
        **facts(p),
    }


def commit() -> str | None:
    """The commit of the checkout that the package runs from, `+` when it has changes; None outside a checkout."""
    here = Path(fedfault.__file__).parent
    git = ["git", "-C", str(here)]
    try:
        if subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=False
        ).returncode:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _shown(scores: Mapping[str, Mapping[str, float]], name: str, metric: str) -> str:
    """A score as the card shows it."""
    value = scores.get(name, {}).get(metric)
    return "–" if value is None else f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"


def _card(p: Prepared, found: dict[str, Any], manifest: dict[str, Any], labels: Sequence[str]) -> str:
    """README.md of the adapter: the YAML head that model hubs read, what it is, how it did, how to load it."""
    import jinja2

    exp, source = p.config, p.backbone.source
    head = {
        "base_model": exp.model.name if Path(source).exists() else source,
        "library_name": "peft" if exp.model.trainable == "lora" else "transformers",
        "tags": ["fedfault", "federated-learning", exp.federation.algorithm.name],
    }
    loader = jinja2.PackageLoader("fedfault", "backbones")
    environment = jinja2.Environment(loader=loader, autoescape=False, keep_trailing_newline=True)
    return environment.get_template("card.md").render(
        head=yaml.safe_dump(head, sort_keys=False).strip(),
        exp=exp,
        corpus=p.split.corpus,
        found=found,
        manifest=manifest,
        names=[n for n in found["final"] if not n.startswith("client/")],
        metrics=list(METRICS.get(exp.data.task_type, ("perplexity",))),
        value=_shown,
        pooling=p.backbone.pooling,
        separator=p.backbone.separator,
        labels=list(labels) if exp.data.task_type == "classification" else [],
        notes=[CARD_NOTES[trait] for trait in sorted(p.federation.aggregation.traits & set(CARD_NOTES))],
    )
