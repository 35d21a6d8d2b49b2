"""A run that goes on from a checkpoint of another run with other settings: what would have happened if."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedfault.config.changes import NO_CAUSE, find_changes
from fedfault.config.loading import Loaded
from fedfault.errors import UserError, quote
from fedfault.registry import keep_plugins
from fedfault.rounds.carry import carry_over
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import describe_bends, find_bends
from fedfault.session.claim import check_new_run, claim_new_run, has_only_begun, locate_run, write_configuration
from fedfault.session.progress import Progress
from fedfault.session.provenance import (
    check_not_moved,
    check_same_inputs,
    make_manifest,
    tell_where_data_were,
    write_split,
)
from fedfault.session.settings import find_own_schedule, find_own_settings, load_own
from fedfault.session.training import train_to_end
from fedfault.setup.experiment import Prepared, prepare
from fedfault.storage import expand_home, write_atomically
from fedfault.types.algorithm import State

MUST_STAY = {  # setting or section -> why a fork cannot have another one
    "seed": "the split and every draw up to the fork follow from it",
    "model.": "the checkpoint holds numbers of that model and of those trainable sites",
    "data.": "clients in the checkpoint hold that data, and scores after the fork would be of other texts than before it",
    "federation.total_clients": "the checkpoint has a row for each client",
    "federation.centralised": "the checkpoint is of all clients, or of the one who has all data",
    "federation.scheduler.": "the ranks of the clients are part of the checkpoint",
    "tiers": "what clients can hold, and so their ranks, is part of the checkpoint",
    "evaluation.max_blocks": "scores after the fork would be of other texts than before it",
    "evaluation.general": "scores after the fork would be of other texts than before it",
}


@dataclass(frozen=True)
class ForkPlan:
    """A fork before anything is loaded or written."""

    parent: RunFolder
    round: int
    loaded: Loaded  # of the fork
    changed: Mapping[str, list[Any]]  # setting -> [of the parent after that round, of the fork]
    since: Collection[str]  # settings that are not as they were when the checkpoint was made
    path: Path


def fork_run(
    path: Path,
    round: int,
    overrides: Sequence[str],
    progress: Progress,
    *,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
    argv: Sequence[str] = (),
) -> RunFolder:
    """Go on from the checkpoint of a round with other settings, in a folder of its own. Returns it, finished.

    The parent may still be running and is not changed. A fork without changes gets its parent's numbers, to the last bit.
    Raises `UserError` before anything is written: no run, no such checkpoint, a setting that has to stay.
    """
    plan = _plan_fork(path, round, overrides, overwrite, plugins)
    for note in plan.loaded.notes:
        progress.say(f"note: {note}")
    clock = time.perf_counter()
    before = plan.parent.read_manifest()
    with tell_where_data_were(before):
        prepared = prepare(plan.loaded.experiment, progress.say)
    unknown = check_same_inputs(before, prepared)
    check_not_moved(plan.parent, before, prepared.federation)
    saved, _ = plan.parent.load(prepared.federation.task.layout, prepared.model.device, round)
    state, notes = carry_over(prepared.federation, saved, plan.since)
    notes += [*describe_bends(before, round), *_describe_schedule(plan, before)]
    for line in [*(f"note: {n}" for n in (*unknown, *notes)), _describe_fork(plan, prepared)]:
        progress.say(line)
    manifest = make_manifest(prepared, argv, plan.loaded)
    manifest["notes"] += notes
    manifest["parent"] = {"run": str(plan.parent.path.resolve()), "round": round, "changes": plan.changed}
    manifest["seconds"] = {"prepare": time.perf_counter() - clock}
    with claim_new_run(plan.path, overwrite=overwrite) as folder:
        folder.begin(manifest)
        _write_past(folder, plan, prepared, state, progress)
        train_to_end(folder, prepared, state, progress, manifest)
    return folder


def _plan_fork(path: Path, round: int, overrides: Sequence[str], overwrite: bool, plugins: Sequence[str]) -> ForkPlan:
    parent = RunFolder.open(path)
    parent.check_checkpoint(round)
    config = parent.path / "config.yaml"
    given = {word.partition("=")[0].strip() for word in overrides}
    past = parent.read_manifest()
    made, before = (find_own_settings(past, until) for until in (round - 1, round))
    kept = [text for text in before if not any(text.startswith(f"{key}.") for key in given)]
    loaded = load_own(parent, past, [*kept, *overrides], plugins)
    with keep_plugins():
        there = [*before, *find_own_schedule(past, round)]
        changed, since = (find_changes(load_own(parent, past, s).resolved, loaded.resolved) for s in (there, made))
    changed = {key: both for key, both in changed.items() if not key.startswith(NO_CAUSE)}
    _check_changes(changed, loaded, round, config)
    loaded = _find_place(parent, loaded, given, overwrite)
    if loaded.experiment.privacy.unit is not None or past.get("config", {}).get("privacy", {}).get("unit") is not None:
        raise UserError(
            "a run with privacy has no forks: the epsilon of both futures together would be more than either says; start a "
            "new run"
        )
    target = locate_run(loaded.experiment)
    if target.resolve() == parent.path.resolve():
        raise UserError(f"{target} is the run to fork from, and a fork cannot replace it; give another experiment_name")
    check_new_run(target, overwrite=overwrite)
    return ForkPlan(parent, round, loaded, changed, since, target)


def _check_changes(changed: Collection[str], loaded: Loaded, round: int, config: Path) -> None:
    """Refuse settings that have to stay, and a fork without a future."""
    for key in changed:
        if why := next((why for stays, why in MUST_STAY.items() if key.startswith(stays)), None):
            raise UserError(
                f"a fork cannot have another {key}: {why}. Leave it out, or start a new run with "
                f"`fedfault run {quote(config)} {key}=... experiment_name=...`"
            )
    last = loaded.experiment.federation.num_rounds
    if last <= round:
        raise UserError(
            f"federation.num_rounds is {last}, so that nothing is left after round {round}; give an earlier --round, or "
            "more rounds"
        )


def _find_place(parent: RunFolder, loaded: Loaded, given: Collection[str], overwrite: bool) -> Loaded:
    """Return the fork with a folder of its own: NAME-fork, NAME-fork-2, ... beside the parent unless the user says so."""
    exp, beside = loaded.experiment, parent.path.resolve().parent
    log, name = exp.logging, exp.experiment_name
    named = Path(os.path.expanduser(log.results_dir))  # where the run was made: that user may have no home here
    if "logging.results_dir" not in given and named.resolve() != beside:
        log = log.model_copy(update={"results_dir": str(beside)})
    if "experiment_name" not in given:
        names = (f"{name}-fork" if n == 1 else f"{name}-fork-{n}" for n in itertools.count(1))
        folder = expand_home(log.results_dir, "logging.results_dir")
        name = next(n for n in names if overwrite or not (folder / n).exists() or has_only_begun(folder / n))
    exp = exp.model_copy(update={"experiment_name": name, "logging": log})
    return replace(loaded, experiment=exp, resolved=exp.model_dump())


def _describe_fork(plan: ForkPlan, p: Prepared) -> str:
    """Return what the fork is, in a line."""
    parent, first, last = plan.parent.path, plan.round + 1, p.federation.num_rounds
    rounds = f"rounds {first} to {last}" if first < last else f"round {first}"
    if not plan.changed:
        return f"nothing is changed: {rounds} will have the same numbers as in {parent}"
    each = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in plan.changed.items())
    return f"{rounds}, after round {plan.round} of {parent}, with {each}"


def _describe_schedule(plan: ForkPlan, past: Mapping[str, Any]) -> list[str]:
    """Say in a sentence which rounds of the parent have learning rates of a schedule that the fork has not."""
    rounds = plan.loaded.experiment.federation.num_rounds
    return [
        f"Up to round {after} {plan.parent.path} has learning rates of a run of {old} rounds, and this fork those of a run "
        f"of {rounds}: its numbers are others. With federation.num_rounds={old} it repeats these rounds."
        for after, old, _ in find_bends(past)
        if plan.round < after and rounds != old
    ][:1]


def _write_past(folder: RunFolder, plan: ForkPlan, p: Prepared, state: State, progress: Progress) -> None:
    """Write what the fork has from its parent, so that it can be read and resumed like any run."""
    write_configuration(folder.path, plan.loaded)
    records = plan.parent.read_records()
    folder.write_records("parent.jsonl", records)
    folder.write_records("rounds.jsonl", [r for r in records if r.round <= plan.round])
    if (known := plan.parent.path / "heterogeneity.json").is_file():
        write_atomically(folder.path / known.name, known.read_bytes())
    write_split(folder, p, progress)
    folder.save(state)
