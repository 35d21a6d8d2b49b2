"""Claim a results folder for a new run, controls or a study: make it, go on in it, or refuse with what is there.

A folder belongs to one thing for good: to a run, to the controls of a configuration, or to a study. What is compared are
the loaded values of its config.yaml and not its text, so that a folder that an older version has written is still known.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedfault.config.changes import NO_CAUSE, find_changes
from fedfault.config.files import dump
from fedfault.config.loading import Loaded, load
from fedfault.config.schema import Experiment
from fedfault.errors import UserError, join_names, quote
from fedfault.plugins import COPIES, copy_sources
from fedfault.registry import keep_plugins, list_plugins
from fedfault.runs.files import LOCK
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import OVER, find_status, holds_run, read_manifest
from fedfault.saying import Say
from fedfault.storage import delete_scratch, expand_home, is_scratch, write_atomically

Kind = Literal["run", "controls", "study"]
STUDY = "study.json"  # the file that makes a folder one of a study
ITS_PLACE = ("experiment_name", "logging.results_dir")  # settings that say where a run lies, not what it does


def find_kind(folder: Path) -> Kind | Literal["nothing", "something else", "a link that leads nowhere"]:
    """Return what a folder holds; `nothing` if it is free, or has only what a kill leaves before the first file is whole."""
    if folder.is_symlink() and not folder.exists():
        return "a link that leads nowhere"
    try:
        names = _list_names(folder) if folder.exists() else set()
    except OSError:  # a file, or a folder that may not be read
        return "something else"
    if STUDY in names:
        return "study"
    if holds_run(folder):
        return "run"
    if names <= {LOCK}:
        return "nothing"
    return "controls" if "config.yaml" in names and not _list_strangers(names) else "something else"


def _list_names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not is_scratch(p.name)}


def _list_strangers(names: Collection[str]) -> list[str]:
    """List the names of files that no folder of controls has."""
    own = ("config.yaml", "calibration.json", COPIES, LOCK)
    return sorted(name for name in names if name not in own and not name.startswith("control-"))


def find_differences(folder: Path, loaded: Loaded, ignored: Sequence[str] = ITS_PLACE) -> list[str]:
    """Return the settings in which the config.yaml of a folder differs from a configuration, as dotted keys.

    ignored: beginnings of keys that may differ. A file that cannot be loaded differs as a whole: `config.yaml`.
    """
    try:
        with keep_plugins():
            before = load(folder / "config.yaml").resolved
    except UserError:
        return ["config.yaml"]
    return [key for key in find_changes(before, loaded.resolved) if not key.startswith(tuple(ignored))]


def write_configuration(folder: Path, loaded: Loaded) -> None:
    """Write config.yaml, and beside it the source of the plug-ins that it names, with which it can still be loaded later."""
    copy_sources(list_plugins(), folder / COPIES)
    write_atomically(folder / "config.yaml", dump(loaded.resolved))


def check_writable(folder: Path) -> None:
    """Raise `UserError` if a folder of this name cannot be made or written."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"cannot write to {there}; choose another results folder (logging.results_dir)")


def check_new_run(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `UserError` if a new run cannot be made here: what is there is told. `overwrite` replaces runs only.

    A run that was killed before it had begun to train is nothing that could be lost.
    """
    kind = find_kind(folder)
    if kind not in ("nothing", "run"):
        raise UserError(f"{folder} exists already and holds {_name(kind)}, not a run; give another experiment_name")
    if kind == "run" and not overwrite and not has_only_begun(folder):
        raise UserError(
            f"{folder} exists already; give another experiment_name, continue it with `fedfault resume {quote(folder)}`, "
            "or replace it with --overwrite"
        )
    check_writable(folder)


def has_only_begun(folder: Path) -> bool:
    """Return whether a folder holds a run that was killed before it had begun to train."""
    try:
        return find_status(folder) == "begun"
    except UserError:  # damaged
        return False


@contextlib.contextmanager
def claim_new_run(folder: Path, *, overwrite: bool = False) -> Iterator[RunFolder]:
    """Keep others out of the folder of a new run within the block. What is there stays until `RunFolder.begin`.

    Raises `UserError` as `check_new_run`, also when another process was faster.
    """
    check_new_run(folder, overwrite=overwrite)
    run = RunFolder.create(folder)
    with run.lock():
        check_new_run(folder, overwrite=overwrite)
        yield run


def claim_run(folder: Path, loaded: Loaded, *, overwrite: bool = False) -> bool:
    """Return whether a folder holds this very run before its end, to go on with; otherwise it can be made anew.

    Raises `UserError` for another run (with the settings in which it differs), for one that is over, for a fork (whose past
    is another one), and for what is not a run.
    """
    if overwrite or find_kind(folder) != "run" or has_only_begun(folder):
        check_new_run(folder, overwrite=overwrite)
        return False
    differ = find_differences(folder, loaded)
    if differ:
        raise UserError(
            f"{folder} exists already and holds a run with other settings ({', '.join(differ)}); give another "
            f"experiment_name, continue it with `fedfault resume {quote(folder)}`, or replace it with --overwrite"
        )
    status = find_status(folder)
    if status == "finished" and "parent" not in read_manifest(folder):
        raise UserError(
            f"{folder} exists already: this very run, finished. `fedfault report {quote(folder)}` shows it; give another "
            "experiment_name for one more, or replace it with --overwrite"
        )
    if status in (*OVER, "incomplete") or "parent" in read_manifest(folder):
        check_new_run(folder)
    return True


def claim_folder(folder: Path, kind: Kind, loaded: Loaded | None = None, ignored: Sequence[str] = NO_CAUSE) -> None:
    """Make the folder of controls or of a study, or check that it is one and goes on.

    loaded: the one configuration that it belongs to, kept in its config.yaml, if there is one; ignored: beginnings of keys
    that may differ. Raises `UserError` with what is there, or with the settings that differ.
    """
    there = find_kind(folder)
    if there in ("nothing", kind):
        delete_scratch(folder)
    if there == "nothing":
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if loaded is not None:
            write_configuration(folder, loaded)
    elif there != kind:
        if kind == "controls" and (folder / "config.yaml").is_file() and any(folder.glob("control-*.jsonl")):
            beside = join_names(_list_strangers(_list_names(folder)), 3)
            raise UserError(f"{folder} holds {beside} beside controls; move that away, or give another experiment_name")
        raise UserError(f"{folder} holds {_name(there)}, not {_name(kind)}; give another name")
    elif loaded is not None and (differ := find_differences(folder, loaded, ignored)):
        raise UserError(
            f"{folder} holds {_name(kind)} of another configuration ({', '.join(differ)}); give another experiment_name "
            "or delete it"
        )


def locate_run(exp: Experiment) -> Path:
    """Return the folder that a configuration names for its run: logging.results_dir/experiment_name."""
    return expand_home(exp.logging.results_dir, "logging.results_dir") / exp.experiment_name


def choose_free_name(loaded: Loaded, overwrite: bool, say: Say) -> Loaded:
    """Return the configuration under the first of NAME, NAME-2, ... that is free or holds this very configuration."""
    name = loaded.experiment.experiment_name
    for number in itertools.count(1):
        candidate = rename_run(loaded, name if number == 1 else f"{name}-{number}")
        path = locate_run(candidate.experiment)
        taken = holds_run(path) and not has_only_begun(path)
        if not taken and overwrite and number > 1:
            return loaded
        if not taken or not find_differences(path, candidate):
            if number > 1:
                say(f"note: {locate_run(loaded.experiment)} holds a run with other settings; this one is {path}")
            return candidate
    raise AssertionError("unreachable")


def rename_run(loaded: Loaded, name: str) -> Loaded:
    """Return the same configuration under another experiment_name."""
    return replace(
        loaded,
        experiment=loaded.experiment.model_copy(update={"experiment_name": name}),
        resolved={**loaded.resolved, "experiment_name": name},
    )


def _name(kind: str) -> str:
    return {"run": "a run", "study": "a study", "controls": "controls"}.get(kind, kind)
