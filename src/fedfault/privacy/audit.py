"""An audit in one run (Steinke, Nasr & Jagielski, NeurIPS 2023): what canaries give away bounds epsilon from below.

Of m canaries each is a client, or an example, with probability 1/2. Who sees the models guesses of some canaries that they
were in and of others that they were not. Of an (epsilon, delta)-private mechanism so many right guesses are unlikely; an
epsilon below which they have a probability of less than 5 % over all rounds is a lower bound.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedfault.privacy.budget import Budget
from fedfault.seeds import rng
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import State

LEVEL = 0.05  # of being above epsilon by chance in any round
GUESSED = (1.0, 0.5, 0.2)  # shares of the canaries that are guessed: of the others it is not said
SMALL_DELTA = 1e-5  # of a second audit where the run's delta is larger: the theorem pays 2 m delta for m canaries
LARGEST = 100.0  # epsilon; no audit gets near


class Canaries:
    """Made-up clients of a run: canary i contributes C u_i, u_i of norm one and random signs, whenever it is drawn.

    In P dimensions they are nearly orthogonal to each other and to what is learned. The score of a canary is the sum over
    the rounds of <release, u_i>: the best that can be done with all models at hand.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.included = rng(budget.secret, "included").random(budget.canaries) < 0.5  # (m,) bool

    def init(self, layout: Layout) -> dict[str, Adapter]:
        """Make the memory in which scores add up; nothing without canaries."""
        m = self.budget.canaries
        return {"canaries": Adapter(layout, torch.zeros(m, dtype=torch.float64))} if m else {}

    def sum_drawn(self, size: int, round: int, moved: Tensor | None, clip: float) -> Tensor:
        """Sum up what those canaries contribute that are included, and drawn for the round: (size,) float64."""
        _, m, n, _ = self.budget.release
        drawn = rng(self.budget.secret, "canaries", round).random(self.budget.canaries) < m / n
        total = torch.zeros(size, dtype=torch.float64)
        for i in np.flatnonzero(self.included & drawn).tolist():
            total += clip * self._point(i, size, moved)
        return total

    def score(self, state: State, release: Tensor, round: int, moved: Tensor | None) -> dict[str, Adapter]:
        """Add <release, u_i> to the scores in memory."""
        if not self.budget.canaries:
            return {}
        found = [float(self._point(i, len(release), moved) @ release) for i in range(self.budget.canaries)]
        before = state.memory["canaries"]
        return {"canaries": Adapter(before.layout, before.flat.cpu() + torch.tensor(found, dtype=torch.float64))}

    def _point(self, i: int, size: int, moved: Tensor | None) -> Tensor:
        """u_i: random signs on the numbers that are trained, zero elsewhere."""
        bits = np.unpackbits(np.frombuffer(rng(self.budget.secret, "canary", i).bytes(-(-size // 8)), dtype=np.uint8))
        signs = torch.from_numpy(bits[:size].astype(np.float64) * 2 - 1)
        signs = signs if moved is None else signs.where(moved, 0.0)
        point: Tensor = signs / signs.norm()
        return point

    @property
    def deltas(self) -> tuple[float, ...]:
        """The deltas at which epsilon is audited: that of the run, and a small one where that is large."""
        own = self.budget.delta
        return (own, SMALL_DELTA) if own > SMALL_DELTA else (own,)

    def bound_epsilon(self, state: State, delta: float) -> float:
        """Bound epsilon at one of `deltas` from below by the scores so far; the bounds of all rounds hold together."""
        scores = state.memory["canaries"].flat.cpu().numpy()
        level = LEVEL / (len(self.budget.times) - 1) / len(self.deltas)
        return bound_by_scores(scores, self.included, delta, level)


def bound_by_scores(scores: np.ndarray, included: np.ndarray, delta: float, level: float) -> float:
    """The largest lower bound on epsilon, of three shares of canaries that are guessed, at a level for all three.

    scores, included: (m,). Half of the guesses are "in", for the highest scores, and half are "out", for the lowest.
    """
    m, order, found = len(scores), np.argsort(scores), 0.0
    for share in GUESSED:
        half = int(share * m) // 2
        if not half:
            continue
        right = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
        found = max(found, bound_epsilon(m, 2 * half, right, delta, level / len(GUESSED)))
    return found


def bound_epsilon(m: int, guesses: int, right: int, delta: float, level: float) -> float:
    """The largest epsilon at which so many right guesses of canaries have a probability below the level; 0 for none.

    >>> round(bound_epsilon(100, 100, 100, 0.0, 0.05), 3)  # (e^eps / (1 + e^eps))^100 = 0.05
    3.493
    """
    low, high = 0.0, LARGEST
    if find_probability(m, guesses, right, 0.0, delta) >= level:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if find_probability(m, guesses, right, middle, delta) < level else (low, middle)
    return low


def find_probability(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses, or more, under (epsilon, delta)-privacy (ibid., theorem 5.2).

    P <= f(v) + 2 m delta max_{i = 1..v} (f(v - i) - f(v)) / i, with f(v) = P(Binomial(guesses, e^eps / (1 + e^eps)) >= v).
    """
    from scipy import stats  # half a second, for private runs alone

    p, v = 1 / (1 + math.exp(-epsilon)), np.arange(right + 1)
    f = stats.binom.sf(v - 1, guesses, p)  # (right + 1,)
    i = np.arange(1, right + 1)
    worst = float(((f[right - i] - f[right]) / i).max()) if right else 0.0
    return min(1.0, float(f[right]) + 2 * m * delta * worst)
