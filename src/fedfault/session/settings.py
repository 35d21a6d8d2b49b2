"""The settings of a run that goes on: those that it began with, what it has changed itself, and what may be changed."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedfault.config.changes import CAN_CHANGE, MAY_CHANGE, NO_CAUSE, find_changes, take_settings
from fedfault.config.files import spell_key, write_setting
from fedfault.config.layers import parse_command_line
from fedfault.config.loading import Loaded, load, load_resolved
from fedfault.config.shorthand import translate_layer
from fedfault.errors import UserError, quote
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST, find_bends
from fedfault.session.claim import write_configuration

ROUNDS = "federation.num_rounds"


def find_own_settings(manifest: Mapping[str, Any], until: int | None = None) -> list[str]:
    """Return what the run found for its own configuration before it began, and changed since, as `key=value`.

    until: only what it had changed when it was at that round, on its last way there. Unless it has gone back to the round
    since, those are the settings that made the checkpoint of the round after it.
    """
    past = [one for one in manifest.get("abandoned", ()) if until is None or one["to"] <= until]
    return [*manifest.get("found", ()), *(text for one in past for text in one["settings"])]


def find_own_schedule(manifest: Mapping[str, Any], until: int) -> list[str]:
    """Return, as `key=value`, of how many rounds the schedule was in the round after `until`, where it has changed since."""
    return [f"{ROUNDS}={old}" for after, old, _ in find_bends(manifest) if after > until][:1]


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
    _check_budget(began, load(file, changes))
    _check_not_edited(folder, manifest, given)
    return load(file, changes), []


def read_begun_settings(
    folder: RunFolder, manifest: Mapping[str, Any], changes: Sequence[str]
) -> tuple[Loaded, dict[str, list[Any]]]:
    """Return the settings with which a run starts again that had only begun, and those that are other than its command says.

    Raises `UserError` for changes that a run which goes on cannot make.
    """
    loaded = load_resolved(manifest["config"], folder.path / MANIFEST, changes)
    if refused := _find_refused(changes):
        raise UserError(
            f"{refused}. {folder.path} has not trained yet: give `{manifest['command']}` with what is to be other, which "
            "makes a new run there"
        )
    began = load_resolved(manifest["config"], folder.path / MANIFEST)
    changed = find_changes(began.resolved, loaded.resolved)
    return loaded, {key: both for key, both in changed.items() if not key.startswith(NO_CAUSE)}


def load_own(
    folder: RunFolder, manifest: Mapping[str, Any], overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Loaded:
    """Load the settings that a run has, with `key=value` on top, and without those that it changed itself.

    Raises `UserError` for a config.yaml that says something else than when the run began.
    """
    file = folder.path / "config.yaml"
    if not file.is_file() and "config" in manifest:
        return load_resolved(manifest["config"], folder.path / MANIFEST, overrides)
    _check_not_edited(folder, manifest)
    return load(file, overrides, plugins)


def _check_not_edited(folder: RunFolder, manifest: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Raise `UserError` where config.yaml says something else than when the run began, but for the keys that are given.

    Nothing is checked where the manifest, of an older version, does not say with which settings the run began.
    """
    if (began := manifest.get("config")) is None:
        return
    file = folder.path / "config.yaml"
    edited = find_changes(load_resolved(began, folder.path / MANIFEST).resolved, load(file).resolved)
    edited = {key: both for key, both in edited.items() if not key.startswith(NO_CAUSE) and key not in given}
    if edited:
        other = [write_setting(key, new) for key, (_, new) in edited.items()]
        raise UserError(
            f"{file} is not as it was when the run began: {_describe_changes(edited)}. Restore it, or delete it, as "
            f"{MANIFEST} holds it too; other settings go on in a run of their own: {_suggest_fork(folder, other)}"
        )


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
    if ROUNDS in changed and done < rounds:
        manifest["status"] = "running"  # also a run of which only the results were not written yet
    if changed or versions:
        manifest.setdefault("continued", []).append({"after": done, "changes": changed, "versions": dict(versions)})
    manifest |= {name: new for name, (_, new) in versions.items()}
    # without the keys that are new in this version: a checkpoint holds a hash of the settings that may not change
    manifest["config"] = loaded.resolved if began is None else take_settings(began, loaded.resolved, MAY_CHANGE)
    write_configuration(folder.path, loaded)
    folder.write_json(MANIFEST, manifest)


def _check_changes(folder: RunFolder, changes: Sequence[str]) -> set[str]:
    """Return the keys of changes. Raises `UserError` for those that only a fork can make, and those that nothing can."""
    if refused := _find_refused(changes):
        _load_changes(folder, changes)
        raise UserError(f"{refused}. Go on in a run of its own: {_suggest_fork(folder, changes)}")
    return _list_keys(changes)


def _load_changes(folder: RunFolder, changes: Sequence[str]) -> None:
    """Raise `UserError` where no run can have these settings, as for a key that does not exist."""
    file = folder.path / "config.yaml"
    if file.is_file():
        load(file, changes)


def _find_refused(changes: Sequence[str]) -> str:
    """Say which of these changes a run cannot make when it goes on; nothing where it can make all."""
    refused = sorted(
        key for key in _list_keys(changes) if not key.startswith(CAN_CHANGE) or key == "logging.results_dir"
    )
    if not refused:
        return ""
    allowed = ", ".join(key.rstrip(".") for key in CAN_CHANGE)
    return f"a run cannot go on with another {', '.join(refused)}; `fedfault resume` can change {allowed}"


def _list_keys(changes: Sequence[str]) -> set[str]:
    return {spell_key(key) for key in translate_layer(parse_command_line(changes))[0]}


def _suggest_fork(folder: RunFolder, changes: Sequence[str]) -> str:
    last = max((r.round for r in folder.read_records()), default=0)
    rounds = [t for t in folder.list_checkpoints() if t < last]  # after the last one nothing is left for a fork
    fork = f"`fedfault fork {quote(folder.path)} --round {rounds[-1] if rounds else 0} {shlex.join(changes)}`"
    more = [text for text in changes if text.startswith(f"{ROUNDS}=")]
    return f"{fork}; for other rounds alone, `fedfault resume {quote(folder.path)} {more[0]}`" if more else fork


def _describe_changes(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
