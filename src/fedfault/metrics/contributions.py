"""The probe of what each client's update did to every score of a round: leave one out, and Shapley values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedfault.measures.contributions import Coalition, find_shapley, plan_coalitions
from fedfault.records import Score
from fedfault.registry import register
from fedfault.seeds import rng
from fedfault.types.task import Ablation, FinishedRound, Measurements, Probe

TOGETHER = 32  # models that are scored in a pass


@register("probe", order=9, on=False, cite=("wang2020valuation",))
def contributions(*, pairs: int = 0) -> Probe:
    """What the loss of every score would have been without a client's update, and Shapley values.

    A round is made again without some of its updates, exactly: the server takes the same step on the others, whose weights
    make up for those that are left out, and nobody trains again. With v(C) = the loss before the round less the loss of the
    model that the updates of the clients C alone would have made,

    contribution/SCORE   for each client k: v(all) - v(all but k); above zero the update lowered that loss
    shapley/SCORE        with `pairs`: its Shapley value, of which those of all clients sum to v(all), what the round gained
    shapley_error/SCORE  standard error of it, 0 where the round has so few clients that all coalitions are scored

    All models are scored as rows of the same passes, except where the aggregation adds to the frozen weights. Nothing is
    measured of clients whose update was not taken, of a round with fewer updates than the aggregation needs without one of
    them (Krum, medians, ...; Shapley values need an aggregation of any number), and where clients are hidden.

    pairs: random orders of the clients, each with its reverse, from which Shapley values are reckoned; 0: none

    Reference: Wang, Rausch, Zhang, Jia & Song, arXiv 2009.06192 (the Shapley value of a federation, round by round).

    Two clients pull 3 towards 0 and 4. Without the first the model would be 3.1, with both it is 2.9, and the loss of x is
    the mean of x^2 / 2 and (x - 4)^2 / 2, which is least at 2.

    >>> from fedfault.testing.toys import Quadratic, measure_round
    >>> pull = Quadratic(H=[[1.0], [1.0]], b=[[0.0], [4.0]], sizes=[4, 4])
    >>> record = measure_round(contributions(), pull, work={"steps": 1, "lr": 0.1})
    >>> [round(client.probes["contribution/validation"], 3) for client in record.clients]
    [0.2, -0.16]
    """

    def measure(m: FinishedRound) -> Measurements:
        there = [i for i, taken in enumerate(m.good) if taken]
        if m.ablate is None or not m.scores or len(there) < m.least:
            return Measurements()
        K, game = len(there), _Game(m, there)
        everybody = frozenset(range(K))
        found: dict[str, np.ndarray] = {}
        if m.least <= K - 1 or m.least == 1:
            without = [everybody - {k} for k in range(K)]
            value = game.score([everybody, *without])
            found |= {"contribution": np.array([value[everybody] - value[c] for c in without])}
        if pairs and m.least == 1:
            design = plan_coalitions(K, pairs, rng(m.seed, "coalitions", m.round))
            values, errors = find_shapley(design, game.score(design.coalitions))
            found |= {"shapley": values, "shapley_error": errors}
        return Measurements(
            clients={n: v for name, values in found.items() for n, v in game.spread(name, values).items()}
        )

    return Probe(measure, sparse=True)


class _Game:
    """The clients whose updates were taken, and what every score gains by any coalition of them."""

    def __init__(self, m: FinishedRound, there: Sequence[int]) -> None:
        self.m, self.there = m, there
        self.names = list(m.scores)
        everybody = frozenset(range(len(there)))
        self.known = {everybody: -self._read(m.scores)}  # coalition -> minus the losses, (S,)

    def score(self, coalitions: Sequence[Coalition]) -> dict[Coalition, np.ndarray]:
        """The values of coalitions, up to the loss before the round, in which they do not differ."""
        new = [c for c in dict.fromkeys(coalitions) if c not in self.known]
        for at in range(0, len(new), TOGETHER):
            some = new[at : at + TOGETHER]
            scored = self._score_models([self._make_model(c) for c in some])
            self.known |= {c: -self._read(own) for c, own in zip(some, scored, strict=True)}
        return {c: self.known[c] for c in coalitions}

    def _make_model(self, coalition: Coalition) -> Ablation:
        chosen = {self.there[k] for k in coalition}
        assert self.m.ablate is not None
        return self.m.ablate([i in chosen for i in range(len(self.m.good))])

    def _score_models(self, models: Sequence[Ablation]) -> list[dict[str, Score]]:
        task, base = self.m.task, self.m.after.base
        if not base:
            return task.evaluate_each([model.served for model in models])
        scored = []
        for model in models:  # each has frozen weights of its own
            task.fold(model.base)
            scored += task.evaluate_each([model.served])
        task.fold(base)
        return scored

    def _read(self, scores: Mapping[str, Score]) -> np.ndarray:
        losses = [scores[name].loss if name in scores else math.nan for name in self.names]
        return np.array([loss if math.isfinite(loss) else math.nan for loss in losses])

    def spread(self, what: str, values: np.ndarray) -> dict[str, list[float]]:
        """Numbers of the coalition's clients (k, S) as those of the whole cohort, by name."""
        out = {}
        for name, column in zip(self.names, values.T, strict=True):
            every = np.full(len(self.m.good), math.nan)
            every[self.there] = column
            out[f"{what}/{name}"] = every.tolist()
        return out
