"""The probe of how far the aggregated model is from the mean of the clients' models."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedfault.algebra import shares, stack, to_float64
from fedfault.registry import register
from fedfault.types.adapter import Adapter, Layout, Pair
from fedfault.types.task import FinishedRound, Measurements, Probe


@register("probe", order=4)
def aggregation() -> Probe:
    """How far the aggregated model is from the weighted mean of the clients' models, see `aggregation_error`.

    There is nothing where clients share no model, as each keeps a part of the adapter, or where no product was averaged.
    The mean of A times the mean of B is not the mean of the products B A; FedEx-LoRA adds the rest to the frozen weights.

    >>> from fedfault.testing.toys import LowRank, measure_round
    >>> for method in ("fedit", "fedex_lora"):
    ...     print(f"{method} {measure_round(aggregation(), LowRank(), 'fedavg', method).probes['aggregation_error']:.3f}")
    fedit 0.047
    fedex_lora 0.000
    """

    def measure(m: FinishedRound) -> Measurements:
        if len(m.averages) != 1 or m.private:
            return Measurements()
        got, pooled = m.averages[0]
        start = m.task.init(m.seed)
        error, _ = aggregation_error(m.task.layout, got.sent.flat, got.weight, pooled.adapter, pooled.fold, start)
        return Measurements({} if error is None else {"aggregation_error": error})

    return Probe(measure)


def aggregation_error(
    layout: Layout,
    sent: Tensor,
    weight: Tensor,
    after: Adapter,
    fold: Mapping[str, Pair],
    start: Adapter | None = None,
) -> tuple[float | None, dict[str, float]]:
    """|s B A + fold - E| / |E - s B0 A0| with E = sum_k p_k s B_k A_k: over all LoRA sites together, and by site.

    sent (K, P) are the clients' adapters, `after` (P,) is what became of them and `fold` what the frozen weights got; all
    changes are relative to the frozen weights before the round. `start` (P,) has the A0 and B0 of the untrained model,
    whose product is a part of the base and no change of it; without it B0 = 0. For FedIT it is the weighted
    cross-covariance of the factors, |s sum_k p_k (B_k - B)(A_k - A)| / |E - s B0 A0|. Nothing of size d_out x d_in is
    formed: a site costs O((K r)^2 (d_in + d_out)), and anything below 1e-7 is rounding. Sites that nobody changed are left
    out; None where all are.
    """
    p, squares = shares(weight), {}
    for site in layout.lora:
        A, B = layout.pair(to_float64(after.flat), site)
        s = layout.scale(site)
        ours = [Pair(A, s * B), *([fold[site.name]] if site.name in fold else [])]
        exact = stack(layout.pair(sent, site), -s * p, torch.full((len(p),), site.shape[0]))
        began = [] if start is None else [_scale(layout.pair(to_float64(start.flat), site), s)]
        parts = [*ours, exact, *began]
        A, B = torch.cat([to_float64(f.A) for f in parts]), torch.cat([to_float64(f.B) for f in parts], 1)
        inner = (B.mT @ B) * (A @ A.mT)  # of the slices of s B A + fold, -E and s B0 A0, one with another
        n = sum(len(f.A) for f in ours)
        m = n + len(exact.A)
        squares[site.name] = (max(float(inner[:m, :m].sum()), 0.0), max(float(inner[n:, n:].sum()), 0.0))
    by_site = {name: math.sqrt(error / size) for name, (error, size) in squares.items() if size > 0}
    error, size = (sum(column) for column in zip((0.0, 0.0), *squares.values(), strict=True))
    return (math.sqrt(error / size) if size > 0 else None), by_site


def _scale(pair: Pair, s: float) -> Pair:
    return Pair(pair.A, s * pair.B)
