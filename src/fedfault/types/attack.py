"""What hostile clients do: to the texts that they train on, and to what they send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedfault.types.corpus import Document

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Generator as TorchGenerator
    from torch import Tensor


class Changes(NamedTuple):
    """What an attacker who sees everything knows of a round before anything is sent: changes y - x, in float64."""

    honest: Tensor  # (H, P) of the clients that are not hostile; H may be 0
    own: Tensor  # (m, P) of the hostile ones, trained as everybody trains
    generator: TorchGenerator  # of the round and the attack


# (documents of one client, all topics, generator) -> as many documents
Poison = Callable[[Sequence[Document], Sequence[str], "Generator"], Sequence[Document]]
Forge = Callable[[Changes], "Tensor"]  # -> (m, P), the changes that are sent in the place of `own`


@dataclass(frozen=True)
class Attack:
    """What the hostile clients of a run do. They train as everybody else, on `poison`ed texts, and send what they `forge`.

    poison: their texts for training, where these are others than they were dealt; what is held out stays
    forge: what they send, where it is not what they trained
    trigger: (documents, topics) -> those whose topic the attack wants to be another one, with its trigger and that topic:
        how often a model falls for it is the accuracy on them
    ask: of a language model: (held-out text) -> a prompt with its trigger, and the words that it wants after it: how often a
        model falls for it is how often it says them
    labels: whether it is about classes
    """

    poison: Poison | None = None
    forge: Forge | None = None
    trigger: Callable[[Sequence[Document], Sequence[str]], Sequence[Document]] | None = None
    ask: Callable[[str], tuple[str, str]] | None = None
    labels: bool = False


@dataclass(frozen=True)
class Hostile:
    """The clients of a run that make an attack, from a round on."""

    name: str
    attack: Attack
    clients: frozenset[int]
    from_round: int = 1

    def find_rows(self, clients: Sequence[int], round: int) -> list[int]:
        """The places of its clients in a cohort; none before it begins."""
        return [i for i, k in enumerate(clients) if k in self.clients and round >= self.from_round]
