"""Power of choice: a few candidates at random, of whom those with the highest loss take part."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.registry import register
from fedfault.scheduling import Candidates, Ints, Selection
from fedfault.selection.loss import take_highest


@register("selection", cite=("cho2020powerofchoice",))
def power_of_choice(
    *,
    candidates: Annotated[int, Field(ge=1)]
    | None = None,  # d of the paper; None: 2m, the fewest with a choice for every place
) -> Selection:
    """Power of choice (Cho et al., 2020): of d candidates drawn at random, the m with the highest loss take part.

    It is rpow-d of the paper: the loss is the one that a client reported when it last took part, and infinite until it is
    asked for the first time, so that no candidate is sent a model only to be measured. Who does not answer has the median
    loss of those who do; the paper has no such clients. d = m is uniform, d = N is `loss`. The paper draws candidates by
    size and takes a plain mean; here they are drawn uniformly, and the mean weighs them by `federation.weighting`: sizes in
    both would count twice. What it converges to is biased towards clients with high loss, the more the larger d is.

    candidates: clients that are drawn and asked for their loss; null: twice the cohort

    >>> from fedfault.testing.cohorts import candidates as there, choose
    >>> choose(power_of_choice(candidates=3), there(clients=[4, 1, 3, 0], loss=[2.0, 2.5, 3.0, 9.0], wanted=2))
    [3, 1]

    Reference: arXiv 2010.01243.
    """

    def choose(c: Candidates, g: np.random.Generator) -> Ints:
        d = max(c.wanted, candidates or 2 * c.wanted)
        return take_highest(c, np.arange(min(d, len(c.clients))))

    return Selection(choose, needs=frozenset({"loss"}), traits=frozenset({"draws by reports"}))
