"""The names of what crosses the network in a federation, which a client that does not train finds out."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfault.rounds.exchange import full_rank
from fedfault.rounds.federation import Federation
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import PLAIN, ExtraTerms, Message, State, Trained


def make_first_broadcast(fed: Federation) -> Message:
    """Make the message that the clients of this federation get in the first round."""
    x = fed.task.init(fed.seed)
    return fed.algorithm.broadcast(State(x, memory=fed.algorithm.init(x), weights=(1.0,), ranks=(full_rank(x.layout),)))


def list_upload_names(fed: Federation) -> dict[str, bool]:
    """List the names that a client of this federation sends beside its weight, and of each whether it is an adapter."""
    x = fed.task.init(fed.seed)
    memory = {n: Adapter(a.layout, a.flat[None]) for n, a in fed.algorithm.init_client(x).items()}
    up, _ = fed.algorithm.client(make_first_broadcast(fed), memory, IdleTrain())
    return {name: isinstance(value, Adapter) for name, value in up.items() if name != "n"}


class IdleTrain:
    """A `Train` that leaves the adapter as it is, to see which names an algorithm sends."""

    weight, lr = torch.ones(1, dtype=torch.float64), 1.0

    def __call__(self, start: Adapter, extra: ExtraTerms = PLAIN, *, mean_grad: bool = False) -> Trained:
        """See `types.algorithm.Train`."""
        one, row = torch.ones(1), start.flat.reshape(-1, start.flat.shape[-1])[:1]
        zero = torch.zeros_like(row) if mean_grad else None
        return Trained(Adapter(start.layout, row.clone()), self.weight, one.long(), one.long(), one, one, zero, one)

    def gradient(self, at: Adapter) -> Adapter:
        """See `types.algorithm.Train`."""
        return Adapter(at.layout, torch.zeros(1, at.layout.size))

    def loss(self, at: Adapter) -> Tensor:
        """See `types.algorithm.Train`."""
        return torch.ones(1)
