"""The side of a client: its model, its data, and the facts that it states of them when it joins."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fedfault
from fedfault.config.loading import load, read_experiment
from fedfault.config.schema import Experiment
from fedfault.config.sections.base import Component
from fedfault.config.sections.hardware import Clock, Deadline
from fedfault.errors import UserError
from fedfault.flower.payload import Refused
from fedfault.plugins import split_pin
from fedfault.registry import list_plugins
from fedfault.rounds.federation import Federation
from fedfault.setup.combinations import check_parts
from fedfault.setup.experiment import Prepared, prepare
from fedfault.types.delegating import DelegatingTask
from fedfault.types.task import Step, Task

VERSIONS = ("torch", "transformers", "tokenizers")  # that numbers depend on: the same minor version everywhere


@dataclass(frozen=True)
class ClientSite:
    """One client, ready to train.

    facts: what the server and all sites must have in common; memory: the folder for what it keeps; own: its data is its own.
    """

    client: int
    federation: Federation
    facts: Mapping[str, str]
    memory: Path | None = None
    own: bool = False


def collect_facts(p: Prepared) -> dict[str, str]:
    """Collect what two parties must have in common to exchange adapters."""
    versions = {name: ".".join(metadata.version(name).split(".")[:2]) for name in VERSIONS}
    layout = p.task.layout.fingerprint
    return {"fedfault": fedfault.__version__, **versions, "model": p.backbone.fingerprint, "layout": layout}


def check_facts(mine: Mapping[str, str], theirs: Mapping[str, str], who: str) -> None:
    """Raise `Refused` with every difference between the facts here and those of `who`."""
    wrong = [f"{k} {theirs.get(k, 'missing')} at {who}, {v} here" for k, v in mine.items() if theirs.get(k) != v]
    if wrong:
        raise Refused("; ".join(wrong) + ": the same versions, model and trainable sites are needed everywhere")


def find_site(experiment: str, node_config: Mapping[str, Any]) -> ClientSite:
    """Find the site of a node: client `partition-id` of the server's experiment (JSON).

    With `site`, the path of a configuration of its own, it has its own data, model file and device, and only `training`,
    `federation`, the seed and what of the model is trained are the server's. Without, it is a simulated client, which
    takes its part of the data of the server's experiment.
    """
    client, own = node_config.get("partition-id"), node_config.get("site")
    if not isinstance(client, int):
        raise UserError(
            "the node's configuration has no partition-id; start it with --node-config 'partition-id=0 ...'"
        )
    exp = read_experiment(experiment) if own is None else _read_at_site(experiment, str(own))
    if not 0 <= client < exp.federation.total_clients:
        raise Refused(
            f"partition-id {client} of the node is not a client of federation.total_clients={exp.federation.total_clients}"
        )
    return _make_simulated_site(experiment, client) if own is None else _make_real_site(experiment, client, str(own))


@functools.lru_cache(maxsize=1)
def _prepare_simulated(experiment: str) -> Prepared:
    """Prepare a simulated federation once; a process simulates many of its clients."""
    return prepare(read_experiment(experiment))


def _make_simulated_site(experiment: str, client: int) -> ClientSite:
    p = _prepare_simulated(experiment)
    return ClientSite(client, p.federation, collect_facts(p))


@functools.lru_cache(maxsize=1)
def _make_real_site(experiment: str, client: int, path: str) -> ClientSite:
    exp = _read_at_site(experiment, path)
    p = prepare_site(exp, load(Path(path)).experiment)
    if not p.task.examples(0):
        raise Refused(f"client {client} has no training data")
    task = NumberedTask(p.task, client)
    fed = replace(p.federation, task=task, total_clients=exp.federation.total_clients)
    return ClientSite(client, fed, collect_facts(p), Path(path).parent / "memory", own=True)


@functools.lru_cache(maxsize=1)
def _read_at_site(experiment: str, path: str) -> Experiment:
    """Read the server's experiment where the site's own configuration, at `path`, has named the same plug-ins.

    No code comes from the server: raises `Refused` for a plug-in that the site does not have, or has another source of.
    """
    load(Path(path))
    here = {plugin.name: plugin.fingerprint for plugin in list_plugins()}
    for source, wanted in map(split_pin, json.loads(experiment)["plugins"]):
        name = Path(source).name
        if here.get(name) != wanted:
            there = f"its plug-in of that name has the hash {here[name]}" if name in here else "it names none like it"
            raise Refused(
                f"the server's run uses the plug-in {name} with the hash {wanted}, and the site's {path} has to name the "
                f"same file in `plugins`: {there}"
            )
    return Experiment.model_validate_json(experiment)


def combine_experiments(server: Experiment, site: Experiment) -> Experiment:
    """Combine the server's experiment with the site's data, model file and device; only the site's data give scores."""
    shared = {"task_type": server.data.task_type, "label_names": server.data.label_names}
    data = site.data.model_copy(update=shared)
    model = server.model.model_copy(update={"name": site.model.name})
    evaluation = server.evaluation.model_copy(update={"general": "none"})
    return server.model_copy(update={"data": data, "model": model, "device": site.device, "evaluation": evaluation})


def prepare_site(server: Experiment, site: Experiment) -> Prepared:
    """Prepare a site's part of the server's experiment: one client, who holds all of the site's data.

    How many clients an aggregation or a selection needs is checked of the server's experiment, which has them all.
    """
    check_parts(server)
    return prepare(pool_clients(combine_experiments(server, site)), checked=True)


def pool_clients(exp: Experiment) -> Experiment:
    """Return the experiment with one client that holds all the data."""
    whole = Component(name="iid")
    only = {
        "total_clients": 1,
        "clients_per_round": None,
        "participation_rate": None,
        "scheduler": Component(name="fixed"),
    }
    return exp.model_copy(
        update={
            "data": exp.data.model_copy(update={"partition": whole}),
            "federation": exp.federation.model_copy(update=only),
            "tiers": [],
            "deadline": Deadline(),
            "clock": Clock(),
        }
    )


class NumberedTask(DelegatingTask):
    """The task of a lone client under the number that it has in the federation, which its random streams depend on."""

    def __init__(self, inner: Task, client: int) -> None:
        super().__init__(inner)
        self._client = client

    def examples(self, client: int) -> int:
        """See `Task`."""
        return self.inner.examples(client - self._client)

    def tokens(self, client: int) -> int:
        """See `Task`."""
        return self.inner.tokens(client - self._client)

    def read(self, client: int) -> int:
        """See `Task`."""
        return self.inner.read(client - self._client)

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `Task`."""
        alone = replace(step, clients=torch.zeros_like(step.clients))
        host = step.host and replace(step.host, clients=torch.zeros_like(step.host.clients))
        return self.inner.grad(params, replace(alone, host=host))
