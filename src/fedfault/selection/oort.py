"""Oort: the clients that are the most useful for the time that they take, and some that nobody knows yet."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedfault.registry import register
from fedfault.scheduling import Candidates, Floats, Ints, Selection

Share = Annotated[float, Field(ge=0, le=1)]
# Quantile that utilities are clipped to, and share of the last chosen one's that is still worth a draw (Lai et al. 2021)
CLIP = 0.95


@register("selection", cite=("lai2021oort",))
def oort(
    *,
    alpha: Annotated[float, Field(ge=0)] = 2.0,  # Lai et al. 2021, and the next three
    explore: Share = 0.9,  # of the first round
    decay: Share = 0.98,  # a round; the authors' code has 0.95
    explore_least: Share = 0.2,
    preferred: Annotated[float, Field(gt=0, le=1)] = 0.5,  # our choice, see below
) -> Selection:
    """Oort (Lai et al., OSDI 2021): by loss times size, less for who is slow and more for who was long away.

    U_k = (n_k L_k + sqrt(0.1 ln t / t_k)) (T / s_k)^alpha, the last factor for clients of s_k > T seconds only; L_k is the
    loss that the client reported when it was last asked, in round t_k, or the median of the others' if it did not answer;
    n_k L_k is over the largest of them. A share of the places, which falls from explore by decay a round to explore_least,
    goes to clients that were never asked, the fast ones with more chance. The others are drawn in proportion to utility
    from those with at least 95 % of the utility of the last one that a plain ranking would take; utilities are clipped to
    their 95th percentile.

    The paper's statistical utility is n_k times the root mean square of the losses of single examples, which clients would
    have to send beside what they send; here L_k is their mean. T is the quantile `preferred` of the seconds of who is there,
    in the place of the pacer, which raises T when utility stalls. alpha=0 needs no simulated time.

    alpha: how strongly slow clients are passed over
    explore: the share of the first cohort that goes to clients which were never asked
    decay: what that share is multiplied by a round
    explore_least: the share below which it does not fall
    preferred: the quantile of the clients' seconds above which a client counts as slow

    >>> from fedfault.testing.cohorts import candidates, choose
    >>> c = candidates(clients=[4, 1, 3, 0], loss=[2.0, 2.5, 3.0, 9.0], seconds=[1, 1, 1, 8], wanted=1)
    >>> choose(oort(), c)  # client 0 has three times the loss of client 3, and takes eight times as long
    [3]

    Reference: arXiv 2010.06081, algorithm 1.
    """

    def choose(c: Candidates, g: np.random.Generator) -> Ints:
        n, m = len(c.clients), min(c.wanted, len(c.clients))
        fresh = np.flatnonzero(np.isnan(c.loss))
        share = max(explore_least, explore * decay ** (c.round - 1))
        new = min(len(fresh), max(round(share * m), m - (n - len(fresh))))
        speed = 1 / c.seconds[fresh] if alpha else np.ones(len(fresh))
        known = np.flatnonzero(~np.isnan(c.loss))
        best = _draw_useful(_reckon_utility(c, known, alpha, preferred), m - new, g)
        return np.concatenate([_draw(fresh, speed, new, g), known[best]])

    needs = {"size", "loss", "seconds"} if alpha else {"size", "loss"}
    return Selection(choose, needs=frozenset(needs), traits=frozenset({"draws by reports"}))


def _reckon_utility(c: Candidates, known: Ints, alpha: float, preferred: float) -> Floats:
    """U of the clients whose loss is known, in their order."""
    useful: Floats = c.size[known] * c.loss[known]
    useful = useful / max(useful.max(initial=0.0), 1e-300)
    useful = useful + np.sqrt(0.1 * np.log(max(c.round, 1)) / np.maximum(c.last[known], 1))
    if alpha:
        limit, seconds = np.quantile(c.seconds, preferred) if len(c.seconds) else 0.0, c.seconds[known]
        useful = useful * np.where(seconds > limit, limit / seconds, 1.0) ** alpha
    return useful


def _draw_useful(useful: Floats, m: int, g: np.random.Generator) -> Ints:
    """Draw m positions in proportion to utility from those near the m-th or above it."""
    if m == 0:
        return np.array([], dtype=np.int64)
    useful = np.minimum(useful, np.quantile(useful, CLIP))
    among = np.flatnonzero(useful >= CLIP * np.sort(useful)[-m])
    return _draw(among, useful[among], m, g)


def _draw(among: Ints, weight: Floats, m: int, g: np.random.Generator) -> Ints:
    """Draw m without replacement, one after another in proportion to their weights (Efraimidis and Spirakis, 2006)."""
    waits = g.exponential(size=len(among)) / np.maximum(weight / max(weight.max(initial=0.0), 1e-300), 1e-300)
    found: Ints = among[np.argsort(waits, kind="stable")[:m]]
    return found
