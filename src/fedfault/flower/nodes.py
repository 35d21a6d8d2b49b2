"""Nodes in the place of clients: who joins, what they are asked, what of their answers can be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedfault.engine import Done, Opened
from fedfault.errors import UserError
from fedfault.flower.expected import sent_by
from fedfault.flower.local import RAISED
from fedfault.flower.payload import Refused, from_arrays, to_arrays
from fedfault.flower.site import check_facts
from fedfault.runs import layout_hash
from fedfault.types import Adapter, Trained

PATIENCE = 3  # rounds in a row that may change nothing
COUNTS = ("steps", "tokens")
MEANS = ("loss", "grad-norm", "drift")


class Silence(str):
    """Why there is no answer of a node: it may come another time. What a ClientApp itself refuses is a plain `str`."""


@dataclass
class Nodes:
    """The nodes of a run, by client.

    about: what every party must have in common, see `site.facts`; experiment: the server's, as JSON; deadline: seconds that
    answers are waited for; min_clients: with fewer usable updates a round changes nothing; used: client -> the last of its
    rounds whose update was used.
    """

    grid: Grid
    run: str
    about: Mapping[str, str]
    experiment: str
    deadline: float = 3600.0
    min_clients: int = 1
    max_update_norm: float | None = None
    say: Callable[[str], None] = lambda text: None
    used: dict[int, int] = field(default_factory=dict)
    ids: dict[int, int] = field(default_factory=dict)  # client -> node
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # client -> training examples and their tokens
    own: bool = False  # whether sites have data of their own
    refused: dict[int, str] = field(default_factory=dict)  # node -> why, for good
    idle: int = 0  # rounds in a row that changed nothing

    def greet(self) -> list[str]:
        """Let nodes that are not known yet join; a sentence about each that is refused, and each is told so itself.

        Two nodes that both say they are the same client are both refused; one that says it is a client who is here already
        is refused as long as that one is.
        """
        listed = set(self.grid.get_node_ids())
        self.refused = {n: why for n, why in self.refused.items() if n in listed}  # who comes back may have been mended
        known = {n for n in self.ids.values() if n in listed} | set(self.refused)
        answers = self._ask({n: self._message({}) for n in sorted(listed - known)}, "query", "join")
        claims: dict[int, list[int]] = {}
        events = []
        for node, answer in answers.items():
            if isinstance(answer, Silence):
                events.append(f"node {node} does not join: {answer}")
                continue
            try:
                claims.setdefault(self._claim(answer), []).append(node)
            except Refused as e:
                events += self._refuse({node: str(e)})
        for client, nodes in sorted(claims.items()):
            here = self.ids.get(client)
            if len(nodes) > 1 or (here in listed and here not in nodes):
                others = [n for n in (here, *nodes) if n is not None]
                why = f"nodes {', '.join(map(str, others))} all say that they are client {client}; only one may"
                events += self._refuse(dict.fromkeys(nodes, why), for_good=len(nodes) > 1)
                continue
            events += self._enter(client, nodes[0], answers[nodes[0]])
        return events

    def _claim(self, answer: Message | str) -> int:
        """Which client a node says it is. `Refused` with the reason when it cannot take part."""
        if isinstance(answer, str):
            raise Refused(answer)
        said: Any = answer.content.config_records.get("config")
        if said is None or not all(isinstance(said.get(k), int) for k in ("client", "examples", "tokens")):
            raise Refused("its answer says not which client it is, or not how much data it has")
        check_facts(self.about, {k: str(said[k]) for k in self.about if k in said}, "the node")
        if said["examples"] <= 0 or said["tokens"] <= 0:
            raise Refused(f"client {said['client']} has no training data")
        return int(said["client"])

    def _enter(self, client: int, node: int, answer: Message | str) -> list[str]:
        assert isinstance(answer, Message)
        said: Any = answer.content["config"]
        size = (int(said["examples"]), int(said["tokens"]))
        if (before := self.sizes.get(client, size)) != size:
            why = f"client {client} joined with {before[0]} examples ({before[1]} tokens) and now has {size[0]} ({size[1]})"
            return self._refuse({node: f"{why}; weights are agreed at the start of a run: start a new one"})
        self.ids[client], self.sizes[client], self.own = node, size, self.own or bool(said.get("own"))
        return []

    def _refuse(self, why: Mapping[int, str], for_good: bool = True) -> list[str]:
        """Tell the nodes; sentences for the record. Once in a run, if it is for good."""
        if for_good:
            self.refused |= why
        self._ask({node: self._message({"refused": reason}) for node, reason in why.items()}, "query", "refused")
        events = [f"node {node} is refused: {reason}" for node, reason in why.items()]
        for event in events:
            self.say(event)
        return events

    def __call__(self, r: Opened) -> Done:
        """The clients' part of a round: `engine.Federation.remote`."""
        events = self.greet()
        here = {k: self.ids[k] for k in r.cohort.clients if k in self.ids}
        listed = set(self.grid.get_node_ids())
        events += [f"client {k} is not connected" for k in r.cohort.clients if here.get(k) not in listed]
        asked = {here[k]: self._order(r, i) for i, k in enumerate(r.cohort.clients) if here.get(k) in listed}
        answers = self._ask(asked, "train", str(r.round))
        kinds, updates = sent_by(r.fed), {}
        for i, k in enumerate(r.cohort.clients):
            if here.get(k) not in answers:
                continue
            try:
                updates[k] = self._update(r, k, i, answers[here[k]], kinds)
            except Refused as e:
                events.append(f"client {k} (node {here[k]}) is left out: {e}")
        if len(updates) < self.min_clients:
            return self._nothing(r, len(updates), events)
        self.idle = 0
        self.used |= dict.fromkeys(updates, r.round)
        return _together(r, updates, tuple(events))

    def _nothing(self, r: Opened, usable: int, events: list[str]) -> Done:
        self.idle += 1
        events.append(
            f"{usable} usable updates, fewer than flower.min_clients={self.min_clients}: the round changes nothing"
        )
        if self.idle >= PATIENCE:
            raise UserError(
                "; ".join([*events, f"that makes {self.idle} such rounds in a row; the run can be resumed"])
            )
        return _together(r, {}, tuple(events))

    def _order(self, r: Opened, row: int) -> RecordDict:
        """What a client is sent."""
        used = self.used.get(r.cohort.clients[row], 0)
        config = {"server-round": r.round, "rank": int(r.cohort.ranks[row]), "used": used}
        return self._message(config, to_arrays(r.down, r.cohort.public(None, row)))

    def _message(self, config: Mapping[str, Any], arrays: Any = None) -> RecordDict:
        record = ConfigRecord({"run": self.run, "experiment": self.experiment, **self.about, **config})
        return RecordDict({"config": record} if arrays is None else {"config": record, "arrays": arrays})

    def _ask(self, contents: Mapping[int, RecordDict], kind: str, group: str) -> dict[int, Message | str]:
        """The nodes' answers, or why there is none, in the order of the nodes' ids."""
        if not contents:
            return {}
        messages = [Message(c, n, kind, group_id=group, ttl=self.deadline + 60) for n, c in contents.items()]
        replies = list(self.grid.send_and_receive(messages, timeout=self.deadline))
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        came: dict[int, Message | str] = {}
        for reply in replies:
            if (node := nodes.get(reply.metadata.reply_to_message_id)) is not None:
                came[node] = _reason(reply.error) if reply.has_error() else reply
        late = Silence(f"no answer within flower.deadline={self.deadline:g} seconds")
        return {n: came.get(n, late) for n in sorted(contents)}

    def _update(self, r: Opened, client: int, row: int, answer: Message | str, kinds: Mapping[str, bool]) -> Update:
        if isinstance(answer, str):
            raise Refused(answer)
        found = answer.content
        arrays, metrics = found.array_records.get("arrays"), found.metric_records.get("metrics")
        said: Any = found.config_records.get("reply")
        if arrays is None or metrics is None or said is None or len(found) != 3:
            kinds_of = {name: type(record).__name__ for name, record in found.items()}
            raise Refused(f"its update has the records {kinds_of}, not arrays, metrics and reply")
        if said.get("client") != client:
            raise Refused(f"its update says that it is of client {said.get('client')}")
        if said.get("round") != r.round:
            raise Refused(f"its update is stale: of round {said.get('round')}, not {r.round}")
        layout = r.fed.task.layout
        if said.get("layout") != layout_hash(layout):
            raise Refused(f"its update has the layout {said.get('layout')}, not {layout_hash(layout)}")
        sent = from_arrays(
            found.array_records["arrays"], r.state.adapter, r.cohort.public(r.cohort.trained, row), kinds
        )
        start = _start(r, row)
        full = {n: _filled(r, row, n, v, start) if isinstance(v, Adapter) else v for n, v in sent.items()}
        moved = float((full["x"] - start).norm())
        if self.max_update_norm is not None and moved > self.max_update_norm:
            raise Refused(
                f"its update has the norm {moved:.4g}, beyond flower.max_update_norm={self.max_update_norm:g}"
            )
        return Update(full, _measures(metrics, r.state.weights[client]))


@dataclass(frozen=True)
class Update:
    """What of a client's answer is used: rows (P,) and scalars by name, and what was measured."""

    sent: Mapping[str, Tensor | float]
    measures: Mapping[str, float]


def _reason(error: Error) -> str:
    text = error.reason or "no reason given"
    return text if error.code == RAISED else Silence(text)


def _measures(record: MetricRecord, weight: float) -> dict[str, float]:
    out: dict[str, float] = {}
    for name in ("num-examples", *COUNTS, *MEANS):
        value = record.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise Refused(f"its update says {name} {value!r}, which is no finite number from 0 on")
        out[name] = value
    if out["num-examples"] != weight:
        raise Refused(f"its update says that its weight is {out['num-examples']:g}; it joined with {weight:g}")
    return out


def _start(r: Opened, row: int) -> Tensor:
    flat = r.received["x"].flat
    return flat if flat.ndim == 1 else flat[row]  # type: ignore[no-any-return]


def _filled(r: Opened, row: int, name: str, value: Adapter, start: Tensor) -> Tensor:
    """The row (P,) of an adapter: what does not travel is what the server sent, or 0 for what is no model."""
    keep = r.cohort.public(r.cohort.trained, row)
    came = value.flat.to(start.device)
    return (
        came if keep is None else came.where(keep.to(start.device), start if name == "x" else torch.zeros_like(start))
    )


def _together(r: Opened, updates: Mapping[int, Update], events: tuple[str, ...]) -> Done:
    """The clients whose updates are used as a cohort, sorted by client: the order of arrival cannot change a sum."""
    layout, clients = r.fed.task.layout, sorted(updates)
    rows = [r.cohort.clients.index(k) for k in clients]
    weight = torch.tensor([r.state.weights[k] for k in clients], dtype=torch.float64)
    up: dict[str, Any] = {"n": weight}
    for name in updates[clients[0]].sent if clients else ():
        values = [updates[k].sent[name] for k in clients]
        whole = torch.stack([torch.as_tensor(v) for v in values])
        up[name] = Adapter(layout, whole) if isinstance(values[0], Tensor) else whole.double()
    start = torch.stack([_start(r, i) for i in rows]) if rows else r.state.adapter.flat[None][:0]
    taken = {n: torch.tensor([updates[k].measures[n] for k in clients], dtype=torch.float64) for n in (*COUNTS, *MEANS)}
    local = Trained(
        adapter=up.get("x", Adapter(layout, start)),
        weight=weight,
        num_steps=taken["steps"].long(),
        num_tokens=taken["tokens"].long(),
        loss=taken["loss"],
        grad_norm=taken["grad-norm"],
        drift=taken["drift"],
    )
    return Done(r.cohort.only(rows), up, {}, start, local, events)
