"""From the numbers that another program has to a round record. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedfault.arguments import read_whole
from fedfault.errors import UserError, join_names
from fedfault.measures.updates import SHOWN, cosines, gradient_alignment, gradient_variance, update_metrics
from fedfault.monitor.arrays import (
    check_width,
    read_array,
    read_counts,
    read_halves,
    read_number,
    read_products,
    read_row,
    read_rows,
)
from fedfault.monitor.server import Average, compare_shares, measure_average, name_lone_client, solve_average
from fedfault.records import ClientRecord, RoundRecord, Score

MOST = 1000  # rounds that may be left out one after another
HUGE = 1e300  # weights whose sum may be beyond what a float holds
SAME = 1e-9  # of the squared norm, between inner products of updates that are the same up to rounding
STALE = (
    "the loss is that of the round before to the last digit, and the server has moved: is it of the model that the server "
    "has after the round?"
)
Memory = dict[str, Any]  # what a later round needs of earlier ones


class Round(NamedTuple):
    """What `Monitor.log` was given; see there.

    events: what else a reader should know of the round, in sentences; named: the clients, None for the server, whose models
    they name as not finite, so that nobody else has to; averages: by what weights the server has averaged, by
    part of the model, where more is known of that than updates say.
    """

    loss: Any = None
    general_loss: Any = None
    client_losses: Mapping[int, Any] = {}
    updates: Any = None
    products: Any = None
    server_update: Any = None
    gradients: Any = None
    clients: Sequence[int] | None = None
    weights: Sequence[float] | None = None
    train_losses: Sequence[float] | None = None
    steps: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    probes: Mapping[str, float] = {}
    events: Sequence[str] = ()
    named: Collection[int | None] = ()
    averages: Mapping[str, Average] = {}


def measure_round(round: int, given: Round, memory: Memory, last: int | None) -> tuple[RoundRecord, Memory]:
    """Return the record of a round and what the next one needs; last: the round before it, if there is one.

    Raises `UserError` for what does not fit.
    """
    if (number := read_whole(round)) is None or number < 0:
        raise UserError(
            f"round={round!r}: rounds are integers from 0 on, no floats and no bools; 0 is the model before training"
        )
    round = number
    if last is not None and round <= last:
        raise UserError(f"round={round} came after round {last}: rounds count upwards; a new run needs a new Monitor")
    check_gap(last, round)
    memory = {**memory}
    sets = {"validation": given.loss, "general": given.general_loss}
    names = {"validation": "loss", "general": "general_loss"}
    for name in ("client_losses", "probes"):
        if not isinstance(getattr(given, name), Mapping):
            raise UserError(f"{name} should be a mapping to numbers, not {getattr(given, name)!r:.60}")
    for client, losses in given.client_losses.items():
        if (k := read_whole(client)) is None or k < 0:
            raise UserError(f"client_losses has the key {client!r}: clients are integers from 0 on")
        sets[f"client/{k}"] = losses
    given = given._replace(clients=_read_clients(given.clients))
    scores = {
        name: _score(names.get(name, f"client_losses of {name.replace('/', ' ')}"), name, losses, memory)
        for name, losses in sets.items()
        if losses is not None
    }
    K, probes, own, matrices, events = _measure_cohort(given, memory)
    if not math.isfinite(probes.get("server_norm", 0.0)):
        events += [] if None in given.named else ["server_update not finite: no loss of such a model counts"]
        scores["validation"] = Score(math.nan, 1)
        probes["server_not_finite"] = 1.0
    events += _note_stale_loss(scores.get("validation"), probes, memory)
    told = {name: read_number(f"probes[{name!r}]", value) for name, value in given.probes.items()}
    events = [*given.events, *events]
    events += [f"probe {name} not finite, left out" for name, value in told.items() if not math.isfinite(value)]
    clients = _list_clients(given, K, own)
    return RoundRecord(round, clients, scores, _keep_finite(probes | told), matrices, events=tuple(events)), memory


def _note_stale_loss(score: Score | None, probes: Mapping[str, float], memory: Memory) -> list[str]:
    """A sentence, once in a run, where the server has moved and its loss is that of the round before to the last digit.

    Losses of fewer than six digits are rounded, and may be equal.
    """
    loss = math.nan if score is None else score.loss
    same = loss == memory.get("loss") and probes.get("server_norm", 0.0) > 0 and float(f"{loss:.5g}") != loss
    found = [STALE] if same and not memory.get("stale") else []
    memory |= {"loss": loss, "stale": bool(found or memory.get("stale"))}
    return found


def check_gap(last: int | None, round: int) -> None:
    """Raise `UserError` for a round so far behind the last one, None before the first, that it is rather a step."""
    missing = round - (0 if last is None else last + 1)
    if missing > MOST:
        before = "first" if last is None else f"after round {last}"
        raise UserError(
            f"round={round} came {before}, and {missing:,} rounds are missing, more than {MOST:,}: are these steps? Count "
            "the rounds, in each of which the server averages once: 0, 1, 2 and so on"
        )


def _score(said: str, name: str, losses: Any, memory: Memory) -> Score:
    """A score from a number, or from the losses of examples with the error of their change since the first round."""
    values = read_array(said, losses)
    if values.ndim == 0:
        return Score(float(values), 1)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{said} has the shape {values.shape}: give one number, or the losses of the examples in a row")
    first = memory.setdefault("examples", {})
    start = first.get(name)
    memory["examples"] = first | ({name: values} if start is None else {})
    n, mean = len(values), float(values.mean())
    if start is None:
        return Score(mean, n, blocks=n)
    if len(start) != n:
        raise UserError(
            f"{said} has {n} examples, and had {len(start)} at first: the same ones are needed in every round, in one order"
        )
    change = values - start
    se = float(change.std(ddof=1) / math.sqrt(n)) if n > 1 and np.isfinite(change).all() else None
    return Score(mean, n, se, n)


@np.errstate(over="ignore", invalid="ignore")  # of updates that explode: what is not finite is left out by name
def _measure_cohort(
    given: Round, memory: Memory
) -> tuple[int, dict[str, float], list[dict[str, float]], dict[str, tuple[tuple[float, ...], ...]], list[str]]:
    """The number of clients, and what their updates and gradients say: probes, probes of each client, matrices, events.

    Probes are over the clients whose numbers are finite; events name the others.
    """
    rows = None if given.updates is None else read_rows("updates", given.updates)
    halves = None if given.gradients is None else read_halves(given.gradients)
    products = read_products(given.products) if rows is None else rows @ rows.T
    K = _count_clients(given, products, halves)
    probes: dict[str, float] = {}
    own: list[dict[str, float]] = [{} for _ in range(K)]
    matrices: dict[str, tuple[tuple[float, ...], ...]] = {}
    events: list[str] = []
    whole, averages = np.ones(K, dtype=bool), given.averages
    server = None if given.server_update is None else read_array("server_update", given.server_update).ravel()
    if products is not None:
        whole = np.isfinite(products.diagonal())
        events += _name_left_out("updates", given, whole)
        kept = products[np.ix_(whole, whole)]
        probes |= update_metrics(kept) if len(kept) else {}
        if len(kept) > 1 and np.ptp(kept) <= SAME * kept.max():
            same = "the same update" if kept.max() > 0 else "updates of norm 0"
            events.append(f"all {len(kept)} clients sent {same}")
        else:
            events += _name_copies(given, products)
        products = np.where(np.outer(whole, whole), products, math.nan)
        _fill(own, "update_norm", np.sqrt(products.diagonal().clip(min=0)))
        if 1 < K <= SHOWN:
            matrices["update_cosine"] = tuple(map(tuple, cosines(products).tolist()))
        if rows is not None and server is not None and server.size > 1:
            check_width("server_update", server, rows)
            _fill(own, "cosine", _cosine_to(rows, server))
            averages = _solve_average(products, rows @ server, server)
    if server is not None:
        probes |= _measure_server(server, memory)
        probes |= measure_average(averages)
        events += _note_averages(given, averages, memory)
    if halves is not None:
        first, second = halves
        if rows is not None:
            check_width("gradients", first[0], rows)
        crossed, noise = first @ second.T, ((first - second) ** 2).sum(axis=1)
        known = np.isfinite(crossed.diagonal()) & np.isfinite(noise)
        events += _name_left_out("gradients", given, known)
        probes |= gradient_variance(crossed[np.ix_(known, known)], noise[known])
        _fill(own, "gradient_norm", np.sqrt(crossed.diagonal().clip(min=0)))
        if 1 < K <= SHOWN and known.all():
            matrices["halves"] = tuple(map(tuple, crossed.tolist()))
        both = whole & known
        if rows is not None and both.any():
            means = np.stack([x[both].mean(axis=0) for x in (rows, first, second)])  # (3, P)
            probes |= gradient_alignment(means @ means.T)
    return K, probes, own, matrices, events


def _solve_average(products: np.ndarray, along: np.ndarray, server: np.ndarray) -> dict[str, Average]:
    """The weights by which the server's update is made of the clients', as those of all parts together; along: (K,)."""
    every = np.block([[products, along[:, None]], [along[None], np.full((1, 1), server @ server)]])
    found = solve_average(every, len(along), server.size)
    return {} if found is None else {"all": found}


def _note_averages(given: Round, averages: Mapping[str, Average], memory: Memory) -> list[str]:
    """Sentences, each once in a run: one client is taken alone twice in turn, or shares are not those that were told."""
    if not averages:
        return []
    K = len(next(iter(averages.values())).weights)
    ids = range(K) if given.clients is None else given.clients
    place = name_lone_client(averages)
    lone = None if place is None else ids[place]
    notes: dict[str, str] = {}
    if lone is not None and lone == memory.get("lone"):
        notes["lone"] = f"the server took the model of client {lone} alone, twice in turn: chosen, or are others lost?"
    elif lone is None and given.weights is not None:
        told = [note for one in averages.values() if (note := compare_shares(one, given.weights, ids)) is not None]
        notes = {"shares": told[0]} if told else {}
    said = memory.get("said", frozenset())
    memory |= {"lone": lone, "said": said | notes.keys()}
    return [note for kind, note in notes.items() if kind not in said]


def _name_left_out(said: str, given: Round, whole: np.ndarray) -> list[str]:
    """A sentence with the clients whose numbers are not finite; none where all are, or are named already."""
    ids = range(len(whole)) if given.clients is None else given.clients
    odd = [f"client {k}" for k, fine in zip(ids, whole, strict=True) if not fine and k not in given.named]
    return [f"{said} not finite, left out of what is measured: {', '.join(odd)}"] if odd else []


def _name_copies(given: Round, products: np.ndarray) -> list[str]:
    """A sentence for every group of clients whose updates are the same up to rounding, and not 0."""
    ids = np.arange(len(products)) if given.clients is None else np.array(given.clients)
    moved = products.diagonal() > 0
    ids, products = ids[moved], products[np.ix_(moved, moved)]
    square = products.diagonal()
    apart = square[:, None] + square - 2 * products
    same = apart <= SAME * np.maximum(square[:, None], square)
    # The first of those that are the same names the others
    groups = [ids[row] for i, row in enumerate(same) if row.argmax() == i and row.sum() > 1]
    return [f"clients {join_names(own)} sent the same update" for own in groups]


def _measure_server(server: np.ndarray, memory: Memory) -> dict[str, float]:
    """The norm of the server's update, and its cosine to that of the round before."""
    norm = float(np.linalg.norm(server))
    found = {"server_norm": norm}
    before = memory.get("server")
    if server.size > 1:
        if before is not None and before.size == server.size and norm > 0 and np.linalg.norm(before) > 0:
            found["round_cosine"] = float(_cosine_to(before[None], server)[0])
        memory["server"] = server
    return found


def _read_clients(value: Any) -> list[int] | None:
    """The numbers of clients; None where they are not given."""
    if value is None:
        return None
    try:
        given = list(value)
    except TypeError as error:
        raise UserError(f"clients={value!r:.60}: a number is needed for each of the K clients") from error
    ids = [k for client in given if (k := read_whole(client)) is not None and k >= 0]
    if len(set(ids)) < len(given):
        raise UserError(f"clients={given}: each should be an integer from 0 on, and none be there twice")
    return ids


def _list_clients(given: Round, K: int, own: Sequence[Mapping[str, float]]) -> tuple[ClientRecord, ...]:
    """A record for every client that took part; what is not known of it is not a number."""
    ids = range(K) if given.clients is None else given.clients
    unknown = [math.nan] * K
    weights = np.full(K, 1.0) if given.weights is None else read_row("weights", given.weights)
    if K and not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise UserError(f"weights={weights.tolist()}: shares are numbers from 0 on, and not all 0")
    if weights.max(initial=0.0) > HUGE:
        weights = weights / HUGE
    shares = (weights / weights.sum()).tolist() if K else []
    losses = unknown if given.train_losses is None else read_row("train_losses", given.train_losses).tolist()
    steps, tokens = (read_counts(name, getattr(given, name), K) for name in ("steps", "tokens"))
    return tuple(
        ClientRecord(
            k, shares[i], steps[i], tokens[i], losses[i], math.nan, own[i].get("update_norm", math.nan), 0, 0,
            probes={name: v for name, v in own[i].items() if name != "update_norm"},
        )
        for i, k in enumerate(ids)
    )  # fmt: skip


def _count_clients(given: Round, products: np.ndarray | None, halves: Any) -> int:
    """The number K of clients that all that is given of each agrees on. Raises `UserError` where it does not."""
    sizes = {
        name: len(read_row(name, value))
        for name in ("clients", "weights", "train_losses", "steps", "tokens")
        if (value := getattr(given, name)) is not None
    }
    sizes |= {"updates" if given.products is None else "products": len(products)} if products is not None else {}
    sizes |= {"gradients": len(halves[0])} if halves is not None else {}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the clients of the round are not as many everywhere: {', '.join(f'{n} has {k}' for n, k in sizes.items())}"
        )
    return next(iter(sizes.values()), 0)


def _cosine_to(rows: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Cosines of rows (K, P) to one (P,), (K,); not a number for a norm of zero."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    found: np.ndarray = np.divide(rows @ one, lengths, out=np.full(len(rows), math.nan), where=lengths > 0)
    return found


def _fill(own: list[dict[str, float]], name: str, values: np.ndarray) -> None:
    for probes, value in zip(own, values.tolist(), strict=True):
        if math.isfinite(value):
            probes[name] = value


def _keep_finite(probes: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in probes.items() if math.isfinite(value)}
