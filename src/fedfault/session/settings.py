"""The settings of a run that goes on: those that it began with, what it has changed itself, and what may be changed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.config.changes import NO_CAUSE, find_changes
from fedfault.config.files import spell_key
from fedfault.config.layers import parse_command_line
from fedfault.config.loading import Loaded, load, load_resolved
from fedfault.config.shorthand import translate_layer
from fedfault.errors import UserError, quote
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST
from fedfault.session.claim import write_configuration

ROUNDS = "federation.num_rounds"
CAN_CHANGE = (ROUNDS, "personalise", "device", "logging.")  # settings of which a run that goes on can have others


def find_own_settings(manifest: Mapping[str, Any], until: int | None = None) -> list[str]:
    """Return what the run found for its own configuration before it began, and changed since, as `key=value`.

    until: only what it had changed when it was at that round, on its last way there. Unless it has gone back to the round
    since, those are the settings that made the checkpoint of the round after it.
    """
    past = [one for one in manifest.get("abandoned", ()) if until is None or one["to"] <= until]
    return [*manifest.get("found", ()), *(text for one in past for text in one["settings"])]


def read_settings(
    folder: RunFolder, manifest: Mapping[str, Any], changes: Sequence[str] = ()
) -> tuple[Loaded, list[str]]:
    """Return the settings with which a run goes on, without those that it changed itself, and notes.

    changes: `key=value` that are to be other from now on. Raises `UserError` for a config.yaml that says something else than
    when the run began, and for changes that a run cannot make, which a fork can.
    """
    given = _check_changes(folder, changes)
    file, began = folder.path / "config.yaml", manifest.get("config")
    if began is None:
        return load(file, changes), [
            "config.yaml is not checked: the manifest, of an older version, does not say with which settings the run began"
        ]
    if not file.is_file():
        write_configuration(folder.path, load_resolved(began, folder.path / MANIFEST))
    edited = find_changes(load_resolved(began, folder.path / MANIFEST).resolved, load(file).resolved)
    edited = {key: both for key, both in edited.items() if not key.startswith(NO_CAUSE) and key not in given}
    _check_budget(began, load(file, changes))
    if edited:
        raise UserError(
            f"{file} is not as it was when the run began: {_describe_changes(edited)}. Restore it, or go on with other "
            f"settings in a run of its own: {_suggest_fork(folder, [f'{key}={new}' for key, (_, new) in edited.items()])}"
        )
    return load(file, changes), []


def _check_budget(began: Mapping[str, Any], loaded: Loaded) -> None:
    """Raise `UserError` where a private run would go on for other rounds than its noise was chosen for."""
    before, after = began["federation"]["num_rounds"], loaded.experiment.federation.num_rounds
    if loaded.experiment.privacy.unit is not None and before != after:
        raise UserError(
            f"{ROUNDS}={after}: the noise of this private run was chosen for {before} rounds, and other rounds cost another "
            "epsilon; start a new run for them"
        )


def record_settings(
    folder: RunFolder, manifest: dict[str, Any], loaded: Loaded, done: int, versions: Mapping[str, list[Any]]
) -> None:
    """Write down that a run goes on after round `done`: with which settings, and with which other versions.

    Raises `UserError` for fewer rounds than are done.
    """
    if (rounds := loaded.experiment.federation.num_rounds) < done:
        raise UserError(f"{ROUNDS}={rounds}: {folder.path} has done {done} rounds already; give {done} or more")
    began = manifest.get("config")
    changed = (
        {} if began is None else find_changes(load_resolved(began, folder.path / MANIFEST).resolved, loaded.resolved)
    )
    changed = {key: both for key, both in changed.items() if not key.startswith(NO_CAUSE)}
    if changed or versions:
        manifest.setdefault("continued", []).append({"after": done, "changes": changed, "versions": dict(versions)})
    manifest |= {name: new for name, (_, new) in versions.items()}
    manifest["config"] = loaded.resolved
    write_configuration(folder.path, loaded)
    folder.write_json(MANIFEST, manifest)


def _check_changes(folder: RunFolder, changes: Sequence[str]) -> set[str]:
    """Return the keys of changes. Raises `UserError` for those that only a fork can make."""
    given = {spell_key(key) for key in translate_layer(parse_command_line(changes))[0]}
    refused = sorted(key for key in given if not key.startswith(CAN_CHANGE))
    if refused:
        raise UserError(
            f"a run cannot go on with another {', '.join(refused)}; `fedfault resume` can change {ROUNDS}, personalise, "
            f"device and logging. Go on in a run of its own: {_suggest_fork(folder, changes)}"
        )
    return given


def _suggest_fork(folder: RunFolder, changes: Sequence[str]) -> str:
    rounds = folder.list_checkpoints()
    fork = f"`fedfault fork {quote(folder.path)} --round {rounds[-1] if rounds else 0} {shlex.join(changes)}`"
    more = [text for text in changes if text.startswith(f"{ROUNDS}=")]
    return f"{fork}; for other rounds alone, `fedfault resume {quote(folder.path)} {more[0]}`" if more else fork


def _describe_changes(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
