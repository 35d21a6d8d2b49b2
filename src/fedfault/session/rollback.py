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
from fedfault.config.loading import load
from fedfault.records import Finding
from fedfault.rounds.carry import carry_over
from fedfault.runs.folder import RunFolder
from fedfault.runs.outcome import find_best_round
from fedfault.session.progress import Progress
from fedfault.session.remedies import find_remedy
from fedfault.setup.experiment import Prepared
from fedfault.types.algorithm import State

MOST = 3  # times that a run goes back


def find_own_settings(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the run found for its own configuration before it began, and changed since, as `key=value`."""
    return [*manifest.get("found", ()), *(text for one in manifest.get("abandoned", ()) for text in one["settings"])]


def finish_going_back(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Finish every way back that the manifest has decided on and that a kill has interrupted."""
    for one in manifest.get("abandoned", ()):
        if not one["done"]:
            folder.rewind(one["to"])
            one["done"] = True
            folder.write_json("manifest.json", manifest)


def roll_back(
    folder: RunFolder, p: Prepared, alarms: Sequence[Finding], manifest: dict[str, Any], progress: Progress
) -> tuple[Prepared, State, str] | None:
    """Return the run as it goes on from its best round and a sentence about it; None where there is no remedy left."""
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
    loaded = load(folder.path / "config.yaml", [*find_own_settings(manifest), *answer])
    changed = find_changes(p.config.model_dump(), loaded.experiment.model_dump())
    name = f"abandoned-{len(past) + 1}.jsonl"
    folder.write_records(name, records)
    now = records[-1].round
    entry = {"from": now, "to": best, "by": by, "changes": changed, "settings": answer, "records": name, "done": False}
    past.append(entry)
    folder.write_json("manifest.json", manifest)
    finish_going_back(folder, manifest)
    p = p.with_settings(loaded.experiment)
    fed = p.federation
    state, notes = carry_over(fed, folder.load(fed.task.layout, p.model.device, best)[0], changed)
    moved = f"went back from round {now} to round {best}" if best != now else f"changed course in round {now}"
    sentence = f"{moved} because of {' and '.join(by)}, and on with {', '.join(answer)}"
    for line in (sentence, *notes):
        progress.say(line)
    return p, state, sentence


def _find_answer(p: Prepared, causes: Sequence[str]) -> tuple[list[str], str]:
    """Return settings that answer these alarms, or why there are none."""
    if p.config.federation.on_failure == "cluster":
        return answer_with_clusters(p, causes)
    return find_remedy(p.config, causes), "no setting of a running federation mends it"
