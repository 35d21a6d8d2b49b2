"""The control: everybody is as likely as everybody else."""

from __future__ import annotations

import numpy as np

from fedfault.registry import register
from fedfault.scheduling import Candidates, Ints, Selection


@register("selection", cite=("mcmahan2017",))
def uniform() -> Selection:
    """Every client is as likely as every other one (McMahan et al., AISTATS 2017), whatever its size.

    The mean over cohorts, which is normalised over each, counts large clients for less than their share where sizes differ.

    >>> from fedfault.testing.cohorts import candidates, choose
    >>> choose(uniform(), candidates(clients=[4, 1, 3], wanted=2))  # the candidates come in a random order
    [4, 1]
    """

    def choose(c: Candidates, g: np.random.Generator) -> Ints:
        return np.arange(min(c.wanted, len(c.clients)))

    return Selection(choose)
