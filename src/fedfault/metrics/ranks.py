"""The spectrum of the server's adapter: how many directions its weight change uses."""

from __future__ import annotations

import torch

from fedfault.algebra import svd, to_float64
from fedfault.measures.spectrum import effective_rank
from fedfault.registry import register
from fedfault.types.adapter import Pair
from fedfault.types.task import FinishedRound, Measurements, Probe


@register("probe", order=3)
def ranks() -> Probe:
    """Effective and stable rank of the server's weight change B A, and its energy above the smallest rank of a client.

    With the singular values s of B A on a LoRA site, less the B0 A0 that it started from, these are means over the sites
    where it is not zero:

    effective_rank   exp(H(s / sum s)), H the entropy (Roy and Vetterli, EUSIPCO 2007); 0 if it is zero on every site: a
                     dead adapter
    stable_rank      |s|^2 / max s^2
    energy_above     sum of s_j^2 over j > r_min, over |s|^2, all sites together: what clients of the smallest rank do not
                     see (Bai et al., arXiv 2402.11505); only where ranks differ

    The product is never formed. There is nothing without LoRA sites, nor where an aggregation put everything into the frozen
    weights: B A = 0 does not mean there that the adapter is dead.

    >>> from fedfault.testing.toys import LowRank, measure_round
    >>> found = measure_round(ranks(), LowRank(r=2)).probes
    >>> {name: round(value, 2) for name, value in found.items()}
    {'effective_rank': 1.4, 'stable_rank': 1.01}
    """

    def measure(m: FinishedRound) -> Measurements:
        x = m.after.adapter
        if not x.layout.lora or not bool(torch.isfinite(x.flat).all()):
            return Measurements()
        start = m.task.init(m.seed).flat
        values = [svd(_find_change(x.layout.pair(x.flat, s), x.layout.pair(start, s)))[1] for s in x.layout.lora]
        alive = [s for s in values if float(s.max()) > 0]
        if not alive:
            return Measurements({} if m.after.base else {"effective_rank": 0.0})
        found = {
            "effective_rank": sum(effective_rank(s) for s in alive) / len(alive),
            "stable_rank": sum(float(s.square().sum() / s.max() ** 2) for s in alive) / len(alive),
        }
        low = min((rank for rank in m.before.ranks if rank), default=0)  # 0: it cannot train
        if low < max(m.before.ranks):
            total = sum(float(s.square().sum()) for s in alive)
            found["energy_above"] = sum(float(s[low:].square().sum()) for s in alive) / total
        return Measurements(found)

    return Probe(measure, public=True)


def _find_change(now: Pair, start: Pair) -> Pair:
    """B A - B0 A0 as one product, in float64: of no more slices than B A where B0 is zero, and zero where nothing moved."""
    (A, B), (A0, B0) = (Pair(*map(to_float64, pair)) for pair in (now, start))
    if not bool(B0.any()):
        return Pair(A, B)
    if torch.equal(A, A0) and torch.equal(B, B0):
        return Pair(A, torch.zeros_like(B))
    return Pair(torch.cat([A, A0]), torch.cat([B, -B0], 1))
