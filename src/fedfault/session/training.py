"""A prepared run to its end, finished or stopped by an alarm: rounds with a checkpoint after each, then the results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedfault.config.loading import load, load_resolved
from fedfault.diagnosis.detection import Detection
from fedfault.diagnosis.watch import Watch, describe_finding, write_findings
from fedfault.errors import UserError
from fedfault.records import Finding, RoundRecord
from fedfault.report.live import LivePage
from fedfault.rounds.engine import rounds
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import MANIFEST, OVER, find_outcome
from fedfault.runs.outcome import find_best_round
from fedfault.session.controls import ensure_calibration
from fedfault.session.ending import find_end
from fedfault.session.progress import Progress
from fedfault.session.results import write_results
from fedfault.session.rollback import list_ways_back, roll_back
from fedfault.session.session import Session
from fedfault.session.trackers import Trackers
from fedfault.setup.experiment import Prepared
from fedfault.setup.privacy import check_gradients
from fedfault.types.algorithm import State

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
    trackers = Trackers(p.config.logging.trackers, progress.say)
    page = LivePage(folder.path, progress.say, wanted=draw)
    session = Session(folder, manifest, watch, progress, trackers, page)
    if manifest["status"] != "trained":
        with session.count_seconds("rounds"):
            p, state = _train(session, p, state)
        session.set_status("trained")
    with session.count_seconds("results"), progress.show_work("writing the results"):
        write_results(session, p, state)
    folder.write_json(MANIFEST, manifest)
    if draw:
        from fedfault.report.render import render_report

        with progress.show_work("drawing the report"):
            render_report(folder.path)
    session.set_status(find_outcome(manifest))


def _watch_for(folder: RunFolder, p: Prepared, progress: Progress) -> Watch:
    """Return the detectors of a run, with the calibration of the configuration that it began with."""
    base, found = load(folder.path / "config.yaml").resolved, folder.read_manifest().get("found", ())
    own = load_resolved(base, folder.path / MANIFEST, found)
    ensure_calibration(own, p, progress)
    watch = Watch(own.resolved, None, p.split.deal.names, p.split.corpus.fingerprint, p.backbone.fingerprint)
    watch.go_on_with(p.config.model_dump())
    return watch


def _train(s: Session, p: Prepared, state: State) -> tuple[Prepared, State]:
    """Train to where the run ends, and tell the manifest and the trackers how it ended; returns where it got."""
    alarms = _find_open_alarms(s, p, state)
    s.set_status("running")
    check_gradients(p.federation)
    s.folder.delete_results()
    told = p.config.model_dump(exclude={"privacy": {"secret"}})
    with s.page, s.trackers.open_run(p.config.experiment_name, told, s.folder.path / "trackers"):
        p, state, alarms = _train_to_stop(s, p, state, alarms)
        _note_end(s, p, state, alarms)
        if s.trackers.running:
            seen = s.watch.follow(s.folder.read_records())
            s.trackers.conclude(state.round, s.watch.judge(seen, s.manifest.get("ended")))
    return p, state


def _find_open_alarms(s: Session, p: Prepared, state: State) -> list[Finding]:
    """Find the alarms of the last round that a kill has left without an answer."""
    answered = {one["to"] for one in s.manifest.get("abandoned", ())}
    answered |= {s.manifest["stopped"]["round"]} if "stopped" in s.manifest else set()
    goes_on = p.config.federation.on_failure == "continue" or s.manifest["status"] in OVER or state.round in answered
    if goes_on:
        return []
    seen = s.watch.follow()
    last: list[Finding] = []
    for record in s.folder.read_records():
        if record.round <= state.round:
            last = seen.add(record)
    return [f for f in last if f.level == "alarm"]


def _train_to_stop(
    s: Session, p: Prepared, state: State, alarms: list[Finding]
) -> tuple[Prepared, State, list[Finding]]:
    """Train to the end, and back and on at alarms if the run is to; returns where it got, and the alarms that stop it.

    alarms: those that the run has not answered yet.
    """
    events = list_ways_back(s.manifest, state.round)
    while True:
        if not alarms:
            state, alarms = _train_to_alarm(s, p, state, events)
        if not alarms or p.config.federation.on_failure == "stop":
            break
        events = ()
        if (back := roll_back(s.folder, p, alarms, s.manifest, s.progress)) is not None:
            p, state, events = back
            s.watch.go_on_with(p.config.model_dump())
        alarms = []
    at_the_end = state.round == p.federation.num_rounds  # where there is nothing to stop
    return p, state, [] if at_the_end else alarms


def _train_to_alarm(s: Session, p: Prepared, state: State, events: tuple[str, ...]) -> tuple[State, list[Finding]]:
    """Train to the end, or to the first alarm that the run should not pass: returns where it got, and those alarms.

    The end is the last round, or the first in which there is nothing left to reach, see `find_end`.

    `events` are noted in the first round's record.
    """
    records = s.folder.rewind(state.round)
    check_learning(records, p.federation.num_rounds, p.config.training.lr)
    if find_end(records, p.config.evaluation) is not None:
        return state, []
    seen = s.watch.follow(records)
    records = [*map(_keep_scores, records[:-LOST]), *records[-LOST:]]
    with s.progress.track_rounds(p.federation.num_rounds, records, labelled=p.model.scorer is not None):
        for after, measured in rounds(replace(p.federation, tell=s.progress.show_phase), state):
            record, events = replace(measured, events=(*events, *measured.events)), ()
            s.folder.append(record)
            records.append(record)
            s.folder.save(after, p.config.logging.keep_checkpoints, find_best_round(records))
            state = after
            alarms = _tell(s, record, seen)
            if alarms and p.config.federation.on_failure != "continue":
                return state, alarms
            if find_end(records, p.config.evaluation) is not None:
                return state, []
            check_learning(records, p.federation.num_rounds, p.config.training.lr)
            if len(records) > LOST:
                records[-LOST - 1] = _keep_scores(records[-LOST - 1])
    return state, []


def _tell(s: Session, record: RoundRecord, seen: Detection) -> list[Finding]:
    """Tell everybody of a round that is on disk, and of what detectors find in it; returns its alarms."""
    s.progress.show_round(record)
    s.trackers.log(record)
    found = seen.add(record)
    for finding in found:
        s.progress.say(describe_finding(finding))
        s.trackers.tell(finding)
    if found:
        write_findings(s.folder.path, seen.findings)
    s.page.update()
    return [f for f in found if f.level == "alarm"]


def _note_end(s: Session, p: Prepared, state: State, alarms: Sequence[Finding]) -> None:
    """Write into the manifest, and say, why the run ended before its last round; alarms: those that stopped it."""
    for key in ("stopped", "ended"):
        s.manifest.pop(key, None)
    if alarms:
        s.manifest["stopped"] = {"round": state.round, "by": [f.detector for f in alarms]}
        s.progress.say(f"stopped after round {state.round}, as federation.on_failure=stop asks")
    elif state.round < p.federation.num_rounds:
        s.manifest["ended"] = end = find_end(s.folder.read_records(), p.config.evaluation)
        assert end is not None
        s.progress.say(f"ended after round {state.round}: {end['reason']}")


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
