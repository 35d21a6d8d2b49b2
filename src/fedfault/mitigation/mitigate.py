"""`fedfault mitigate`: clusters found, trained and compared with other ways to train, for one seed or several.

results/NAME-mitigation/
  config.yaml                                    what all runs share
  seed-S/clusters.json                           how clients of that seed fall into clusters
  seed-S/vanilla, clusters, ifca, local          run folders
  seed-S/central.jsonl                           records of centralised training
  comparison.json  comparison.md  plots/*.png    the answer
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfault.clustering.clusters import Clusters
from fedfault.clustering.embeddings import BACKBONE
from fedfault.clustering.remedy import clusters_of
from fedfault.config.changes import NO_CAUSE, find_changes
from fedfault.config.files import dump
from fedfault.config.loading import Loaded, load
from fedfault.errors import UserError
from fedfault.mitigation.arms import arms, trained, trained_centrally
from fedfault.mitigation.comparison import CLUSTERS, TITLES, Arm, summary
from fedfault.mitigation.page import write
from fedfault.runs.files import find_status
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress
from fedfault.session.provenance import find_commit
from fedfault.setup.experiment import Prepared, federation, prepare
from fedfault.storage import write_atomically


def read(name: str | None, overrides: Sequence[str]) -> tuple[Loaded, RunFolder | None]:
    """The experiment of a configuration, or of a run, beside which results then go, and that run.

    Raises `UserError` for a configuration that is not there or not right.
    """
    if name is None or not find_status(Path(name)):
        return load(name, overrides), None
    run = RunFolder.open(Path(name))
    beside = f"logging.results_dir={run.path.resolve().parent}"
    return load(run.path / "config.yaml", [beside, *overrides]), run


def mitigate(
    loaded: Loaded,
    progress: Progress,
    *,
    seeds: int = 1,
    encoder: str = BACKBONE,
    shrinkage: float = 0.0,
    known: RunFolder | None = None,
    argv: Sequence[str] = (),
) -> Path:
    """Cluster the clients, train a model a cluster, and the same in other ways; returns the Markdown page of results.

    What is there is not trained again, so that a stopped call goes on and more seeds can be asked for later. `known` is a
    run that may stand for the vanilla one. Raises `UserError` when the folder belongs to another configuration and when the
    aggregation cannot work within clusters.
    """
    exp = loaded.experiment
    root = Path(exp.logging.results_dir).expanduser().resolve() / f"{exp.experiment_name}-mitigation"
    for note in loaded.notes:
        progress.say(f"note: {note}")
    _claim(root, loaded)
    found: dict[int, dict[str, Any]] = {}
    results: dict[str, dict[int, Arm]] = {name: {} for name in TITLES}
    like: Prepared | None = None
    for seed in range(exp.seed, exp.seed + seeds):
        like = prepare(load(root / "config.yaml", [f"seed={seed}"]).experiment, progress.say, like=like)
        _check(root, like)
        clusters = clusters_of(like, encoder)
        progress.say(f"seed {seed}: {clusters.sentence}")
        found[seed] = _described(like, clusters)
        place = root / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        write_atomically(place / "clusters.json", json.dumps(found[seed], indent=1) + "\n")
        for name, arm in _seed(like, clusters, shrinkage, root, progress, known, argv).items():
            results[name][seed] = arm
    about = {
        "name": exp.experiment_name,
        "algorithm": exp.federation.algorithm.name,
        "task_type": exp.data.task_type,
        "command": shlex.join(["fedfault", *argv]),
        "commit": find_commit(),
        "encoder": encoder,
        "shrinkage": shrinkage,
        "clusters": found,
    }
    return write(root, {**about, **summary(results)}, results)


def _seed(
    p: Prepared,
    clusters: Clusters,
    shrinkage: float,
    root: Path,
    progress: Progress,
    known: RunFolder | None,
    argv: Sequence[str],
) -> dict[str, Arm]:
    """Every arm of one seed."""
    place, seed = root / f"seed-{p.config.seed}", f"seed={p.config.seed}"
    names, found = {"vanilla": list[str](), **arms(clusters, shrinkage)}, {}
    for name, words in names.items():
        progress.say(f"seed {p.config.seed}: {TITLES[name]}")
        given = {"known": known if name == "vanilla" else None, "argv": argv}
        found[name] = trained(root / "config.yaml", [seed, *words], place / name, progress, **given)  # type: ignore[arg-type]
    found["central"] = trained_centrally(p, found["vanilla"], place / "central.jsonl", progress)
    found.setdefault(CLUSTERS, found["vanilla"])  # one cluster
    return {name: Arm.of(records) for name, records in found.items()}


def _claim(root: Path, loaded: Loaded) -> None:
    """Make the folder, or check that what is in it belongs to this configuration."""
    file = root / "config.yaml"
    if not any(root.glob("seed-*")):
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(file, dump(loaded.resolved))
        return
    differ = [k for k in find_changes(load(file).resolved, loaded.resolved) if not k.startswith(NO_CAUSE)]
    if differ:
        raise UserError(
            f"{root} holds runs of another configuration ({', '.join(differ)}); give another experiment_name or delete it"
        )


def _check(root: Path, p: Prepared) -> None:
    """Refuse before anything is trained what cannot be trained within clusters."""
    for name in ("clustered", "ifca"):
        exp = load(root / "config.yaml", [f"federation.algorithm={name}"]).experiment
        federation(exp, p.task)


def _described(p: Prepared, clusters: Clusters) -> dict[str, Any]:
    """The clusters, and how they agree with the topic that each client mostly holds (adjusted Rand index, 1 for equal)."""
    from sklearn.metrics import adjusted_rand_score

    mostly = p.split.counts.argmax(1)
    topics = [p.split.topics[k] for k in mostly]
    return {**clusters.to_json(), "topics": topics, "agreement": float(adjusted_rand_score(mostly, clusters.labels))}
