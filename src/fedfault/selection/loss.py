"""Those whose loss was the highest when they last took part."""

from __future__ import annotations

import numpy as np

from fedfault.registry import register
from fedfault.scheduling import Candidates, Ints, Selection


@register("selection", cite=("cho2020powerofchoice",))
def loss() -> Selection:
    """The clients with the highest loss, as each reported it when it last took part; those never asked come first.

    The loss is the mean of a client's training loss over its last round. Nobody is asked for a fresh one, which would cost
    every client the model and a pass: a loss grows old until its client is drawn again. Who did not answer when it was last
    asked, a client too slow for the deadline, has the median loss of those who did. It is the limit of power_of_choice in
    which everybody is a candidate.

    >>> from fedfault.testing.cohorts import candidates, choose
    >>> choose(loss(), candidates(clients=[4, 1, 3, 0], loss=[2.0, None, 3.0, 1.0], wanted=2))
    [1, 3]

    Reference: arXiv 2010.01243, with d = N.
    """

    def choose(c: Candidates, g: np.random.Generator) -> Ints:
        return take_highest(c, np.arange(len(c.clients)))

    return Selection(choose, needs=frozenset({"loss"}), traits=frozenset({"draws by reports"}))


def take_highest(c: Candidates, among: Ints) -> Ints:
    """The positions, out of some of the candidates, of those with the highest loss; a loss that is not known is above all.

    Ties fall as the candidates are ordered, which is at random.
    """
    height = np.where(np.isnan(c.loss[among]), np.inf, c.loss[among])
    found: Ints = among[np.argsort(-height, kind="stable")[: c.wanted]]
    return found
