"""Write what made a run, with which model and data; refuse to resume or fork it where these are no longer the same.

These are manifest.json, split.json and heterogeneity.json of the run folder.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fedfault
from fedfault.config.loading import Loaded
from fedfault.errors import UserError
from fedfault.plugins import COPIES, PlugIn
from fedfault.processes import this_process
from fedfault.registry import list_plugins, list_registered
from fedfault.rounds.federation import Federation
from fedfault.rounds.passes import train_job
from fedfault.runs.folder import RunFolder
from fedfault.runs.read import holds_heterogeneity
from fedfault.session.progress import Progress
from fedfault.setup.experiment import Prepared
from fedfault.setup.sources import describe_sources

VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def make_manifest(p: Prepared, argv: Sequence[str], loaded: Loaded, program: str = "fedfault") -> dict[str, Any]:
    """Return the manifest of a run that begins now: versions, commit, machine, command, model, corpus and settings.

    The command is `program` with the words `argv`; the settings are as loaded, before the run finds any for itself.
    """
    import torch

    told = [word for word in argv if not word.startswith("privacy.secret=")]  # pages and cards show the command
    return {
        "status": "begun",
        "fedfault": fedfault.__version__,
        "commit": find_commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
        "platform": platform.platform(),
        "device": str(p.model.device),
        "threads": torch.get_num_threads(),
        "processes": this_process().count,
        "precision": p.backbone.precision,
        "command": shlex.join([program, *told]),
        "argv": told,
        "passes": describe_passes(p),
        "kernels": p.model.kernels.to_json(),
        "seed": p.config.seed,
        "over_flower": p.federation.memory_elsewhere,
        "data_elsewhere": p.data_elsewhere,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "notes": list(loaded.notes),
        "plugins": [describe_plugin(plugin) for plugin in list_plugins()],
        **describe_sources(p),
        "config": loaded.resolved,
    }


def describe_passes(p: Prepared) -> dict[str, int]:
    """Return how many clients a pass has; where the memory of a device says it, also tokens, and bytes that were free.

    together: the run was begun beside others, with whose clients its own share passes.
    """
    found = {"clients": p.federation.clients_per_pass or p.federation.cohort_size}
    if p.task.room is not None and p.task.free is not None:
        room = p.task.room
        found |= {"training_tokens": room.training, "evaluation_tokens": room.evaluation, "free_bytes": p.task.free}
    return found if p.federation.train_job is train_job else {**found, "together": True}


def find_other_versions(manifest: Mapping[str, Any], p: Prepared) -> dict[str, list[Any]]:
    """Return what of the code and the machine is not as it was: name -> [then, now]."""
    now = {"fedfault": fedfault.__version__, "commit": find_commit(), "device": str(p.model.device)}
    now |= {name: metadata.version(name) for name in VERSIONS}
    return {
        name: [manifest[name], found]
        for name, found in now.items()
        if manifest.get(name) is not None and found is not None and manifest[name] != found
    }


def describe_versions(versions: Mapping[str, Sequence[Any]]) -> list[str]:
    """Say what other code or machine means for a run that goes on; nothing where all is as it was."""
    if not versions:
        return []
    each = ", ".join(f"{name} {new} instead of {old}" for name, (old, new) in versions.items())
    return [f"this run goes on with {each}: its numbers may differ from those of a run without the stop"]


def find_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, `+` when it has changes; None outside a checkout."""
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


INPUTS = {  # what of the inputs has a fingerprint in the manifest -> how a message calls it
    "corpus": "the corpus",
    "model": "the model",
    "tokenizer": "the tokenizer",
    "trace": "the trace (clock.trace)",
    "calibration": "the calibration (detectors.calibration)",
    "general": "the general text (evaluation.general)",
}
CHOSEN = ("trace", "calibration", "general")  # files that settings name: a fork may name others


def check_same_inputs(manifest: Mapping[str, Any], p: Prepared) -> list[str]:
    """Raise `UserError`, which names the input, if a run that goes on would not see what it started with.

    A file that a fork chooses anew is another setting, not another input. Returns a note on each input of which the
    manifest, written by an older version, says nothing: it cannot be checked.
    """
    _check_same_plugins(manifest)
    now, notes = describe_sources(p), []
    for what, name in INPUTS.items():
        before, found = manifest.get(what, {}), now.get(what)
        another = what in CHOSEN and bool(before) and found is not None and before.get("source") != found["source"]
        if found is None or another or before.get("fingerprint") == found["fingerprint"]:
            continue
        if not before and what in ("tokenizer", *CHOSEN):
            notes.append(f"{name} is not checked: the manifest, of an older version, does not say which one it was")
            continue
        then, source = before.get("source"), found["source"]
        how = f"the content of {source} has changed since" if then == source else f"{then} then, {source} now"
        raise UserError(f"{name} is not the one this run started with ({how}); restore it, or start a new run")
    return notes


@contextlib.contextmanager
def tell_where_data_were(manifest: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, an error about data that are not there says where the run has read them, if that was elsewhere."""
    try:
        yield
    except UserError as e:
        path = (manifest.get("config", {}).get("data") or {}).get("path")
        source = manifest.get("corpus", {}).get("source")
        if (
            not path
            or not source
            or Path(path).is_absolute()
            or not str(e).startswith(f"data.path={path}: no such file")
        ):
            raise
        raise UserError(
            f"{e}; this run has read {source}: give the command in the folder in which the run was started, or bring the "
            "data back"
        ) from e


def describe_plugin(plugin: PlugIn) -> dict[str, Any]:
    """What the manifest says of a plug-in: `package` where an installed one offers it, `cites` where it names papers."""
    about: dict[str, Any] = {"name": plugin.name, "source": plugin.source, "fingerprint": plugin.fingerprint}
    cites = sorted({key for registered in list_registered(plugin).values() for key in registered.facts["cite"]})
    return about | {key: value for key, value in (("package", plugin.package), ("cites", cites)) if value}


def _check_same_plugins(manifest: Mapping[str, Any]) -> None:
    """Raise `UserError` for an installed package's plug-in that is not as it was; config.yaml has the hashes of others."""
    now = {plugin.name: plugin.fingerprint for plugin in list_plugins()}
    for before in manifest.get("plugins", ()):
        name, package = before["name"], before.get("package")
        if package and now.get(name) != before["fingerprint"]:
            there = "another version of it is installed now" if name in now else "it is not installed now"
            raise UserError(
                f"this run began with the components {name} of the package {package}, and {there}; install the one with the "
                f"source that lies in {COPIES}/ of the run's folder, or start a new run"
            )


def check_not_moved(folder: RunFolder, manifest: Mapping[str, Any], fed: Federation) -> None:
    """Raise `UserError` if a run would move between this process and Flower's nodes: what clients keep cannot."""
    if manifest.get("over_flower", False) != fed.memory_elsewhere:
        there, here = "over Flower", "in one process"
        before, how = (here, "fedfault resume") if fed.memory_elsewhere else (there, "fedfault flower run")
        raise UserError(
            f"{folder.path} is a run {before}, and what its clients keep is there; continue it with `{how}`, or give "
            "another experiment_name"
        )


def write_split(folder: RunFolder, p: Prepared, progress: Progress) -> None:
    """Write who holds which documents, and how different the clients are, which is said where it is not written yet, or
    cannot be read.

    Nothing where data is elsewhere.
    """
    if p.data_elsewhere:
        return
    folder.write_json("split.json", p.split.to_json())
    if holds_heterogeneity(folder.path):
        return
    found = p.heterogeneity(progress.say)
    folder.write_json("heterogeneity.json", found)
    for sentence in found["sentences"]:
        progress.say(sentence)
