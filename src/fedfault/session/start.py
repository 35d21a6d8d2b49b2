"""One run from configuration to report, and its continuation after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.clustering.clusters import Clusters
from fedfault.clustering.remedy import cluster_setting, describe_clusters, fill_in_clusters
from fedfault.config.loading import Loaded, load_resolved
from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import AUTO, find_obstacles
from fedfault.diagnosis.watch import Watch
from fedfault.errors import UserError
from fedfault.rounds.engine import begin
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST, describe_bends
from fedfault.saying import Say
from fedfault.session.claim import choose_free_name, claim_new_run, claim_run, locate_run, write_configuration
from fedfault.session.controls import ENOUGH
from fedfault.session.progress import Progress
from fedfault.session.provenance import (
    check_not_moved,
    check_same_inputs,
    describe_versions,
    find_other_versions,
    make_manifest,
    tell_where_data_were,
    write_split,
)
from fedfault.session.rollback import finish_going_back, load_state
from fedfault.session.settings import find_own_settings, read_begun_settings, read_settings, record_settings
from fedfault.session.training import train_to_end
from fedfault.setup.experiment import Prepared, prepare
from fedfault.setup.privacy import describe_privacy, draw_secret

Ready = Callable[[Experiment, Say], Prepared]  # `prepare`, or what lends model and data from run to run

FEW = 3  # settings in which a calibration differs: worth naming


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
    settings = draw_secret(loaded.experiment)
    own = load_resolved(loaded.resolved, path / "config.yaml", settings)
    prepared, found = fill_in_clusters(ready(own.experiment, progress.say), progress.say)
    for line in describe_privacy(prepared.federation):
        progress.say(line)
    settings += [cluster_setting(found)] if found else []
    watch = Watch(loaded.resolved, corpus=prepared.split.corpus.fingerprint, model=prepared.backbone.fingerprint)
    if watch.calibration is None and loaded.resolved["detectors"]["calibration"] == "packaged":
        nearest, wrong = find_obstacles(loaded.resolved, prepared.split.corpus.fingerprint)
        because = f" (the nearest, {nearest}, differs in {', '.join(wrong)})" if len(wrong) <= FEW else ""
        progress.say(
            f"note: no packaged calibration fits these settings{because}, so the verdict will not be calibrated; "
            f"detectors.calibration={AUTO} first trains {ENOUGH} IID control runs, each about as long as this run, and "
            "keeps them for all runs like it"
        )
    with claim_new_run(path, overwrite=overwrite) as folder:
        manifest = make_manifest(prepared, argv, loaded, program)
        manifest["seconds"] = {"prepare": time.perf_counter() - clock}
        manifest |= {"found": settings} if settings else {}
        _train_from_start(folder, loaded, prepared, found, manifest, progress, draw)
    return folder


def resume_run(
    path: Path, progress: Progress, changes: Sequence[str] = (), *, ready: Ready = prepare, draw: bool = True
) -> RunFolder:
    """Continue a run from its newest whole checkpoint; a finished run gets back any missing result.

    changes: `key=value`, as more rounds, that hold from now on and are written down. Raises `UserError` when the folder is
    no run or is damaged, when its configuration was edited, or when its data or model are no longer the same.
    """
    folder = RunFolder.open(path)
    with folder.lock():
        manifest = folder.read_manifest()
        if manifest["status"] == "begun":
            _start_again(folder, manifest, progress, changes, ready, draw)
            return folder
        finish_going_back(folder, manifest)
        loaded, notes = read_settings(folder, manifest, changes)
        clock = time.perf_counter()
        own = load_resolved(loaded.resolved, folder.path / MANIFEST, find_own_settings(manifest))
        Watch(own.resolved)  # a calibration that does not fit is refused before anything is written
        with tell_where_data_were(manifest):
            prepared = ready(own.experiment, progress.say)
        versions = find_other_versions(manifest, prepared)
        for note in (*notes, *check_same_inputs(manifest, prepared), *describe_versions(versions)):
            progress.say(f"note: {note}")
        check_not_moved(folder, manifest, prepared.federation)
        prepared, state = load_state(folder, prepared, loaded, manifest, progress)
        record_settings(folder, manifest, loaded, state.round, versions)
        for note in describe_bends(manifest):
            progress.say(f"note: {note}")
        progress.say(f"continuing after round {state.round} of {prepared.federation.num_rounds}")
        write_split(folder, prepared, progress)
        seconds = manifest.setdefault("seconds", {})
        seconds["prepare"] = seconds.get("prepare", 0.0) + time.perf_counter() - clock
        train_to_end(folder, prepared, state, progress, manifest, draw=draw)
    return folder


def _start_again(
    folder: RunFolder,
    manifest: Mapping[str, Any],
    progress: Progress,
    changes: Sequence[str],
    ready: Ready,
    draw: bool,
) -> None:
    """Start a run that was killed before it had begun to train, by what its manifest says of it."""
    if "parent" in manifest:
        raise UserError(
            f"{folder.path} is a fork that was stopped before it had its parent's past; nothing is lost: "
            f"`{manifest['command']}` makes it again"
        )
    loaded, changed = read_begun_settings(folder, manifest, changes)
    clock = time.perf_counter()
    settings = draw_secret(loaded.experiment)
    own = load_resolved(loaded.resolved, folder.path / MANIFEST, settings)
    with tell_where_data_were(manifest):
        prepared, found = fill_in_clusters(ready(own.experiment, progress.say), progress.say)
    check_not_moved(folder, manifest, prepared.federation)
    settings += [cluster_setting(found)] if found else []
    made = make_manifest(prepared, manifest["argv"], loaded) | {"command": manifest["command"]}
    made |= {"found": settings} if settings else {}
    continued = [
        *manifest.get("continued", ()),
        *([{"after": 0, "changes": changed, "versions": {}}] if changed else []),
    ]
    made |= {"continued": continued} if continued else {}
    made["seconds"] = {"prepare": time.perf_counter() - clock}
    _train_from_start(folder, loaded, prepared, found, made, progress, draw)


def _train_from_start(
    folder: RunFolder,
    loaded: Loaded,
    p: Prepared,
    found: Clusters | None,
    manifest: dict[str, Any],
    progress: Progress,
    draw: bool,
) -> None:
    """Fill the folder of a new run, manifest first, and train to the end."""
    folder.begin(manifest)
    write_configuration(folder.path, loaded)
    if found:
        folder.write_json("clusters.json", describe_clusters(p, found))
    write_split(folder, p, progress)
    train_to_end(folder, p, begin(p.federation), progress, manifest, draw=draw)
