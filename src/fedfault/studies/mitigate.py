"""`fedfault mitigate`: a study of a model for each cluster of clients beside other ways to train, written and run.

results/NAME-mitigation/
  config.yaml    what all runs share
  study.yaml     the arms and what is claimed of them; `fedfault study` runs it again
  runs/ ...      as of any study
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfault.clustering.embeddings import BACKBONE
from fedfault.clustering.remedy import find_clusters
from fedfault.config.changes import hash_settings
from fedfault.config.files import dump
from fedfault.config.loading import Loaded, load
from fedfault.config.schema import Experiment
from fedfault.errors import UserError, quote
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST, find_status
from fedfault.session.claim import claim_folder
from fedfault.session.progress import Progress
from fedfault.session.settings import ROUNDS, load_own
from fedfault.setup.equipment import is_simulated
from fedfault.setup.experiment import prepare
from fedfault.storage import expand_home, write_atomically, write_folder_atomically
from fedfault.studies import doors, file, runner
from fedfault.studies.study import StudyPlan

STUDY = "study.yaml"
MATTERS = 0.02  # nats: the difference that the project's other studies call worth something
OTHERS = {  # arm -> what is claimed of clusters beside it, on which side, and by how much
    "vanilla": ("A model a cluster lowers the clients' mean loss against one model for all", "lower", MATTERS),
    "ifca": (
        "Clusters by texts lower the clients' mean loss against IFCA, which chooses by loss",
        "lower",
        MATTERS / 2,
    ),
    "local": ("A model a cluster lowers the clients' mean loss against each client alone", "lower", MATTERS),
    "central": ("All data in one place give the clients what clusters cannot: a lower mean loss", "higher", MATTERS),
}
LIMITS = (
    "Losses are those of the clients on texts that each held back, under the model that it uses. Of the mixture of all "
    "texts, which clusters are not made for, they say nothing.",
    "All arms have the same clients, texts, cohorts and batches. `central` has one client with everybody's texts and as "
    "many steps in all, and `ifca` as many clusters as are found with the first seed, two at least.",
    "Each client alone would send nothing: the bytes of `local` are those of the experiment.",
)


def load_or_open(
    name: str | None, overrides: Sequence[str], plugins: Sequence[str] = ()
) -> tuple[Loaded, RunFolder | None]:
    """The experiment of a configuration, or of a run, beside which results then go, and that run.

    Raises `UserError` for a configuration that is not there or not right.
    """
    if name is None or find_status(Path(name)) is None:
        return load(name, overrides, plugins), None
    run = RunFolder.open(Path(name))
    beside = f"logging.results_dir={run.path.resolve().parent}"
    manifest = run.read_manifest() if (run.path / MANIFEST).is_file() else {}
    return load_own(run, manifest, [beside, *overrides], plugins), run


def mitigate(
    loaded: Loaded,
    *,
    seeds: int = 1,
    encoder: str = BACKBONE,
    shrinkage: float = 0.0,
    known: RunFolder | None = None,
    quiet: bool = False,
) -> int:
    """Write the study and run it; returns the exit status of a study.

    What is there is not trained again, so that a stopped call goes on and more seeds can be asked for later. `known` is a
    run that stands for the vanilla arm of its seed if it has the same settings. Raises `UserError` when the folder belongs
    to another configuration, and before anything is trained when the aggregation cannot work within clusters.
    """
    exp, progress = loaded.experiment, Progress(quiet=quiet)
    folder = expand_home(exp.logging.results_dir, "logging.results_dir") / f"{exp.experiment_name}-mitigation"
    for note in loaded.notes:
        progress.say(f"note: {note}")
    if exp.federation.centralised:
        raise UserError("federation.centralised=true is one of the ways that clusters are compared with; leave it out")
    prepared = prepare(exp, progress.say)
    found = find_clusters(prepared, encoder)
    progress.say(f"seed {exp.seed}: {found.sentence}")
    study = make_study(exp, {"encoder": encoder, "shrinkage": shrinkage}, max(2, found.k), seeds)
    plan = _make_plan(study, loaded, folder)
    claim_folder(folder, "study", loaded)
    plan.study.save(folder)
    head = f"# Written by `{doors.format_command()}`; run it again with `fedfault study {quote(folder / STUDY)}`.\n"
    write_atomically(folder / STUDY, head + dump(study))
    if known is not None:
        progress.say(adopt_run(plan, known))
    return doors.run_plan(plan, progress)


def make_study(exp: Experiment, clusters: dict[str, Any], num_clusters: int, seeds: int) -> dict[str, Any]:
    """The study as plain values, on top of config.yaml. clusters: options of the algorithm `clustered`.

    Where clients have simulated hardware there is no arm with all data in one place, which has none. One model for all is
    the configuration's own algorithm, or FedAvg where that has clusters.
    """
    within = exp.federation.algorithm.name in ("clustered", "ifca")
    arms: dict[str, dict[str, Any]] = {
        "vanilla": {"federation.algorithm": "fedavg"} if within else {},
        "clusters": {"federation.algorithm": {"name": "clustered", **clusters}},
        "ifca": {"federation.algorithm": {"name": "ifca", "num_clusters": num_clusters}},
        "local": {"federation.algorithm": {"name": "clustered", "clusters": list(range(exp.federation.total_clients))}},
    }
    if not is_simulated(exp):
        alone = {"centralised": True, "algorithm": "fedavg", "aggregation": "fedit"}
        arms["central"] = {f"federation.{key}": value for key, value in alone.items()}
    hypotheses = {
        f"clusters and {arm}": {
            "claim": claim, "metric": "client_loss", "arm": "clusters", "than": arm, "expect": expect, "by": by,
        }
        for arm, (claim, expect, by) in OTHERS.items() if arm in arms
    }  # fmt: skip
    return {
        "_base_": "config.yaml",
        "experiment_name": f"{exp.experiment_name}-mitigation",
        "question": f"Does a model for each cluster of clients mend what their differences cost in {exp.experiment_name}?",
        "arms": arms,
        "seeds": seeds,
        "federation": {"on_failure": "continue"},
        "hypotheses": hypotheses,
        "limits": list(LIMITS),
    }


def _make_plan(study: dict[str, Any], loaded: Loaded, folder: Path) -> StudyPlan:
    """The plan of a study, checked before its folder is claimed: what is refused must leave nothing there."""
    with tempfile.TemporaryDirectory() as scratch:
        write_atomically(Path(scratch) / "config.yaml", dump(loaded.resolved))
        write_atomically(Path(scratch) / STUDY, dump(study))
        plan = file.load_study(Path(scratch) / STUDY, (), str(folder.parent), doors.format_command())
    runner.check_plan(plan)
    return plan


def adopt_run(plan: StudyPlan, run: RunFolder) -> str:
    """Copy a finished run to where a study would make one of the very same settings; returns a sentence on whether it did.

    One that went on with other rounds is none: its learning rate may have followed two schedules.
    """
    manifest = run.read_manifest()
    same = hash_settings(load_own(run, manifest).resolved)
    name = next((n for n, loaded in plan.configs.items() if hash_settings(loaded.resolved) == same), None)
    if why := _find_difference(manifest) or (None if name else "no run of the study has all of its settings"):
        return f"{run.path} is no run of the study, which trains its own: {why}"
    assert name is not None
    path = plan.path(name)
    if path.exists():
        return f"the study has a run with the settings of {run.path} already: {name}"
    with write_folder_atomically(path) as scratch:  # a copy that is cut short is no run
        shutil.copytree(run.path, scratch, dirs_exist_ok=True)
    return f"{run.path} is the run {name} of the study"


def _find_difference(manifest: Mapping[str, Any]) -> str | None:
    """Say why a run is not one that was trained from start to end by its settings alone; None where it is."""
    if "parent" in manifest:
        return "it is a fork"
    if manifest["status"] != "finished":
        return f"it is {manifest['status']}, not finished"
    if manifest.get("abandoned"):
        return "it went back at an alarm"
    if any(ROUNDS in one["changes"] for one in manifest.get("continued", ())):
        return f"it went on with another {ROUNDS}, and its learning rate may have followed two schedules"
    return None
