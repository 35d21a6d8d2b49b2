"""The privacy of a run as plain values: whose, by how much noise, and what it has cost by a round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedfault.privacy.accounting import Release, find_epsilon
from fedfault.seeds import rng


@dataclass(frozen=True)
class Budget:
    """What is protected, and how. All randomness that it rests on follows from `secret`, which nobody may know.

    times: (num_rounds + 1,) releases by the end of each round, from round 0 on, of whoever has the most of them
    adapt_to: share of the clients whose changes should be within the clip, which then follows it; None: the clip is fixed
    canaries: made-up units, each of which takes part with probability 1/2, so that what the models give away is measured
    """

    unit: Literal["client", "example"]
    release: Release  # of whoever is drawn most often
    clip: float
    delta: float
    secret: int = field(repr=False)
    times: tuple[int, ...]
    adapt_to: float | None = None
    canaries: int = 0

    def spend(self, round: int, delta: float | None = None) -> float:
        """Compute the epsilon that all releases up to a round cost together, at the budget's delta or another one."""
        return find_epsilon(self.release, self.times[round], self.delta if delta is None else delta)

    def draw_clients(self, round: int) -> list[int]:
        """Draw the clients of a round whose clients are protected: nobody may know who they are."""
        g, (_, m, n, sampling) = rng(self.secret, "clients", round), self.release
        drawn = np.flatnonzero(g.random(n) < m / n) if sampling == "poisson" else np.sort(g.permutation(n)[:m])
        found: list[int] = drawn.tolist()
        return found

    def draw_batches(self, batch_size: int, n: int, steps: int, g: np.random.Generator) -> np.ndarray:
        """Draw the batches of a client with n protected examples: (steps, most), -1 where a batch is smaller."""
        m = min(batch_size, n)
        if self.release.sampling == "fixed":
            return np.stack([g.permutation(n)[:m] for _ in range(steps)])
        drawn = [np.flatnonzero(g.random(n) < m / n) for _ in range(steps)]
        out = np.full((steps, max(1, *map(len, drawn))), -1)
        for batch, own in zip(out, drawn, strict=True):
            batch[: len(own)] = own
        return out
