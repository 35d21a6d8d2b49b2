"""`fedfault blame`: rounds of a run are made again from a checkpoint, with and without each client's update."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfault.errors import UserError
from fedfault.metrics.contributions import contributions
from fedfault.records import RoundRecord
from fedfault.report.words import format_number
from fedfault.rounds.engine import prepare_task, run_round
from fedfault.rounds.federation import Federation
from fedfault.runs.files import lock_results
from fedfault.runs.folder import RunFolder
from fedfault.runs.recorded import list_contributions
from fedfault.session.progress import Progress
from fedfault.session.provenance import check_not_moved, check_same_inputs, tell_where_data_were
from fedfault.session.settings import find_own_schedule, find_own_settings, load_own
from fedfault.setup.experiment import prepare

FILE = "contributions.json"
APART = 1e-4  # relative: numbers of a round that is made again may be off by rounding, in other passes


def blame_run(path: Path, progress: Progress, round: int | None = None, pairs: int = 8) -> None:
    """Measure what each client did to every score of a round, or of all rounds, and write it to contributions.json.

    Uploads are not kept, so the rounds are trained again from the newest checkpoint before them; a round that does not come
    out as it is recorded ends the command. `pairs` of permutations for Shapley values; 0: none. What is known of other
    rounds stays. Raises `UserError` for a run, round or aggregation of which this cannot be said.
    """
    folder = RunFolder.open(path)
    manifest, recorded = folder.read_manifest(), {r.round: r for r in folder.read_records()}
    first, last = _choose_rounds(folder, recorded, round)
    start = _find_start(folder, first)
    settings, later = ([*find_own_settings(manifest, t), *find_own_schedule(manifest, t)] for t in (start, last - 1))
    if settings != later:
        raise UserError(
            f"{path} changed its settings after round {start}; give --round R of a round with a checkpoint "
            "after that, and logging.keep_checkpoints=all to keep those of all rounds"
        )
    exp = load_own(folder, manifest, settings).experiment
    _check_open(path, manifest, exp.privacy.unit, exp.federation.centralised)
    with tell_where_data_were(manifest):
        p = prepare(exp, progress.say)
    for note in check_same_inputs(manifest, p):
        progress.say(f"note: {note}")
    check_not_moved(folder, manifest, p.federation)
    wanted = _check_aggregation(p.federation, recorded[first], exp.federation.aggregation.name, pairs, round)
    state, _ = folder.load(p.federation.task.layout, p.model.device, start)
    clock = time.perf_counter()
    made = []
    if start + 1 < first:
        progress.say(f"rounds {start + 1} to {first - 1} are trained again, from the checkpoint of round {start}")
    measured = replace(p.federation, probes={"contributions": contributions(pairs=wanted)}, evaluate_every=1)
    plain = replace(p.federation, probes={}, evaluate_every=p.federation.num_rounds)
    prepare_task(p.federation, state)
    for t in range(start + 1, last + 1):
        state, record = run_round(measured if t >= first else plain, state)
        _check_same(path, recorded[t], record)
        if t >= first:
            made.append(record)
            progress.say(_describe_round(record, time.perf_counter() - clock))
    _keep(folder, made, wanted)


def _choose_rounds(folder: RunFolder, recorded: Mapping[int, RoundRecord], round: int | None) -> tuple[int, int]:
    """The first and the last round that is asked for. Raises `UserError` for one that is not recorded."""
    last = max(recorded, default=0)
    if not last:
        raise UserError(f"{folder.path} has no round that is done")
    if round is None:
        return 1, last
    if round not in recorded or round < 1:
        raise UserError(f"{folder.path} has no round {round}; there are rounds 1 to {last}")
    return round, round


def _find_start(folder: RunFolder, first: int) -> int:
    """The newest kept checkpoint before a round."""
    kept = [t for t in folder.list_checkpoints() if t < first]
    if not kept:
        folder.check_checkpoint(first - 1)
    return kept[-1]


def _check_open(path: Path, manifest: Mapping[str, Any], unit: str | None, centralised: bool) -> None:
    """Raise `UserError` for a run whose clients cannot be told apart here."""
    if unit is not None:
        raise UserError(f"{path} hides {unit}s (privacy.unit): what one client did is what it must not tell")
    if manifest.get("over_flower"):
        raise UserError(
            f"{path} is a run over Flower: its sites would have to train again. metrics.contributions=true measures "
            "contributions while a run goes on, also over Flower"
        )
    if centralised:
        raise UserError(f"{path} has all data in one place (federation.centralised): there is no client to leave out")


def _check_aggregation(fed: Federation, record: RoundRecord, name: str, pairs: int, round: int | None) -> int:
    """The pairs of permutations that the aggregation allows. Raises `UserError` where a client cannot be left out of it."""
    least = fed.aggregation.least
    if least > 1 and (len(record.clients) <= least or round is None):
        raise UserError(
            f"federation.aggregation={name} needs {least} updates to be what it says, so that "
            + (
                f"nobody can be left out of the {len(record.clients)} of a round; raise federation.clients_per_round"
                if len(record.clients) <= least
                else "smaller coalitions have no value and there are no Shapley values; give --round R for the effect of "
                "leaving one out"
            )
        )
    return 0 if least > 1 else pairs


def _check_same(path: Path, before: RoundRecord, now: RoundRecord) -> None:
    """Raise `UserError` where a round that was made again is not the one that was recorded."""
    told, found = _list_numbers(before), _list_numbers(now)
    if [c.client for c in before.clients] != [c.client for c in now.clients]:
        told, found = {"clients": before.clients}, {"clients": now.clients}
    for name in told.keys() & found.keys():
        if not _is_same(told[name], found[name]):
            raise UserError(
                f"round {now.round} of {path} does not come out as it was recorded: {name} is {found[name]} and was "
                f"{told[name]}, so that blame would be of another run. Repeat it with the versions and on the machine of "
                "manifest.json; a run that was continued to more rounds, or whose clock measures seconds, cannot be repeated"
            )


def _is_same(told: Any, found: Any) -> bool:
    """Whether two numbers of a round are the same but for rounding; records hold nothing of those that are not finite."""
    if told == found or not isinstance(told, float) or not isinstance(found, float):
        return bool(told == found)
    return math.isclose(told, found, rel_tol=APART) or not (math.isfinite(told) or math.isfinite(found))


def _list_numbers(record: RoundRecord) -> dict[str, Any]:
    """The numbers of a round that tell it from others, by name."""
    norms = {f"update_norm of client {c.client}": c.update_norm for c in record.clients}
    return norms | {name: score.loss for name, score in record.scores.items()}


def _describe_round(record: RoundRecord, seconds: float) -> str:
    each = {c.client: c.probes.get("contribution/validation") for c in record.clients}
    known = [f"client {k} {format_number(value, '+.4f')}" for k, value in each.items() if value is not None]
    said = f"the loss would change without {', '.join(known)}" if known else "no client was left out"
    return f"round {record.round}: {said} ({seconds:.1f} s)"


def _keep(folder: RunFolder, made: list[RoundRecord], pairs: int) -> None:
    """Write the rows of these rounds, in the place of what was known of them."""
    now = {r.round for r in made}
    with lock_results(folder.path):
        old = folder.read_json(FILE).get("rows", []) if (folder.path / FILE).is_file() else []
        rows = [row for row in old if row["round"] not in now]
        rows += [row | {"pairs": pairs} for record in made for row in list_contributions(record)]
        folder.write_json(FILE, {"rows": sorted(rows, key=lambda row: (row["round"], row["client"]))})
