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

    With the singular values s of B A on a LoRA site, these are means over the sites with B A != 0:

    effective_rank   exp(H(s / sum s)), H the entropy (Roy and Vetterli, EUSIPCO 2007); 0 if B A = 0 on every site: a dead
                     adapter
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
        values = [svd(Pair(*map(to_float64, x.layout.pair(x.flat, site))))[1] for site in x.layout.lora]
        alive = [s for s in values if float(s.max()) > 0]
        if not alive:
            return Measurements({} if m.after.base else {"effective_rank": 0.0})
        found = {
            "effective_rank": sum(effective_rank(s) for s in alive) / len(alive),
            "stable_rank": sum(float(s.square().sum() / s.max() ** 2) for s in alive) / len(alive),
        }
        low = min(m.before.ranks)
        if low < max(m.before.ranks):
            total = sum(float(s.square().sum()) for s in alive)
            found["energy_above"] = sum(float(s[low:].square().sum()) for s in alive) / total
        return Measurements(found)

    return Probe(measure, public=True)
