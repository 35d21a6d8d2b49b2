"""One run from configuration to report, and its continuation after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedfault.backbones.load import Say
from fedfault.clustering.remedy import cluster_setting, describe_clusters, fill_in_clusters
from fedfault.config.loading import Loaded, load
from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import AUTO
from fedfault.diagnosis.watch import Watch
from fedfault.rounds.engine import begin
from fedfault.runs.folder import RunFolder
from fedfault.session.claim import choose_free_name, claim_run, locate_run, make_run_folder, write_configuration
from fedfault.session.controls import ENOUGH
from fedfault.session.progress import Progress
from fedfault.session.provenance import check_not_moved, check_same_inputs, make_manifest, write_split
from fedfault.session.rollback import find_own_settings, finish_going_back
from fedfault.session.training import train_to_end
from fedfault.setup.experiment import Prepared, prepare

Ready = Callable[[Experiment, Say], Prepared]  # `prepare`, or what lends model and data from run to run


def start_run(
    loaded: Loaded,
    progress: Progress,
    *,
    overwrite: bool = False,
    named: bool = True,
    argv: Sequence[str] = (),
    program: str = "fedfault",
    ready: Ready = prepare,
    draw: bool = True,
) -> RunFolder:
    """Run an experiment, or continue it where it was stopped. Returns its folder, finished; `draw` makes the report, too.

    Only a run of the very same configuration is continued. Unless the run is `named` by the user, a run of the same
    name but another configuration is left alone and this one is called NAME-2, NAME-3 and so on. The manifest names the
    command that makes the run: `program` with the words `argv`. Raises `UserError` before anything is written when the
    folder is taken or the experiment cannot be prepared.
    """
    loaded = loaded if named else choose_free_name(loaded, overwrite, progress.say)
    path = locate_run(loaded.experiment)
    if claim_run(path, loaded, overwrite=overwrite):
        progress.say(f"note: {path} was stopped before its end and goes on; --overwrite would start it again")
        return resume_run(path, progress, ready=ready, draw=draw)
    Watch(loaded.resolved)  # a calibration that does not fit is refused before anything is written
    for note in loaded.notes:
        progress.say(f"note: {note}")
    clock = time.perf_counter()
    prepared, found = fill_in_clusters(ready(loaded.experiment, progress.say), progress.say)
    watch = Watch(loaded.resolved, corpus=prepared.split.corpus.fingerprint)
    if watch.calibration is None and loaded.resolved["detectors"]["calibration"] == "packaged":
        progress.say(
            "note: no packaged calibration fits these settings, so the verdict will not be calibrated; "
            f"detectors.calibration={AUTO} first trains {ENOUGH} IID control runs, each about as long as this run, and "
            "keeps them for all runs like it"
        )
    folder = make_run_folder(path, overwrite=overwrite)
    with folder.lock():
        write_configuration(folder.path, loaded)
        manifest = make_manifest(prepared, argv, loaded.notes, program)
        manifest |= {"found": [cluster_setting(found)]} if found else {}
        manifest["seconds"] = {"prepare": time.perf_counter() - clock}
        folder.write_json("manifest.json", manifest)
        if found:
            folder.write_json("clusters.json", describe_clusters(prepared, found))
        write_split(folder, prepared, progress)
        train_to_end(folder, prepared, begin(prepared.federation), progress, manifest, draw=draw)
    return folder


def resume_run(path: Path, progress: Progress, *, ready: Ready = prepare, draw: bool = True) -> RunFolder:
    """Continue a run from its newest whole checkpoint; a finished run gets back any missing result.

    Raises `UserError` when the folder is no run, is damaged, or when its data or model are no longer the same.
    """
    folder = RunFolder.open(path)
    with folder.lock():
        manifest = folder.read_json("manifest.json")
        finish_going_back(folder, manifest)
        loaded = load(folder.path / "config.yaml", find_own_settings(manifest))
        clock = time.perf_counter()
        prepared = ready(loaded.experiment, progress.say)
        fed = prepared.federation
        for note in check_same_inputs(manifest, prepared):
            progress.say(f"note: {note}")
        check_not_moved(folder, manifest, fed)
        if folder.list_checkpoints() or "parent" in manifest:  # a fork never starts from the beginning
            state, warnings = folder.load(fed.task.layout, prepared.model.device)
        else:
            state, warnings = begin(fed), []  # stopped before the first checkpoint
        for warning in warnings:
            progress.say(f"warning: {warning}")
        progress.say(f"continuing after round {state.round} of {fed.num_rounds}")
        if not (folder.path / "heterogeneity.json").is_file():
            write_split(folder, prepared, progress)
        manifest["seconds"]["prepare"] += time.perf_counter() - clock
        train_to_end(folder, prepared, state, progress, manifest, draw=draw)
    return folder
