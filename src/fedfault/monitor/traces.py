"""What the adapters of a run show of its loop, round by round: updates, who started where, what moved. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfault.detectors.exchange import CHAINED, FEW, GROWTH, KEPT
from fedfault.errors import UserError, join_names
from fedfault.monitor.adapters import CONFIG, FULL, Collection, Upload, sort_name
from fedfault.monitor.exchange import Apart, Chain, Sent, find_moved, find_usual, measure_apart, measure_chain
from fedfault.monitor.geometry import digest_parts, multiply_part, split_parts
from fedfault.monitor.server import NONE, Average, measure_average, name_lone_client, sends_updates
from fedfault.monitor.updates import find_odd, measure_averages, measure_scale, measure_updates


@dataclass(frozen=True)
class Traces:
    """What was measured. rounds: by round, as `Monitor.log` takes it; the rest is of all rounds together, by part."""

    rounds: Mapping[int, Mapping[str, Any]]
    parts: tuple[str, ...]
    still: tuple[str, ...]  # parts that are the same in all adapters
    same: tuple[int, ...]  # rounds in which all of several clients sent the same, to the bit
    copies: Mapping[tuple[str, ...], tuple[int, ...]]  # rounds in which these clients, and not all, sent the same
    given: Mapping[str, tuple[int, ...]]  # rounds in which this client, and not all, sent what the server had before
    apart: Mapping[str, Apart]
    chains: Mapping[str, Chain]
    averages: Mapping[int, Mapping[str, Average]]  # of the server, by round and part, where they are known
    less: tuple[int, ...]  # rounds in which all clients sent less than half of what they got


def measure_traces(found: Collection, numbers: Mapping[str, int], frozen: Sequence[str] = ()) -> Traces:
    """Measure all rounds of a collection.

    numbers: of the clients by name; frozen: names of tensors that should stand still, see `files.diagnose_files`. Raises
    `UserError` for a name that no tensor has.
    """
    uploads = found.whole
    parts = split_parts(found.uploads, frozen)
    for pattern in frozen:
        if pattern not in parts:
            raise UserError(
                f"--frozen {pattern!r}: no tensor of {found.uploads[0].file} is called so; there are "
                f"{join_names(found.uploads[0].tensors, 3)}"
            )
    every = [*uploads, *(u for u in found.servers.values() if u.broken is None)]
    marks = digest_parts(every, parts)
    still = tuple(part for part in parts if len(set(marks[part])) == 1 < len(every))
    clients = tuple(numbers[str(u.client)] for u in uploads)
    kinds = tuple(str(sorted((site, u.rank(site)) for site in u.sites)) for u in uploads)
    moving = [part for part in parts if part not in (*still, *frozen)]
    sent = {
        part: Sent(multiply_part(uploads, parts[part]), tuple(u.round for u in uploads), clients, kinds)
        for part in moving
        if uploads
    }
    single = {part: one.once(marks[part][: len(uploads)]) for part, one in sent.items()}
    rounds, apart, chains = {}, dict[str, Apart](), dict[str, Chain]()
    served = {t: measure_averages(found, t, parts) for t in found.rounds}
    less = tuple(t for t, (_, few) in served.items() if few)
    averages = {t: one for t, (one, _) in served.items() if one}
    left = dict[str, int]()  # in how many rounds most clients left a part alone
    for t in found.rounds:
        apart, chains = _measure_exchange(*({part: one.until(t) for part, one in x.items()} for x in (sent, single)))
        here = [i for i, u in enumerate(every) if u.round == t]
        measured = [i for i in here if i < len(uploads)]
        for part in (part for part in parts if find_usual(_mark_clients(every, here, marks), part) is not None):
            left[part] = left.get(part, 0) + 1
        moved = _count_moved(every, here, marks, frozen, [part for part in left if left[part] > 1])
        probes = {
            **(_probe_exchange(apart, chains) if measured else {}),  # else it would be that of the round before again
            "frozen_moved": float(moved),
            "scale_ratio": measure_scale(found, t),
            **measure_average(averages.get(t, {})),
        }
        rounds[t] = {
            "clients": [numbers[str(u.client)] for u in found.sent(t)],
            "probes": probes,
            **_name_broken(found, t, numbers),
            **measure_updates(found, t),
        }
    for t in {u.round for u in found.broken} - rounds.keys():  # the server's alone
        rounds[t] = {**_name_broken(found, t, numbers), "server_update": math.nan}
    repeats = _find_repeats(every, list(zip(*marks.values(), strict=True)))
    return Traces(rounds, tuple(parts), still, *repeats, apart, chains, averages, less)


def _find_repeats(
    every: Sequence[Upload], marks: Sequence[Hashable]
) -> tuple[tuple[int, ...], dict[tuple[str, ...], tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Rounds in which all clients sent the same, in which some did, and in which one sent what the server had before.

    marks: of the adapters, equal where these are.
    """
    same, copies, given = [], dict[tuple[str, ...], tuple[int, ...]](), dict[str, tuple[int, ...]]()
    for t in sorted({u.round for u in every if u.client is not None}):
        sent = {u.client: mark for u, mark in zip(every, marks, strict=True) if u.client is not None and u.round == t}
        groups = _group_equal(sent)
        had = {mark for u, mark in zip(every, marks, strict=True) if u.client is None and u.round < t}
        back = [name for name, mark in sent.items() if mark in had]
        same += [t] if len(groups) == 1 < len(sent) else []
        given |= {name: (*given.get(name, ()), t) for name in back if len(groups) > 1}
        copies |= {own: (*copies.get(own, ()), t) for own in groups if 1 < len(own) < len(sent) and own[0] not in back}
    return tuple(same), copies, given


def _name_broken(found: Collection, t: int, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Events with the files of a round that are not finite, and whose they are: numbers of clients, None: the server's."""
    broken = [u for u in found.broken if u.round == t]
    clients = [
        f"client {numbers[u.client]} ({u.file.relative_to(found.folder)})" for u in broken if u.client is not None
    ]
    events = [f"adapters not finite, left out of what is measured: {', '.join(clients)}"] if clients else []
    events += [
        f"the server's adapter is not finite ({u.file.relative_to(found.folder)}): no loss of such a model counts"
        for u in broken
        if u.client is None
    ]
    return {"events": events, "named": {None if u.client is None else numbers[u.client] for u in broken}}


def _group_equal(marks: Mapping[str, Hashable]) -> list[tuple[str, ...]]:
    """The names whose marks are equal, together."""
    found: dict[Hashable, tuple[str, ...]] = {}
    for name, mark in marks.items():
        found[mark] = (*found.get(mark, ()), name)
    return list(found.values())


def _measure_exchange(
    sent: Mapping[str, Sent], single: Mapping[str, Sent]
) -> tuple[dict[str, Apart], dict[str, Chain]]:
    """What clients keep, and their chain; single: what was sent without the copies of a round."""
    apart = {part: measure_apart(one) for part, one in sent.items()}
    chains = {part: measure_chain(one) for part, one in single.items()}
    return {p: a for p, a in apart.items() if a is not None}, {p: c for p, c in chains.items() if c is not None}


def _probe_exchange(apart: Mapping[str, Apart], chains: Mapping[str, Chain]) -> dict[str, float]:
    """The part that is kept least says whether there is any average, the one that is chained most if there is a leak."""
    found: dict[str, float] = {}
    if apart:
        found |= {
            "kept_apart": min(a.kept for a in apart.values()),
            "spread_growth": min(a.growth for a in apart.values()),
        }
    if chains:
        worst = max(chains.values(), key=lambda c: (-c.p, c.share))
        found |= {"chained": worst.share, "chained_p": min(1.0, worst.p * len(chains))}
    return found


def _mark_clients(
    every: Sequence[Upload], here: Sequence[int], marks: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The hashes of the clients' adapters among some, by part."""
    return {part: [mark[i] for i in here if every[i].client is not None] for part, mark in marks.items()}


def _count_moved(
    every: Sequence[Upload],
    here: Sequence[int],
    marks: Mapping[str, Sequence[str]],
    frozen: Sequence[str],
    left: Sequence[str],
) -> int:
    """How many of a round's adapters have moved what should stand still.

    That is what `frozen` names, against the first adapters of the run, and of the parts that are `left` alone by most in
    several rounds those that most of this round's adapters leave alone.
    """
    first = min(u.round for u in every)
    moved: set[int] = set()
    for part in marks:
        if part in frozen:
            usual = Counter(marks[part][i] for i, u in enumerate(every) if u.round == first).most_common(1)[0][0]
            moved |= {i for i in here if marks[part][i] != usual}
        elif part in left:
            clients = [i for i in here if every[i].client is not None]
            moved |= {clients[k] for k in find_moved(_mark_clients(every, here, marks), part)}
    return len(moved)


def describe_traces(found: Collection, traces: Traces) -> list[str]:
    """What was found of a collection, in lines: what there is, then for each part where clients start."""
    uploads = found.uploads
    ranks = sorted({u.rank(site) for u in uploads for site in u.sites})
    scales = sorted({u.scale(site) for u in uploads for site in u.sites})
    lora = f", rank {join_names(ranks)}, B A times {join_names(f'{s:g}' for s in scales)}" if ranks else ""
    lora += "" if uploads[0].config or not ranks else " (no adapter_config.json says what)"
    head = f"{len(uploads)} adapters of {len(found.names)} clients in {len(found.rounds)} rounds{lora}"
    head += f"; {len(found.servers) or 'none'} of the server"
    parts = [f"{part}: {_describe_part(part, traces)}" for part in traces.parts]
    same = [
        f"all clients of a round sent the same adapter to the bit, in {len(traces.same)} of {len(found.rounds)} rounds: one "
        "model in memory saved for all of them, or the server's saved in their places?"
    ]
    copies = [
        f"clients {join_names(own)} sent the same adapter to the bit, in {len(rounds)} of {len(found.rounds)} rounds: one "
        "copied or saved in the place of the other's, or neither trained?"
        for own, rounds in traces.copies.items()
    ]
    given = [
        f"client {name} sent what the server had before, to the bit, in {len(rounds)} of {len(found.rounds)} rounds: did it "
        "train, and was what it trained saved?"
        for name, rounds in traces.given.items()
    ]
    same = same if traces.same else []
    said = [*_describe_server(found, traces), *same, *copies, *given, *_name_odd(found), *found.notes]
    return [head, *_describe_broken(found), *parts, *said]


def _describe_broken(found: Collection) -> list[str]:
    """A line for every client, and one for the server, with the rounds in which its adapter is not finite, and a file."""
    every = [*dict.fromkeys(u.client for u in found.broken)]
    lines = []
    for client in sorted((name for name in every if name is not None), key=sort_name):
        own = [u for u in found.broken if u.client == client]
        lines.append(f"the adapter of client {client} {_name_files(found, own)}: left out of what is measured")
    own = [u for u in found.broken if u.client is None]
    if own:
        lines.append(f"the adapter of the server {_name_files(found, own)}: the run has failed there")
    return lines


def _name_files(found: Collection, own: Sequence[Upload]) -> str:
    first = own[0]
    place = f"{first.file.relative_to(found.folder)}, tensor {first.broken}"
    place = place if len(own) == 1 else f"first {place}"
    return f"is not finite in round {join_names((u.round for u in own), 12)} ({place})"


def _describe_server(found: Collection, traces: Traces) -> list[str]:
    """Lines on what the server made of the clients' adapters: by what weights, and who has all of the weight or none."""
    known = traces.averages
    judged = [t for t in found.rounds if t in found.servers and found.servers[t].broken is None]
    if not judged:
        return []
    few = (
        f"all clients sent less than half of what they got, in {len(traces.less)} of {len(judged)} rounds: updates in the "
        "place of adapters?"
    )
    less = [few] if traces.less else []
    if not known:
        return ["the server's adapter: no mean of the clients' by whatever weights, or nobody can tell", *less]
    often = f"in {len(known)} of {len(judged)} rounds"
    if len(known) > 1 and all(sends_updates(parts) for t, parts in known.items() if t != found.rounds[0]):
        return [
            f"what clients send is added to the server's adapter, {often}: it is updates and no adapters, and what is said "
            "of norms, cosines and B A holds for adapters only; save the clients' adapters"
        ]
    usual = _describe_averages([one for parts in known.values() for one in parts.values()])
    lines = [f"the server's adapter: {usual}, {often}", *less]
    lone = {name_lone_client(parts) for parts in known.values()}
    names = {t: [u.client for u in found.of(t)] for t in known}
    taken = {names[t][k] for t, parts in known.items() if (k := name_lone_client(parts)) is not None}
    if len(known) > 1 and len(taken) == 1 and None not in lone:
        only = f"the server took the adapter of client {taken.pop()} alone, {often}: chosen, or are others lost?"
        return [*lines, only]
    for name in found.names:
        own = [one.share(who.index(name)) for t, who in names.items() if name in who for one in known[t].values()]
        if len(own) > 1 and max(map(abs, own)) < NONE:
            lines.append(f"client {name} has no weight in the server's adapter, {often}: chosen not to count, or lost?")
    return lines


def _describe_averages(averages: Sequence[Average]) -> str:
    """What the server usually does, by the averages of its rounds and parts."""
    each = [w for one in averages for w in one.weights if not math.isnan(w)]
    low, high = (format(round(w, 4) + 0.0, ".3g") for w in (min(each), max(each)))
    span = low if low == high else f"{low} to {high}"
    if any(math.isnan(w) for one in averages for w in one.weights):
        return f"weights {span} of the clients that sent something else than they got"
    kept, step = (round(float(np.median([getattr(one, name) for one in averages])), 4) for name in ("kept", "step"))
    if abs(kept) < NONE and abs(step - 1) < NONE:
        return f"the mean of the clients', by weights {span}"
    said = f"{kept + 0.0:.3g} times the one before and {step:.3g} times the clients' mean, by weights {span}"
    if step < 0 or abs(kept + step - 1) >= NONE:  # which is an alarm
        return said
    return (
        f"{said} (a learning rate of the server or clipped updates? without these a sum, a wrong count of clients, or an "
        "update that is applied twice)"
    )


def _name_odd(found: Collection) -> list[str]:
    """A line for every client, or the server, whose adapter_config.json scales B A as it should not."""
    first, rounds = dict[tuple[str, str], Upload](), dict[tuple[str, str], set[int]]()
    for t in found.rounds:
        for upload, _, why in find_odd(found, t):
            key = ("the server" if upload.client is None else f"client {upload.client}", why)
            first.setdefault(key, upload)
            rounds.setdefault(key, set()).add(t)
    told = []
    for (who, why), u in first.items():
        stated = " and ".join(f"{name} {u.config[name]}" for name in ("lora_alpha", "r") if name in u.config)
        often = f"in {len(rounds[who, why])} of {len(found.rounds)} rounds"
        told.append(f"{who}: {why}, {often}; {u.file.with_name(CONFIG)} has {stated}")
    return told


def _describe_part(part: str, traces: Traces) -> str:
    if part in traces.still:
        return "the same in all adapters" + (", saved and sent for nothing" if part == FULL else "")
    apart, chain = traces.apart.get(part), traces.chains.get(part)
    if chain is not None and chain.share >= CHAINED and chain.p < 10**-FEW:
        return f"clients go on from the one before them ({100 * chain.share:.0f} % of the way)"
    if apart is None:
        return "where clients start is not known, as no two that had sent different ones came again"
    kept = f"{100 * apart.kept:.0f} % of what sets a client apart is there after the next round"
    if apart.kept < KEPT:
        return f"clients start together ({kept})"
    if apart.growth >= GROWTH:
        return f"every client goes on with its own ({kept}, and they drift apart)"
    return f"not known: clients go on with their own, or do the same again as their data differ ({kept})"
