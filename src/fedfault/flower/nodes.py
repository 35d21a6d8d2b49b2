"""Flower nodes in the place of clients: they join, get orders, and their answers are checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedfault.errors import UserError
from fedfault.flower.expected import list_upload_names
from fedfault.flower.local import RAISED
from fedfault.flower.payload import Refused, from_arrays, to_arrays
from fedfault.flower.site import check_facts
from fedfault.rounds.exchange import Cohort, select_rows
from fedfault.rounds.federation import CohortRequest, CohortResult, Federation
from fedfault.saying import Say, say_nothing
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Trained

PATIENCE = 3  # rounds in a row that may change nothing
COUNTS = ("steps", "tokens")
MEANS = ("loss", "grad-norm", "drift")


class Silence(str):
    """The reason why a node did not answer; it may answer later. The reason of a ClientApp that refuses is a plain `str`."""


class DataSize(NamedTuple):
    """The size of a client's training data, as `types.task.Task` counts it."""

    examples: int
    tokens: int
    read: int


@dataclass
class Nodes:
    """The nodes of a run, by client.

    facts: what every party must have in common, see `site.collect_facts`; experiment: the server's, as JSON; deadline:
    seconds that a round's updates are waited for; join_seconds: the same of nodes that join; min_clients: with fewer usable
    updates a round changes nothing; used: round -> the clients whose update was used in it.
    """

    grid: Grid
    run: str
    facts: Mapping[str, str]
    experiment: str
    deadline: float = 3600.0
    join_seconds: float = 600.0
    min_clients: int = 1
    max_update_norm: float | None = None
    say: Say = say_nothing
    used: dict[int, Collection[int]] = field(default_factory=dict)
    ids: dict[int, int] = field(default_factory=dict)  # client -> node
    sizes: dict[int, DataSize] = field(default_factory=dict)
    own: bool = False  # whether sites have data of their own
    refused: dict[int, str] = field(default_factory=dict)  # node -> why, for good
    silent: set[int] = field(default_factory=set)  # nodes that did not answer when they were asked to join
    idle: int = 0  # rounds in a row that changed nothing

    def admit_nodes(self, seconds: float | None = None, again: bool = True) -> list[str]:
        """Let nodes that are not known yet join; refuse some, tell them why, and return a sentence about each of those.

        seconds: how long their answers are waited for, instead of `join_seconds`; again: whether nodes that did not answer
        before are asked once more.

        Two nodes that both say they are the same client are both refused; one that says it is a client who is here already
        is refused as long as that one is.
        """
        listed = set(self.grid.get_node_ids())
        self.refused = {n: why for n, why in self.refused.items() if n in listed}  # who comes back may have been mended
        known = {n for n in self.ids.values() if n in listed} | set(self.refused)
        limit = self.join_seconds if seconds is None else seconds
        self.silent &= listed
        strangers = sorted(listed - known - (set() if again else self.silent))
        answers = self._ask({n: self._make_message({}) for n in strangers}, "query", "join", limit)
        self.silent -= answers.keys()
        claims: dict[int, list[int]] = {}
        events = []
        for node, answer in answers.items():
            if isinstance(answer, Silence):
                self.silent.add(node)
                events.append(f"node {node} does not join: {answer}")
                continue
            try:
                claims.setdefault(self._read_claim(answer), []).append(node)
            except Refused as e:
                events += self._refuse({node: str(e)})
        for client, nodes in sorted(claims.items()):
            here = self.ids.get(client)
            if len(nodes) > 1 or (here in listed and here not in nodes):
                others = [n for n in (here, *nodes) if n is not None]
                why = f"nodes {', '.join(map(str, others))} all say that they are client {client}; only one may"
                events += self._refuse(dict.fromkeys(nodes, why), for_good=len(nodes) > 1)
                continue
            events += self._admit(client, nodes[0], answers[nodes[0]])
        return events

    def _read_claim(self, answer: Message | str) -> int:
        """Read which client a node says it is. Raises `Refused` with the reason when it cannot take part."""
        if isinstance(answer, str):
            raise Refused(answer)
        said: Any = answer.content.config_records.get("config")
        if said is None or not all(isinstance(said.get(k), int) for k in ("client", *DataSize._fields)):
            raise Refused("its answer says not which client it is, or not how much data it has")
        check_facts(self.facts, {k: str(said[k]) for k in self.facts if k in said}, "the node")
        if min(said[k] for k in DataSize._fields) <= 0:
            raise Refused(f"client {said['client']} has no training data")
        return int(said["client"])

    def _admit(self, client: int, node: int, answer: Message | str) -> list[str]:
        assert isinstance(answer, Message)
        said: Any = answer.content["config"]
        size = DataSize(*(int(said[k]) for k in DataSize._fields))
        if (before := self.sizes.get(client, size)) != size:
            told = [f"{s.examples} examples ({s.tokens} tokens)" for s in (before, size)]
            why = f"client {client} joined with {told[0]} and now has {told[1]}"
            return self._refuse({node: f"{why}; weights are agreed at the start of a run: start a new one"})
        self.ids[client], self.sizes[client], self.own = node, size, self.own or bool(said.get("own"))
        return []

    def _refuse(self, why: Mapping[int, str], for_good: bool = True) -> list[str]:
        """Tell the nodes why they are refused, and return sentences for the record; `for_good` nodes are not asked again."""
        if for_good:
            self.refused |= why
        told = {node: self._make_message({"refused": reason}) for node, reason in why.items()}
        self._ask(told, "query", "refused", self.join_seconds)
        events = [f"node {node} is refused: {reason}" for node, reason in why.items()]
        for event in events:
            self.say(event)
        return events

    def __call__(self, fed: Federation, asked: CohortRequest) -> CohortResult:
        """Let the clients of a round train, and return what they made of it: this is `Federation.remote`."""
        listed = set(self.grid.get_node_ids())
        lost = {k for k in asked.cohort.clients if k in self.ids and self.ids[k] not in listed}
        events = self.admit_nodes(again=bool(lost))  # a node that was silent may be a client that is back
        self.used = {t: clients for t, clients in self.used.items() if t < asked.round}
        clients, listed = asked.cohort.clients, set(self.grid.get_node_ids())
        weighed = [k for k, weight in zip(clients, asked.weight.tolist(), strict=True) if weight]
        here = {k: self.ids[k] for k in weighed if self.ids.get(k) in listed}
        events += [f"client {k} {self._tell_absence(k, weighed)}" for k in clients if k not in here]
        orders = {here[k]: self._make_order(asked, i) for i, k in enumerate(clients) if k in here}
        answers = self._ask(orders, "train", str(asked.round), self.deadline)
        kinds, updates = list_upload_names(fed), {}
        for i, k in enumerate(clients):
            if k not in here:
                continue
            try:
                updates[i] = self._check_update(fed, asked, i, answers[here[k]], kinds)
            except Refused as e:
                events.append(f"client {k} (node {here[k]}) is left out: {e}")
        if len(updates) < self.min_clients:
            updates = self._skip_round(updates, events)
        else:
            self.idle, self.used[asked.round] = 0, [clients[i] for i in updates]
        away = frozenset(clients) - frozenset(here)
        return replace(_stack_updates(fed, asked, updates, tuple(events)), unreached=away)

    def _skip_round(self, updates: Mapping[int, Update], events: list[str]) -> dict[int, Update]:
        """Use none of the updates, of which there are too few. Raises `UserError` after too many such rounds in a row."""
        self.idle += 1
        events.append(f"{len(updates)} usable updates, fewer than flower.min_clients={self.min_clients}")
        if self.idle >= PATIENCE:
            raise UserError(
                "; ".join([*events, f"that makes {self.idle} such rounds in a row; the run can be resumed"])
            )
        return {}

    def _tell_absence(self, client: int, weighed: Collection[int]) -> str:
        if client in weighed or client not in self.ids:
            return "is not connected"
        return "takes no part: it had not joined when the run began, and weights are agreed then"

    def find_last_used(self, client: int) -> int:
        """Find the last round in which an update of this client was used; 0 for none."""
        return max((t for t, clients in self.used.items() if client in clients), default=0)

    def _make_order(self, asked: CohortRequest, row: int) -> RecordDict:
        """Make the order that a client gets for a round."""
        config = {
            "server-round": asked.round,
            "rank": int(asked.cohort.ranks[row]),
            "effort": asked.effort[row],
            "used": self.find_last_used(asked.cohort.clients[row]),
        }
        return self._make_message(
            config, to_arrays(select_rows(asked.received, row), asked.cohort.public_mask(None, row))
        )

    def _make_message(self, config: Mapping[str, Any], arrays: Any = None) -> RecordDict:
        record = ConfigRecord({"run": self.run, "experiment": self.experiment, **self.facts, **config})
        return RecordDict({"config": record} if arrays is None else {"config": record, "arrays": arrays})

    def _ask(
        self, contents: Mapping[int, RecordDict], kind: str, group: str, seconds: float
    ) -> dict[int, Message | str]:
        """Ask nodes; return their answers, or why there is none within so many seconds, in the order of the nodes' ids."""
        if not contents:
            return {}
        messages = [Message(c, n, kind, group_id=group, ttl=seconds + 60) for n, c in contents.items()]
        replies = list(self.grid.send_and_receive(messages, timeout=seconds))
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        came: dict[int, Message | str] = {}
        for reply in replies:
            if (node := nodes.get(reply.metadata.reply_to_message_id)) is not None:
                came[node] = _read_error(reply.error) if reply.has_error() else reply
        setting = "flower.deadline" if kind == "train" else "flower.join_seconds"
        late = Silence(f"no answer within {round(seconds, 1):g} seconds ({setting})")
        return {n: came.get(n, late) for n in sorted(contents)}

    def _check_update(
        self, fed: Federation, asked: CohortRequest, row: int, answer: Message | str, kinds: Mapping[str, bool]
    ) -> Update:
        if isinstance(answer, str):
            raise Refused(answer)
        found, client, cohort = answer.content, asked.cohort.clients[row], asked.cohort
        arrays, metrics = found.array_records.get("arrays"), found.metric_records.get("metrics")
        said: Any = found.config_records.get("reply")
        if arrays is None or metrics is None or said is None or len(found) != 3:
            kinds_of = {name: type(record).__name__ for name, record in found.items()}
            raise Refused(f"its update has the records {kinds_of}, not arrays, metrics and reply")
        if said.get("client") != client:
            raise Refused(f"its update says that it is of client {said.get('client')}")
        if said.get("round") != asked.round:
            raise Refused(f"its update is stale: of round {said.get('round')}, not {asked.round}")
        layout = fed.task.layout
        if said.get("layout") != layout.fingerprint:
            raise Refused(f"its update has the layout {said.get('layout')}, not {layout.fingerprint}")
        start = _select_start(asked, row)
        sent = from_arrays(arrays, start, cohort.public_mask(cohort.trained, row), kinds)
        full = {n: _fill_row(cohort, row, n, v, start.flat) if isinstance(v, Adapter) else v for n, v in sent.items()}
        moved = float((full["x"] - start.flat).norm())
        if self.max_update_norm is not None and moved > self.max_update_norm:
            raise Refused(
                f"its update has the norm {moved:.4g}, beyond flower.max_update_norm={self.max_update_norm:g}"
            )
        return Update(full, _read_measures(metrics, float(asked.weight[row])))


@dataclass(frozen=True)
class Update:
    """The part of a client's answer that is used: rows (P,) and scalars by name, and its measurements."""

    sent: Mapping[str, Tensor | float]
    measures: Mapping[str, float]


def _read_error(error: Error) -> str:
    text = error.reason or "no reason given"
    return text if error.code == RAISED else Silence(text)


def _read_measures(record: MetricRecord, weight: float) -> dict[str, float]:
    out: dict[str, float] = {}
    for name in ("num-examples", *COUNTS, *MEANS):
        value = record.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise Refused(f"its update says {name} {value!r}, which is no finite number from 0 on")
        out[name] = value
    if out["num-examples"] != weight:
        raise Refused(f"its update says that its weight is {out['num-examples']:g}; it joined with {weight:g}")
    return out


def _select_start(asked: CohortRequest, row: int) -> Adapter:
    """Select where a client starts, (P,), as far as the server knows."""
    x: Adapter = select_rows(asked.received, row)["x"]
    return x


def _fill_row(cohort: Cohort, row: int, name: str, value: Adapter, start: Tensor) -> Tensor:
    """Fill the row (P,) of an adapter up with what did not travel: what the server sent, or 0 for what is no model."""
    keep, came = cohort.public_mask(cohort.trained, row), value.flat.to(start.device)
    rest = start if name == "x" else torch.zeros_like(start)
    return came if keep is None else came.where(keep.to(start.device), rest)


def _stack_updates(
    fed: Federation, asked: CohortRequest, updates: Mapping[int, Update], events: tuple[str, ...]
) -> CohortResult:
    """Stack the used updates to a cohort in the order of the clients, so that the order of arrival cannot change a sum."""
    layout, rows = fed.task.layout, sorted(updates)
    weight = asked.weight[rows]
    up: dict[str, Any] = {"n": weight}
    for name in updates[rows[0]].sent if rows else ():
        values = [updates[i].sent[name] for i in rows]
        whole = torch.stack([torch.as_tensor(v) for v in values])
        up[name] = Adapter(layout, whole) if isinstance(values[0], Tensor) else whole.double()
    start = torch.stack([_select_start(asked, i).flat for i in rows]) if rows else torch.zeros(0, layout.size)
    taken = {n: torch.tensor([updates[i].measures[n] for i in rows], dtype=torch.float64) for n in (*COUNTS, *MEANS)}
    local = Trained(
        adapter=up.get("x", Adapter(layout, start)),
        weight=weight,
        num_steps=taken["steps"].long(),
        num_tokens=taken["tokens"].long(),
        loss=taken["loss"],
        grad_norm=taken["grad-norm"],
        drift=taken["drift"],
    )
    return CohortResult(asked.cohort.select(rows), up, {}, start, local, events)
