"""A run that left only files, adapters of its clients or a csv of losses, becomes a monitored run. Needs no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedfault.diagnosis.calibration import Calibration
from fedfault.diagnosis.watch import describe_finding
from fedfault.errors import UserError, join_names
from fedfault.monitor import Monitor
from fedfault.monitor.adapters import PATTERN, Collection, read_collection, sort_name
from fedfault.monitor.losses import Losses, read_losses
from fedfault.monitor.measured import STALE, Round, check_gap
from fedfault.monitor.missing import ELSE, OPTIONS, explain_missing
from fedfault.monitor.traces import Traces, describe_traces, measure_traces
from fedfault.monitor.updates import place_servers
from fedfault.runs.read import read_run
from fedfault.saying import say_nothing


def diagnose_files(
    adapters: Path | None = None,
    csv: Path | None = None,
    *,
    pattern: str = PATTERN,
    server: str | None = None,
    frozen: Sequence[str] = (),
    out: Path | None = None,
    calibration: Path | str | None = None,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Judge a run by the adapters that its clients sent, by a csv of losses or by both; return what is found, in lines.

    adapters, pattern, server: see `adapters.read_collection`; csv: see `losses.read_losses`. frozen: names of tensors, whole
    or in part or with `*`, that should stand still. out: the run folder that is written; without it nothing is kept.
    Raises `UserError` for what is missing, damaged or does not fit, before anything is written.
    """
    if adapters is None and csv is None:
        raise UserError("name a run folder, or --adapters FOLDER, or --csv FILE")
    calibration = None if calibration == "none" else calibration
    if calibration in ("packaged", "auto"):
        raise UserError(
            f"calibration={calibration} is of fedfault's own runs; name a file that `Monitor.calibrate` made from yours"
        )
    collection = None if adapters is None else place_servers(read_collection(adapters, pattern, server))
    losses = {} if csv is None else read_losses(csv)
    numbers = _number_clients(collection, losses)
    traces = None if collection is None else measure_traces(collection, numbers, frozen)
    if traces is not None and losses and losses.keys().isdisjoint(traces.rounds):
        raise UserError(
            f"the adapters are of rounds {min(traces.rounds)} to {max(traces.rounds)} and the losses of rounds "
            f"{min(losses)} to {max(losses)}, and have none in common: are they of one run, counted alike?"
        )
    rounds = sorted({*losses, *({} if traces is None else traces.rounds)})
    for last, t in zip([None, *rounds], rounds, strict=False):
        check_gap(last, t)
    lost = _find_lost(collection, losses)
    settings = {} if collection is None else _describe_adapters(collection)
    sources = {name: str(path) for name, path in (("adapters", adapters), ("csv", csv)) if path is not None}
    with ExitStack() as stack:
        place = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        monitor = Monitor(
            place.name, results_dir=place.parent, calibration=calibration, settings={**sources, **settings},
            plugins=plugins, overwrite=overwrite, say=say_nothing,
        )  # fmt: skip
        found = []
        for t in rounds:
            given = _join(losses.get(t), traces, t, numbers)
            found += monitor._log(t, Round(**(_lose_server(given, lost[0]) if t in lost else given)))
        verdict = monitor.finish()
        records = read_run(place).records
    lines = [f"{verdict['state']}. {verdict['sentence']}", verdict["sure"], *map(describe_finding, found)]
    lines += [] if traces is None or collection is None else describe_traces(collection, traces)
    lines += [_explain_lost(lost[0])] if lost else []
    lines += _warn_of_changing_means(losses)
    lines += [f"round {r.round}: {STALE}" for r in records if STALE in r.events]
    lines += [] if all(name.isdecimal() for name in numbers) else [f"clients by number: {_list_names(numbers)}"]
    known = None if calibration is None else Calibration.load(Path(calibration))
    lines += [f"switched off: {explain_missing(records, known, OPTIONS, ELSE)}"]
    kept = f"run: {out}" if out else "nothing is kept; --out FOLDER makes it a run that report, compare and runs read"
    return "\n".join([*lines, kept])


def _find_lost(found: Collection | None, losses: Mapping[int, Losses]) -> list[int]:
    """The rounds whose server is not known, and from which on no adapter is finite and no loss of the mixture."""
    if found is None or found.lost is None or any(t >= found.lost and _is_finite(one) for t, one in losses.items()):
        return []
    return [t for t in found.rounds if t >= found.lost and t not in found.servers]


def _is_finite(one: Losses) -> bool:
    return one.mean is not None and math.isfinite(one.mean)


def _lose_server(given: Mapping[str, Any], since: int) -> dict[str, Any]:
    """What is told of a round, with the server's model taken to be as the clients' are, not finite."""
    events, named = [*given["events"], _explain_lost(since)], {*given["named"], None}
    return {**given, "server_update": math.nan, "events": events, "named": named}


def _explain_lost(since: int) -> str:
    return f"no adapter from round {since} on is finite: the server's, which is not here, is taken to be none either"


def _warn_of_changing_means(losses: Mapping[int, Losses]) -> list[str]:
    """A line where the loss of the mixture is a mean over other clients in some rounds than in others."""
    if any(one.central for one in losses.values()):
        odd = [t for t, one in losses.items() if one.loss is None]
        return [f"no loss of the mixture in rounds without a row of the server: {join_names(odd)}"] if odd else []
    means = {t: sorted(one.clients) for t, one in losses.items() if one.clients}
    odd = [t for t, who in means.items() if who != next(iter(means.values()))]
    if not odd:
        return []
    return [
        f"the loss of the mixture is the mean over clients, and in round {odd[0]} there are others than in round "
        f"{next(iter(means))}: part of its change is who was scored"
    ]


def _number_clients(collection: Collection | None, losses: Mapping[int, Losses]) -> dict[str, int]:
    """The number of every client by its name: its own where all names are numbers, which 01 and 1 share.

    Raises `UserError` where the adapters, or the losses, have two names of one value.
    """
    sent = set(collection.names if collection else ())
    scored = {name for one in losses.values() for name in one.clients}
    for said, own in (("the adapters", sent), ("the losses", scored)):
        _check_names(said, own)
    if sent and scored and set(map(_read_name, sent)).isdisjoint(map(_read_name, scored)):
        raise UserError(
            f"no client of the adapters ({_sort(sent)}) is among those of the losses ({_sort(scored)}): call a client by "
            "one name in both"
        )
    ordered = sorted(sent | scored, key=sort_name)
    plain = all(name.isdecimal() for name in ordered)
    places = {name: k for k, name in enumerate(dict.fromkeys(map(_read_name, ordered)))}
    return {name: int(name) if plain else places[_read_name(name)] for name in ordered}


def _sort(names: set[str]) -> str:
    ordered = sorted(names, key=sort_name)
    return join_names(ordered)


def _read_name(name: str) -> str:
    """A name as it is, and a number as it is usually written."""
    return str(int(name)) if name.isdecimal() else name


def _check_names(said: str, names: set[str]) -> None:
    """Raise `UserError` for two names of one value, such as 01 and 1."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        if (other := seen.setdefault(_read_name(name), name)) != name:
            raise UserError(
                f"{said} have clients {other!r} and {name!r}, which are one number: give one client one name, or two "
                "clients two numbers"
            )


def _list_names(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{k} is {name}" for name, k in numbers.items())


def _describe_adapters(found: Collection) -> dict[str, Any]:
    """What adapter_config.json says of the run, as its settings."""
    config = found.uploads[0].config
    names = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "use_dora")
    return {name: config[name] for name in names if config.get(name) not in (None, False)}


def _join(losses: Losses | None, traces: Traces | None, t: int, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What `Monitor.log` is told of a round."""
    given = dict(traces.rounds.get(t, {})) if traces is not None else {}
    if losses is None:
        return given
    clients = {numbers[name]: loss for name, loss in losses.clients.items()}
    train = {numbers[name]: loss for name, loss in losses.train.items()}
    if train:
        given.setdefault("clients", sorted(train))
        given["train_losses"] = [train.get(k, math.nan) for k in given["clients"]]
    return given | {"loss": losses.mean, "general_loss": losses.general_loss, "client_losses": clients}
