"""One federation, several copies of its frozen backbone, each quantised in another way: what a client's hardware can hold.

Clients stay rows of one matrix, and adapters stay comparable: only what they are trained on differs.

    client   0     1     2     3       grad: rows 0 and 2 go through one model, 1 and 3 through one each
    copy     4bit  none  4bit  8bit
    server   none                      evaluate and all probes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedfault.tasks.base import BackboneTask, CohortTask, Pairs
from fedfault.types.algorithm import ExtraLoss, Room, See
from fedfault.types.delegating import DelegatingTask
from fedfault.types.task import Step


class MixedTask(DelegatingTask, BackboneTask):
    """Implements `BackboneTask`: every client trains on the copy of its precision, and all is scored on the server's.

    copies: precision -> the task of all clients on that copy; they have one layout, one set of data and one device.
    precisions: (N,) that of each client; server: that of the server, which may be no client's.
    """

    def __init__(self, copies: Mapping[str, CohortTask], precisions: Sequence[str], server: str) -> None:
        super().__init__(copies[server])
        self.copies, self.precisions = dict(copies), tuple(precisions)
        self._server = copies[server]
        self.room = self.room  # the least that a copy has, for all
        # A copy found free what those loaded after it have taken since; the last one found what is left
        free = [task.free for task in copies.values() if task.free is not None]
        self.free = self._server.free = min(free, default=None)

    @property
    def folded(self) -> Mapping[str, Tensor]:
        """See `BackboneTask`: of the server's copy."""
        return self._server.folded

    @property
    def room(self) -> Room | None:
        """See `types.task.Task`: what the copy with the least has."""
        rooms = [task.room for task in self.copies.values() if task.room is not None]
        return Room(*map(min, zip(*rooms, strict=True))) if rooms else None

    @room.setter
    def room(self, room: Room | None) -> None:
        for task in self.copies.values():
            task.room = room

    def estimate_pass(self, clients: int, batch_size: int) -> int:
        """See `BackboneTask`: by the server's copy."""
        return self._server.estimate_pass(clients, batch_size)

    def clients_per_pass(self, batch_size: int) -> int:
        """See `BackboneTask`: by the server's copy."""
        return self._server.clients_per_pass(batch_size)

    def score(self, pairs: Pairs) -> Tensor:
        """See `BackboneTask`: on the server's copy."""
        return self._server.score(pairs)

    def use_scorer(self, score: Callable[[Pairs], Tensor]) -> None:
        """See `BackboneTask`."""
        self._server.use_scorer(score)

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Task.grad`: clients of one precision get what they would get among themselves, to the bit."""
        step = step.on_host
        groups = self._group_clients(step.clients)
        if len(groups) == 1:
            return self.copies[next(iter(groups))].grad(params, step)
        losses, tokens, gradient = [], [], torch.empty_like(params)
        for precision, own in groups.items():
            real = step.real[own]
            width = int(real.any(0).sum())  # a column that only others use is not computed
            key = None if step.key is None else step.key[own]
            extra = _restrict_extra_loss(step.extra_loss, own, step.real.shape)
            some = Step(step.clients[own], step.rows[own, :width], real[:, :width], key, extra)
            loss, gradient[own], count = self.copies[precision].grad(params[own], some)
            losses.append(loss)
            tokens.append(count)
        back = torch.cat(list(groups.values())).argsort()
        return torch.cat(losses)[back], gradient, torch.cat(tokens)[back]

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """See `types.task.Task.held_out`: each client looks at its own data through its own copy."""
        out = torch.empty(len(params), dtype=torch.float64)
        for precision, own in self._group_clients(clients).items():
            out[own] = self.copies[precision].held_out(params[own], clients[own])
        return out

    def select_copy(self, client: int) -> CohortTask:
        """See `BackboneTask`."""
        return self.copies[self.precisions[client]]

    def _group_clients(self, clients: Tensor) -> dict[str, Tensor]:
        """Group the rows of a pass by precision: precision -> rows, in their order."""
        each = [self.precisions[k] for k in clients.tolist()]
        return {p: torch.tensor([row for row, q in enumerate(each) if q == p]) for p in dict.fromkeys(each)}

    def take_events(self) -> list[str]:
        """See `types.task.Task.take_events`: of all copies."""
        return [event for task in self.copies.values() for event in task.take_events()]

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `types.task.Task.fold`: every copy has its own rounded weights, and the same is added to all."""
        for task in self.copies.values():
            task.fold(base)

    def checksums(self) -> Mapping[str, int]:
        """See `types.task.Task.checksums`: of all copies."""
        return {f"{p}/{name}": sum_ for p, task in self.copies.items() for name, sum_ in task.checksums().items()}


def _restrict_extra_loss(extra_loss: ExtraLoss | None, own: Tensor, shape: torch.Size) -> ExtraLoss | None:
    """Restrict the extra loss of a pass whose batches are `shape` (K, B) to its rows `own`."""
    if extra_loss is None:
        return None

    def spread(z: Tensor) -> Tensor:
        """(k, b, d) of the rows `own` -> (K, B, d), zero elsewhere as for padding."""
        full = z.new_zeros(*shape, z.shape[-1])
        full[own, : z.shape[1]] = z
        return full

    def restricted(z: Tensor, see: See) -> Tensor:
        def look(params: Tensor, at: Tensor | None = None) -> Tensor:
            every = params if at is None else params.new_zeros(shape[0], params.shape[1]).index_copy(0, at, params)
            found = spread(see(every[own]))
            return found if at is None else found[at]

        return extra_loss(spread(z), look)[own]

    return restricted
