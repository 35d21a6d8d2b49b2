"""What passes every question on to a task: the base of tasks that differ from another one in a few answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedfault.records import Score
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import Room
from fedfault.types.task import Continuations, Groups, SecretLosses, Served, States, Step, Task, TextLosses, Trainable


class DelegatingTrainable(Trainable):
    """Passes on to `self.inner` what local training asks; a subclass overrides what it answers itself."""

    def __init__(self, inner: Trainable) -> None:
        self.inner = inner

    @property
    def layout(self) -> Layout:
        """See `Trainable`."""
        return self.inner.layout

    def examples(self, client: int) -> int:
        """See `Trainable`."""
        return self.inner.examples(client)

    def tokens(self, client: int) -> int:
        """See `Trainable`."""
        return self.inner.tokens(client)

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `Trainable`."""
        return self.inner.grad(params, step)

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """See `Trainable`."""
        return self.inner.plan_groups(steps)


class DelegatingTask(DelegatingTrainable, Task):
    """Passes on what else a task is asked, too."""

    inner: Task

    def __init__(self, inner: Task) -> None:
        super().__init__(inner)

    @property
    def room(self) -> Room | None:
        """See `Task`."""
        return self.inner.room

    @room.setter
    def room(self, room: Room | None) -> None:
        self.inner.room = room

    def read(self, client: int) -> int:
        """See `Task`."""
        return self.inner.read(client)

    def init(self, seed: int) -> Adapter:
        """See `Task`."""
        return self.inner.init(seed)

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """See `Task`."""
        return self.inner.evaluate(adapter, personal)

    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        """See `Task`."""
        return self.inner.evaluate_each(models)

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        """See `Task`."""
        return self.inner.held_out(params, clients)

    def text_losses(
        self, models: Sequence[Tensor] | None, clients: Sequence[int], most: int
    ) -> Sequence[TextLosses] | None:
        """See `Task`."""
        return self.inner.text_losses(models, clients, most)

    def take_events(self) -> list[str]:
        """See `Task`."""
        return self.inner.take_events()

    def secret_losses(
        self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]
    ) -> Sequence[SecretLosses] | None:
        """See `Task`."""
        return self.inner.secret_losses(models, clients)

    def states(self, params: Tensor | None, blocks: int) -> States | None:
        """See `Task`."""
        return self.inner.states(params, blocks)

    def attention(self, params: Tensor | None, blocks: int) -> list[Tensor] | None:
        """See `Task`."""
        return self.inner.attention(params, blocks)

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """See `Task`."""
        return self.inner.continuations(flat, blocks)

    def fold(self, base: Mapping[str, Tensor]) -> None:
        """See `Task`."""
        self.inner.fold(base)

    def checksums(self) -> Mapping[str, int]:
        """See `Task`."""
        return self.inner.checksums()
