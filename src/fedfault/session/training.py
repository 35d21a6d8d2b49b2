"""A prepared run to its end, finished or stopped by an alarm: rounds with a checkpoint after each, then the results."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedfault.backbones.card import render_card, write_inline
from fedfault.backbones.export import export_adapter, export_tokenizer
from fedfault.config.loading import load, load_resolved
from fedfault.data.labelled import list_classes
from fedfault.diagnosis.watch import Watch, describe_finding, write_findings
from fedfault.errors import UserError
from fedfault.records import Finding, RoundRecord, add_client_names
from fedfault.report.live import LivePage
from fedfault.rounds.engine import rounds
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST, OVER, find_outcome
from fedfault.runs.outcome import LABEL_LOSS, LOSS, find_best_round, summarise_run
from fedfault.session.controls import ensure_calibration
from fedfault.session.ending import find_end
from fedfault.session.personal import Personal, compare_models
from fedfault.session.progress import Progress
from fedfault.session.rollback import list_ways_back, roll_back
from fedfault.session.trackers import Trackers
from fedfault.setup.experiment import Prepared
from fedfault.setup.privacy import check_gradients
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State

ANSWERS_SHOWN = 20  # answers that answers.json holds, of every topic in turn
LOST = 3  # rounds in a row from which no update could be used


def train_to_end(
    folder: RunFolder, p: Prepared, state: State, progress: Progress, manifest: dict[str, Any], *, draw: bool = True
) -> None:
    """Train from a state to the last round, or to the alarm that ends the run, and write the results.

    The folder must be locked and hold config.yaml. The manifest is changed, and written whenever the run gets further: now
    it is `running`, without the results of an end that it had before, then `trained`, and over when the results are written
    and, if `draw` says so, the report is drawn. Of a run that is `trained` already only the results are written.
    """
    watch = _watch_for(folder, p, progress)
    if manifest["status"] != "trained":
        clock = time.perf_counter()
        alarms = _find_open_alarms(folder, p, state, watch, manifest)
        manifest["status"] = "running"
        folder.write_json(MANIFEST, manifest)
        check_gradients(p.federation)
        folder.delete_results()
        trackers = Trackers(p.config.logging.trackers, progress.say)
        told = p.config.model_dump(exclude={"privacy": {"secret"}})
        with (
            LivePage(folder.path, progress.say, wanted=draw) as page,
            trackers.open_run(p.config.experiment_name, told, folder.path / "trackers"),
        ):
            p, state, alarms = _train_to_stop(folder, p, state, progress, watch, trackers, manifest, alarms, page)
            _note_end(folder, p, state, manifest, alarms, progress)
            if trackers.running:
                seen = watch.follow(folder.read_records())
                trackers.conclude(state.round, watch.judge(seen, manifest.get("ended")))
        _add_seconds(manifest, "rounds", clock)
        manifest["status"] = "trained"
        folder.write_json(MANIFEST, manifest)
    clock = time.perf_counter()
    with progress.show_work("writing the results"):
        _write_results(folder, p, state, folder.read_records(), manifest, watch, progress)
    _add_seconds(manifest, "results", clock)
    folder.write_json(MANIFEST, manifest)
    if draw:
        from fedfault.report.render import render_report

        with progress.show_work("drawing the report"):
            render_report(folder.path)
    manifest["status"] = find_outcome(manifest)
    folder.write_json(MANIFEST, manifest)


def _note_end(
    folder: RunFolder,
    p: Prepared,
    state: State,
    manifest: dict[str, Any],
    alarms: Sequence[Finding],
    progress: Progress,
) -> None:
    """Write into the manifest, and say, why the run ended before its last round; alarms: those that stopped it."""
    for key in ("stopped", "ended"):
        manifest.pop(key, None)
    if alarms:
        manifest["stopped"] = {"round": state.round, "by": [f.detector for f in alarms]}
        progress.say(f"stopped after round {state.round}, as federation.on_failure=stop asks")
    elif state.round < p.federation.num_rounds:
        manifest["ended"] = end = find_end(folder.read_records(), p.config.evaluation)
        assert end is not None
        progress.say(f"ended after round {state.round}: {end['reason']}")


def _watch_for(folder: RunFolder, p: Prepared, progress: Progress) -> Watch:
    """Return the detectors of a run, with the calibration of the configuration that it began with."""
    base, found = load(folder.path / "config.yaml").resolved, folder.read_manifest().get("found", ())
    own = load_resolved(base, folder.path / MANIFEST, found)
    ensure_calibration(own, p, progress)
    watch = Watch(own.resolved, None, p.split.deal.names, p.split.corpus.fingerprint, p.backbone.fingerprint)
    watch.go_on_with(p.config.model_dump())
    return watch


def _add_seconds(manifest: dict[str, Any], part: str, since: float) -> None:
    seconds = manifest.setdefault("seconds", {})
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - since


def _train_to_stop(
    folder: RunFolder,
    p: Prepared,
    state: State,
    progress: Progress,
    watch: Watch,
    trackers: Trackers,
    manifest: dict[str, Any],
    alarms: list[Finding],
    page: LivePage,
) -> tuple[Prepared, State, list[Finding]]:
    """Train to the end, and back and on at alarms if the run is to; returns where it got, and the alarms that stop it.

    alarms: those that the run has not answered yet.
    """
    events = list_ways_back(manifest, state.round)
    while True:
        if not alarms:
            state, alarms = _train_to_alarm(folder, p, state, progress, watch, trackers, events, page)
        if not alarms or p.config.federation.on_failure == "stop":
            break
        events = ()
        if (back := roll_back(folder, p, alarms, manifest, progress)) is not None:
            p, state, events = back
            watch.go_on_with(p.config.model_dump())
        alarms = []
    at_the_end = state.round == p.federation.num_rounds  # where there is nothing to stop
    return p, state, [] if at_the_end else alarms


def _find_open_alarms(
    folder: RunFolder, p: Prepared, state: State, watch: Watch, manifest: dict[str, Any]
) -> list[Finding]:
    """Find the alarms of the last round that a kill has left without an answer."""
    answered = {one["to"] for one in manifest.get("abandoned", ())}
    answered |= {manifest["stopped"]["round"]} if "stopped" in manifest else set()
    goes_on = p.config.federation.on_failure == "continue" or manifest["status"] in OVER or state.round in answered
    if goes_on:
        return []
    seen = watch.follow()
    last: list[Finding] = []
    for record in folder.read_records():
        if record.round <= state.round:
            last = seen.add(record)
    return [f for f in last if f.level == "alarm"]


def _train_to_alarm(
    folder: RunFolder,
    p: Prepared,
    state: State,
    progress: Progress,
    watch: Watch,
    trackers: Trackers,
    events: tuple[str, ...],
    page: LivePage,
) -> tuple[State, list[Finding]]:
    """Train to the end, or to the first alarm that the run should not pass: returns where it got, and those alarms.

    The end is the last round, or the first in which there is nothing left to reach, see `find_end`.

    `events` are noted in the first round's record.
    """
    records = folder.rewind(state.round)
    check_learning(records, p.federation.num_rounds, p.config.training.lr)
    if find_end(records, p.config.evaluation) is not None:
        return state, []
    seen = watch.follow(records)
    records = [*map(_keep_scores, records[:-LOST]), *records[-LOST:]]
    with progress.track_rounds(p.federation.num_rounds, records, labelled=p.model.scorer is not None):
        for after, measured in rounds(replace(p.federation, tell=progress.show_phase), state):
            record, events = replace(measured, events=(*events, *measured.events)), ()
            folder.append(record)
            records.append(record)
            folder.save(after, p.config.logging.keep_checkpoints, find_best_round(records))
            state = after
            progress.show_round(record)
            trackers.log(record)
            found = seen.add(record)
            for finding in found:
                progress.say(describe_finding(finding))
                trackers.tell(finding)
            if found:
                write_findings(folder.path, seen.findings)
            page.update()
            alarms = [f for f in found if f.level == "alarm"]
            if alarms and p.config.federation.on_failure != "continue":
                return state, alarms
            if find_end(records, p.config.evaluation) is not None:
                return state, []
            check_learning(records, p.federation.num_rounds, p.config.training.lr)
            if len(records) > LOST:
                records[-LOST - 1] = _keep_scores(records[-LOST - 1])
    return state, []


def _keep_scores(record: RoundRecord) -> RoundRecord:
    """Keep of an old record only what is asked of it while the run goes on, the scores of the mixture: the file has all."""
    return RoundRecord(record.round, scores={n: s for n, s in record.scores.items() if n == "validation"})


def check_learning(records: Sequence[RoundRecord], num_rounds: int, lr: float) -> None:
    """Raise `UserError` where every update of the last rounds, or of all rounds of a short run, was not finite."""
    lost = len(list(itertools.takewhile(_has_lost_all, reversed(records))))
    if lost and lost >= min(LOST, num_rounds):
        raise UserError(
            f"not one update was finite in the last {lost} rounds, so that nothing is learned: training diverges; lower "
            f"training.lr, which is {lr:g}, and start again with --overwrite or another experiment_name"
        )


def _has_lost_all(record: RoundRecord) -> bool:
    """Tell whether clients trained in this round and the update of every one was left out as not finite.

    A weight of 0 alone does not say so: an aggregation may listen to nobody for a round, as FLTrust without its client.
    """
    lost = (client.weight == 0 and not math.isfinite(client.update_norm) for client in record.clients)
    return bool(record.clients) and all(lost)


def _write_results(
    folder: RunFolder,
    p: Prepared,
    state: State,
    records: Sequence[RoundRecord],
    manifest: dict[str, Any],
    watch: Watch,
    progress: Progress,
) -> None:
    """Write findings.jsonl, metrics.json, personal.json, clients.parquet and the adapters of all models."""
    seen = watch.follow(records)
    write_findings(folder.path, seen.findings)
    metric, target = p.config.metric, p.config.evaluation.target_score
    aim = None if metric is None or target is None else (metric, target)
    labelled = p.model.scorer is not None
    verdict = watch.judge(seen, manifest.get("ended"))
    found = {**summarise_run(records, p.split.bytes_per_token, aim, labelled), "verdict": verdict}
    personal = compare_models(p, state, records, progress)
    if personal is not None:
        folder.write_json("personal.json", {"rows": personal.rows})
        found["personal"] = personal.summary
        found["units"]["personal"] = LABEL_LOSS if labelled else LOSS
    folder.write_json("metrics.json", found)
    folder.write_clients(records)
    _write_answers(folder, p, state, progress)
    _export_models(folder, p, state, personal, found, manifest)


def _write_answers(folder: RunFolder, p: Prepared, state: State, progress: Progress) -> None:
    """Write answers.json: what the model answered before and after training to some prompts, where it was asked."""
    if p.config.evaluation.generate:
        progress.say(f"the base and the trained model answer up to {ANSWERS_SHOWN} prompts for the report")
    after = p.task.continuations(state.adapter.flat, ANSWERS_SHOWN)
    if after is None or not after.prompts:
        return
    p.task.fold({})
    before = p.task.continuations(p.task.init(p.config.seed).flat, ANSWERS_SHOWN)
    p.task.fold(state.base)
    assert before is not None
    said = zip(after.prompts, after.references, before.texts, after.texts, strict=True)
    rows = [dict(zip(("prompt", "reference", "before", "after"), own, strict=True)) for own in said]
    folder.write_json("answers.json", {"answers": rows})


def _export_models(
    folder: RunFolder,
    p: Prepared,
    state: State,
    personal: Personal | None,
    found: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Write the adapter, one beside it for each further model of the server, and one for each client that has its own."""
    labels = () if p.model.scorer is None else list_classes(p.config, p.split.corpus)
    traits = p.federation.aggregation.traits

    def export(place: str, adapter: Adapter, note: str, client: int | None = None) -> None:
        about = (p.config, p.backbone, p.split.corpus, traits, labels, found, manifest)
        card = render_card(*about, place=place, note=note, client=client)
        export_adapter(folder.path / place, p.backbone, p.model, adapter, card, state.base, labels)

    models = p.federation.algorithm.models(state)
    of_all = f"the mean of {', '.join(models)}, which lie beside it and which clients use"
    export("adapter", state.adapter, f"This is {of_all}." if models else "")
    for name, x in models.items():
        export(f"adapter/{name}", x, f"This is {name}; the scores above are those of {of_all}.")
    rows = () if personal is None else personal.models.flat
    tuned = _describe_tuning(p)
    for k, (name, row) in enumerate(zip(name_folders(p.split.deal.names, len(rows)), rows, strict=True)):
        who = write_inline(add_client_names(f"client {k}", p.split.deal.names))
        note = (
            f"This is the model that {who} uses, and `client/{k}` its score on what that client held back; the scores of "
            "the other sets are those of the server's adapter."
            f"{tuned}"
        )
        export(f"adapter/clients/{name}", Adapter(state.adapter.layout, row), note, k)
    template = None if p.template is None else p.template.source
    export_tokenizer(folder.path / "adapter", p.backbone.tokenizer, template)


def _describe_tuning(p: Prepared) -> str:
    """Say of a client's exported model that it was trained on after its score was taken; nothing where it was not."""
    how = p.config.personalise
    return (
        ""
        if how is None
        else f" After that the client trained it on for {how.steps} steps: personal.json has its score, as model `tuned`."
    )


def name_folders(names: Sequence[str], N: int) -> list[str]:
    """Name a folder for each of N clients after it, or by its number where it has no name that a folder could have.

    >>> name_folders(["Eve", "R&D / Ops", "..", "eve-4", "eve"], 5)
    ['Eve', 'R_D_Ops', '2', 'eve-4', 'eve-4-4']
    """
    found: list[str] = []
    for k in range(N):
        name = re.sub(r"[^\w.-]+", "_", names[k] if names else "").strip("._")[:60] or str(k)
        while name.casefold() in (other.casefold() for other in found):
            name = f"{name}-{k}"
        found.append(name)
    return found
