"""The probe of how much the clients of a round disagree, measured on weight changes (LoRA factors multiplied out)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedfault.algebra import gram, inner, to_float64
from fedfault.measures.updates import SHOWN, cosines, update_metrics
from fedfault.registry import register
from fedfault.types.adapter import Layout, Pair
from fedfault.types.task import FinishedRound, Measurements, Probe


@register("probe", order=1)
def updates() -> Probe:
    """Divergence of the clients' updates, cosines between them, to the server's update and from round to round.

    With the weight changes D_i of the round's K clients and D of the server, LoRA factors multiplied out:

    update_norm, update_divergence, update_cosine, pairwise_cosine, gradient_diversity   see `measures.updates`
    client_drift    U6: mean over steps k and clients i of |y_ik - x|^2 (Karimireddy et al., arXiv 1910.06378, section 3),
                    in the numbers of the adapter: a step's factors are not multiplied out
    server_norm     |D|, which for the plain mean of one product is about update_norm
    round_cosine    cos(D of this round, D of the one before); negative: the server rings. Random directions of n effective
                    dimensions give 0 +- 1 / sqrt(n)
    cosine          for each client: cos(D_i, D)
    matrix update_cosine   cos(D_i, D_j), for cohorts of at most 24

    An update of norm zero has no direction: its cosines are left out. Where the aggregation adds to the frozen weights, the
    adapter does not show D, and all that is about D is left out.

    Two clients pull 3 towards 0 and 4: their updates are -0.3 and 0.1.

    >>> from fedfault.testing.toys import Quadratic, measure_round
    >>> pull = Quadratic(H=[[1.0], [1.0]], b=[[0.0], [4.0]], sizes=[4, 4])
    >>> found = measure_round(updates(), pull, work={"steps": 1, "lr": 0.1}).probes
    >>> {name: round(found[name], 3) for name in ("update_norm", "update_divergence", "pairwise_cosine", "server_norm")}
    {'update_norm': 0.1, 'update_divergence': 2.0, 'pairwise_cosine': -1.0, 'server_norm': 0.1}
    """

    def measure(m: FinishedRound) -> Measurements:
        layout, K = m.task.layout, len(m.clients)
        folded = bool(m.after.base)
        rows, starts = [m.trained.adapter.flat], [m.start]
        if not folded:
            rows.append(m.after.adapter.flat[None])
            starts.append(m.before.adapter.flat[None])
            if m.before.last is not None:
                rows.append(m.before.adapter.flat[None])
                starts.append(m.before.last.flat[None])
        # Clients, then the server now and one round ago
        products = gram(layout, torch.cat(starts), torch.cat(rows)).cpu().numpy()
        found = update_metrics(products[:K, :K])
        if m.trained.drift is not None:
            found["client_drift"] = float(m.trained.drift.mean())
        cosine = cosines(products)
        if not folded:
            found["server_norm"] = math.sqrt(max(float(products[K, K]), 0.0))
        if len(cosine) == K + 2:
            found["round_cosine"] = float(cosine[K, K + 1])
        return Measurements(
            {name: value for name, value in found.items() if math.isfinite(value)},
            {} if folded else {"cosine": cosine[:K, K].tolist()},
            {"update_cosine": cosine[:K, :K].tolist()} if 1 < K <= SHOWN else {},
        )

    return Probe(measure)


def update_norms(layout: Layout, start: Tensor, flat: Tensor) -> list[float]:
    """The norm |D_i| of every client's weight change from start (K, P) to flat (K, P): K numbers, infinite if not finite."""
    squared = torch.zeros(len(flat), dtype=torch.float64, device=to_float64(flat[:0]).device)
    for site in layout.sites:
        if site.kind == "full":
            squared += (
                (to_float64(layout.part(flat, site)) - to_float64(layout.part(start, site))).flatten(1).square().sum(1)
            )
        else:
            before, after = (Pair(*map(to_float64, layout.pair(x, site))) for x in (start, flat))
            squared += layout.scale(site) ** 2 * (
                inner(after, after) - 2 * inner(before, after) + inner(before, before)
            )
    norms: list[float] = torch.nan_to_num(squared.clamp(min=0).sqrt(), nan=math.inf).tolist()
    return norms
