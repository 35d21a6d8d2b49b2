"""A federation over Flower in this process: nodes, the server's side, and what may go wrong on the way."""

from __future__ import annotations

from dataclasses import replace

from fedfault.engine import Federation, begin, rounds
from fedfault.flower.client import client_app
from fedfault.flower.local import LocalGrid
from fedfault.flower.nodes import Nodes
from fedfault.flower.payload import Refused
from fedfault.flower.server import Reported, join
from fedfault.flower.site import Site
from fedfault.runs import layout_hash

FACTS = {"fedfault": "1.2.3", "torch": "2.6"}


def facts_of(fed: Federation) -> dict[str, str]:
    return {**FACTS, "layout": layout_hash(fed.task.layout)}


def grid_of(fed: Federation, clients=None, facts=None, memory=None) -> LocalGrid:
    """A node for each client; `facts` of some of them, by client, differ."""

    def find(experiment, node_config):
        k = node_config["partition-id"]
        if k == "broken":
            raise RuntimeError("a secret")
        if k == "empty":
            raise Refused("client 1 has no training data")
        return Site(k, fed, {**facts_of(fed), **(facts or {}).get(k, {})}, memory)

    clients = range(fed.total_clients) if clients is None else clients
    return LocalGrid(client_app(find), [{"partition-id": k} for k in clients])


def over(fed: Federation, grid: LocalGrid, **options) -> tuple[Federation, Nodes]:
    """The federation with the grid's nodes in the place of its clients."""
    nodes = Nodes(grid, "run", facts_of(fed), "{}", **options)
    join(nodes, fed.total_clients, 0)
    return replace(fed, task=Reported(fed.task, nodes), remote=nodes), nodes


def last(fed: Federation, state=None):
    """The state and all records of a run to its end."""
    found = list(rounds(fed, state or begin(fed)))
    return found[-1][0], [record for _, record in found]
