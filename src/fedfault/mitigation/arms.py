"""The runs that clusters are compared with: the same clients, texts, cohorts and batches, one difference each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedfault.clustering.clusters import Clusters
from fedfault.clustering.remedy import clustered
from fedfault.config.changes import NO_CAUSE, find_changes
from fedfault.config.loading import Loaded, load
from fedfault.errors import UserError
from fedfault.mitigation.central import central
from fedfault.records import Records, RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.files import find_status, read_records
from fedfault.runs.folder import RunFolder
from fedfault.runs.read import read_config
from fedfault.session.progress import Progress
from fedfault.session.start import resume, start
from fedfault.setup.experiment import Prepared
from fedfault.storage import write_atomically


def arms(found: Clusters, shrinkage: float) -> dict[str, list[str]]:
    """Name -> settings of the runs besides the vanilla one and the centralised one.

    IFCA has as many clusters to find, two at least. With one cluster there is nothing to train for clusters: it is vanilla.
    """
    own = {"clusters": clustered(found.labels, shrinkage)} if found.k > 1 else {}
    ifca = ["federation.algorithm=ifca", f"federation.algorithm.num_clusters={max(2, found.k)}"]
    return {**own, "ifca": ifca, "local": clustered(range(len(found.labels)))}


def trained(
    config: Path,
    settings: Sequence[str],
    path: Path,
    progress: Progress,
    *,
    known: RunFolder | None,
    argv: Sequence[str],
) -> Records:
    """The records of a run of a configuration with settings in a folder of its own, from the folder where it is there.

    A run that was stopped goes on. `known` is a finished run that is used instead if nothing but its name differs.
    Raises `UserError` where the folder holds a run with other settings.
    """
    place = [f"experiment_name={path.name}", f"logging.results_dir={path.parent}"]
    loaded = load(config, [*settings, "federation.on_failure=continue", *place])
    if known is not None and _same(known, loaded):
        return known.records()
    if not find_status(path):
        return start(loaded, progress, argv=argv).records()
    folder = RunFolder.open(path)
    if read_config(path) != loaded.resolved:
        differ = ", ".join(find_changes(load(path / "config.yaml").resolved, loaded.resolved)) or "its file"
        raise UserError(f"{path} holds a run with other settings ({differ}); give another experiment_name or delete it")
    finished = folder.read_json("manifest.json")["status"] == "finished"
    return (folder if finished else resume(path, progress)).records()


def _same(folder: RunFolder, loaded: Loaded) -> bool:
    """Whether a run is finished and had these settings all along."""
    manifest = folder.read_json("manifest.json")
    before = load(folder.path / "config.yaml").resolved
    differ = [key for key in find_changes(before, loaded.resolved) if not key.startswith(NO_CAUSE)]
    return manifest["status"] == "finished" and not manifest.get("abandoned") and not differ


def trained_centrally(p: Prepared, records: Records, file: Path, progress: Progress) -> Records:
    """The records of centralised training on the budget of a run, of which these are the records; kept in a file."""
    if file.is_file():
        return read_records(file)[0]
    fed, found = central(p.federation, records), list[RoundRecord]()
    progress.say(f"all data in one place, {fed.work.steps} steps a round")
    with progress.rounds(fed.num_rounds, []):
        for _, record in rounds(fed, begin(fed)):
            found.append(record)
            progress.show(record)
    write_atomically(file, "".join(json.dumps(r.to_json(), allow_nan=False) + "\n" for r in found))
    return found
