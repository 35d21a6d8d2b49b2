"""federation.on_failure=rollback or cluster: at an alarm the run goes back to its best round and on with an answer to it.

The answer is a remedy that a detector names, or a model for each cluster of clients.

What is left behind stays in the folder as abandoned-N.jsonl, and the manifest says from where to where, why and with which
settings. A kill between any two of these steps is repaired by the next `resume`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.clustering.remedy import answer_with_clusters
from fedfault.config.changes import find_changes
from fedfault.config.loading import Loaded, load, load_resolved
from fedfault.errors import UserError
from fedfault.records import Finding
from fedfault.rounds.carry import carry_over
from fedfault.rounds.engine import begin
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST
from fedfault.runs.outcome import find_best_round
from fedfault.session.progress import Progress
from fedfault.session.remedies import find_remedy
from fedfault.session.settings import find_own_settings
from fedfault.setup.experiment import Prepared
from fedfault.types.algorithm import State

MOST = 3  # times that a run goes back


def finish_going_back(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Finish every way back that the manifest has decided on and that a kill has interrupted."""
    for one in manifest.get("abandoned", ()):
        if not one["done"]:
            folder.rewind(one["to"])
            one["done"] = True
            folder.write_json(MANIFEST, manifest)


def load_state(
    folder: RunFolder, p: Prepared, loaded: Loaded, manifest: dict[str, Any], progress: Progress
) -> tuple[Prepared, State]:
    """Return the state that a run goes on from, and the experiment with the settings that it has changed by then.

    Ways back from later rounds are forgotten: the run will come to them again. `loaded` are its settings without those that
    it changed itself.
    """
    trained = "parent" in manifest or any(r.round for r in folder.read_records())
    if not folder.list_checkpoints() and not trained:  # what was trained is not thrown away for a new beginning
        saved, warnings = begin(p.federation), list[str]()
    else:
        saved, warnings = folder.load(p.federation.task.layout, p.model.device)
    past = manifest.get("abandoned", [])
    if len(still := [one for one in past if one["to"] <= saved.round]) < len(past):
        manifest["abandoned"] = still
        p = p.with_settings(
            load_resolved(loaded.resolved, folder.path / MANIFEST, find_own_settings(manifest)).experiment
        )
    state, _ = carry_settings(folder, p, saved, loaded.resolved, manifest)
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return p, state


def carry_settings(
    folder: RunFolder, p: Prepared, saved: State, resolved: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[State, list[str]]:
    """Carry a checkpoint over to the settings that the run has changed since it was made; also notes on what that means."""
    made = load_resolved(resolved, folder.path / MANIFEST, find_own_settings(manifest, saved.round - 1))
    since = find_changes(made.resolved, p.config.model_dump())
    return carry_over(p.federation, saved, since) if since else (saved, [])


def describe_way_back(one: Mapping[str, Any]) -> str:
    """Say in a sentence what an item of the manifest's `abandoned` did."""
    there, back = one["from"], one["to"]
    moved = f"went back from round {there} to round {back}" if back != there else f"changed course in round {there}"
    why = ", ".join(name.replace("_", " ") for name in one["by"])
    return f"{moved} because of {why}, and on with {', '.join(one['settings'])}"


def list_ways_back(manifest: Mapping[str, Any], round: int) -> tuple[str, ...]:
    """List in a sentence each how often and why the run went back to this round: what its record tells."""
    return tuple(describe_way_back(one) for one in manifest.get("abandoned", ()) if one["to"] == round)


def roll_back(
    folder: RunFolder, p: Prepared, alarms: Sequence[Finding], manifest: dict[str, Any], progress: Progress
) -> tuple[Prepared, State, tuple[str, ...]] | None:
    """Return the run as it goes on from its best round, with what is told there; None where there is no remedy left."""
    records, past = folder.read_records(), manifest.setdefault("abandoned", [])
    by = [f.detector for f in alarms]
    answer, nothing = _find_answer(p, by)
    best = find_best_round(records)
    for hindered, why in (
        (len(past) >= MOST, f"it went back {MOST} times already"),
        (not answer, nothing),
        (best not in folder.list_checkpoints(), f"the best round, {best}, has no checkpoint in this folder"),
    ):
        if hindered:
            progress.say(f"no way back from this alarm: {why}; the run goes on")
            return None
    try:
        saved, _ = folder.load(p.federation.task.layout, p.model.device, best)  # before anything is given up for it
    except UserError as e:
        progress.say(f"no way back from this alarm: {e}; the run goes on")
        return None
    base = load(folder.path / "config.yaml").resolved
    loaded = load_resolved(base, folder.path / MANIFEST, [*find_own_settings(manifest), *answer])
    changed = find_changes(p.config.model_dump(), loaded.experiment.model_dump())
    name = f"abandoned-{len(past) + 1}.jsonl"
    folder.write_records(name, records)
    now = records[-1].round
    entry = {"from": now, "to": best, "by": by, "changes": changed, "settings": answer, "records": name, "done": False}
    past.append(entry)
    folder.write_json(MANIFEST, manifest)
    finish_going_back(folder, manifest)
    p = p.with_settings(loaded.experiment)
    state, notes = carry_settings(folder, p, saved, base, manifest)
    for line in (describe_way_back(entry), *notes):
        progress.say(line)
    return p, state, list_ways_back(manifest, state.round)


def _find_answer(p: Prepared, causes: Sequence[str]) -> tuple[list[str], str]:
    """Return settings that answer these alarms, or why there are none."""
    if p.config.federation.on_failure == "cluster":
        return answer_with_clusters(p, causes)
    return find_remedy(p.config, causes), "no setting of a running federation mends it"
