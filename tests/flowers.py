"""A federation over Flower in this process: nodes, the server's side, and what may go wrong on the way."""

from __future__ import annotations

from dataclasses import replace

import torch
from flwr.app import RecordDict

from fedfault.flower.client import make_client_app
from fedfault.flower.local import LocalGrid
from fedfault.flower.memory import Memory
from fedfault.flower.nodes import Nodes
from fedfault.flower.payload import Refused
from fedfault.flower.server import ReportedTask, await_clients
from fedfault.flower.site import ClientSite
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation

RUNS = {  # the four runs that agree wherever their clients are: settings
    "fedavg": ["federation.algorithm=fedavg"],
    "fedprox": ["federation.algorithm=fedprox"],
    "scaffold": ["federation.algorithm=scaffold"],
    "ranks": [
        "federation.scheduler=exact",
        "federation.scheduler.r_bar=2",
        "federation.aggregation=blockwise",
        "model.lora.r_max=4",
        "tiers={fast: {count: 1}, slow: {count: 2, compute_factor: 0.5}}",
        "federation.participation_rate=1.0",
    ],
}
FACTS = {"fedfault": "1.2.3", "torch": "2.6"}


def facts_of(fed: Federation) -> dict[str, str]:
    return {**FACTS, "layout": fed.task.layout.fingerprint}


def grid_of(fed: Federation, clients=None, facts=None, memory=None, mods=()) -> LocalGrid:
    """A node for each client; `facts` of some of them, by client, differ."""

    def find(experiment, node_config):
        k = node_config["partition-id"]
        if k == "broken":
            raise RuntimeError("a secret")
        if k == "empty":
            raise Refused("client 1 has no training data")
        return ClientSite(k, fed, {**facts_of(fed), **(facts or {}).get(k, {})}, memory)

    clients = range(fed.total_clients) if clients is None else clients
    return LocalGrid(make_client_app(find, mods), [{"partition-id": k} for k in clients])


def over(fed: Federation, grid: LocalGrid, **options) -> tuple[Federation, Nodes]:
    """The federation with the grid's nodes in the place of its clients."""
    nodes = Nodes(grid, "run", facts_of(fed), "{}", **{"join_seconds": 0, **options})
    await_clients(nodes, fed.total_clients)
    return replace(fed, task=ReportedTask(fed.task, nodes), remote=nodes, memory_elsewhere=True), nodes


def last(fed: Federation, state=None):
    """The state and all records of a run to its end."""
    found = list(rounds(fed, state or begin(fed)))
    return found[-1][0], [record for _, record in found]


class Bad(LocalGrid):
    """Updates of some nodes are changed on their way: (node, round) -> what is done to the content, None for silence."""

    bad: dict

    @classmethod
    def of(cls, grid: LocalGrid, bad: dict) -> Bad:
        made = cls(grid.app, [c.node_config for c in grid.contexts.values()])
        made.bad = bad
        return made

    def pull_messages(self, message_ids):
        replies = []
        for reply in super().pull_messages(message_ids):
            metadata = reply.metadata
            if metadata.message_type == "train" and (metadata.src_node_id, metadata.group_id) in self.bad:
                change = self.bad[metadata.src_node_id, metadata.group_id]
                if change is None:
                    continue
                change(reply.content)
            replies.append(reply)
        return replies


def restarted(grid: LocalGrid, node: int, new: int | None = None) -> None:
    """The node again with nothing in memory, as the node `new` where nodes have no keys of their own."""
    context = grid.contexts.pop(node)
    grid.contexts[new or node] = replace(context, node_id=new or node, state=RecordDict())


def same(one, other) -> bool:
    """To the tolerance that another order of sums deserves."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def kept_c(grid, nodes, x0):
    """The control variates at the nodes, of the last round of each that the server has used."""
    found = {k: Memory(grid.contexts[nodes.ids[k]], "run", x0, None, k) for k in nodes.ids}
    zero = {"c": replace(x0, flat=torch.zeros_like(x0.flat))}
    return torch.stack([found[k].find_version(nodes.find_last_used(k), zero)["c"].flat for k in sorted(found)])
