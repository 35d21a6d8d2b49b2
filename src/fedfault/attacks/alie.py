"""A little is enough: as far from the honest mean as honest clients are."""

from __future__ import annotations

import statistics
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedfault.registry import register
from fedfault.types.attack import Attack, Changes


@register("attack", cite=("baruch2019little",))
def alie(*, z: Annotated[float, Field(gt=0)] | None = None) -> Attack:
    """A little is enough (Baruch et al., NeurIPS 2019): the honest mean less z standard deviations.

    Number by number. All hostile clients send the same, so close to the honest mean that rules by distance take it for
    honest. `z` is the largest with which enough honest clients are further off to make a majority with the m of K that
    are hostile: s = floor(K / 2 + 1) - m, z = Phi^-1((K - m - s) / (K - m)), and 0.1 at least. The attacker knows all
    honest changes.

    z: standard deviations from the mean; null: as many as the paper finds to be unsuspicious

    Reference: arXiv 1902.06156.
    """

    def forge(got: Changes) -> Tensor:
        m, seen = len(got.own), got.honest if len(got.honest) else got.own
        far = find_z(m, len(seen) + m * bool(len(got.honest))) if z is None else z
        change = seen.mean(0) - far * seen.std(0, correction=0)
        return change.where((got.own != 0).any(0), 0.0).expand(m, -1)

    return Attack(forge=forge)


def find_z(m: int, K: int) -> float:
    """The published z for m hostile clients of K.

    >>> round(find_z(m=2, K=10), 3)  # s = 4 of 8 honest ones: the median itself is as far as they may go, and 0.1 the least
    0.1
    >>> round(find_z(m=4, K=10), 3)  # s = 2 of 6: Phi^-1(4 / 6)
    0.431
    """
    honest = max(1, K - m)
    share = (honest - (K // 2 + 1 - m)) / honest
    return max(0.1, statistics.NormalDist().inv_cdf(min(max(share, 0.01), 0.99)))
