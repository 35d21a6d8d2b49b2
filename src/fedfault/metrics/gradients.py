"""The clients' gradients at the point where the round started, and what control variates make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedfault.algebra import to_float64
from fedfault.measures.updates import SHOWN, gradient_alignment, gradient_variance
from fedfault.registry import register
from fedfault.seeds import rng
from fedfault.types.task import FinishedRound, Measurements, Probe, Step, Task

DRAWN = 4  # examples of a client in each half


def split_halves(
    task: Task, start: Tensor, clients: Sequence[int], trainable: Tensor | None, *, seed: int, round: int, per_pass: int
) -> tuple[Tensor, Tensor]:
    """Gradients of every client, where it starts, on two disjoint draws of its examples: (K, P) each, not clipped.

    start: (K, P); trainable: (K, P) or (P,) bool, the other numbers have gradient zero. At most four examples a half; a
    client with a single example has NaN in both. Both halves are rows of the same passes, of `per_pass` rows each.
    """
    own = [rng(seed, "probe", round, k).permutation(task.examples(k)) for k in clients]
    K, b = len(own), max(1, min(DRAWN, max(len(p) for p in own) // 2))
    places = np.full((2, K, b), -1)
    for i, p in enumerate(own):
        n = min(b, len(p) // 2)
        places[:, i, :n] = p[: 2 * n].reshape(2, n)
    drawn = torch.from_numpy(places).flatten(0, 1)  # (2K, b), the first half of every client before the second
    step = Step(torch.tensor(clients).repeat(2), drawn.clamp(min=0), drawn >= 0)
    out = start.new_empty(2 * K, start.shape[1])
    for some in torch.arange(2 * K).split(per_pass):
        part = Step(step.clients[some], step.rows[some], step.real[some])
        out[some[0] : some[-1] + 1] = task.grad(start[some % K], part)[1]
    out = out.masked_fill(~step.real.any(1, keepdim=True).to(out.device), torch.nan).view(2, K, -1)
    first, second = out if trainable is None else out.masked_fill(~trainable.to(out.device), 0.0)
    return first, second


@register("probe", order=2)
def gradients() -> Probe:
    """Norms of the clients' gradients at one point, their variance between and within clients, and alignment with it.

    g_i1 and g_i2 are gradients of client i at the point where the round started, on two disjoint draws of its examples, in
    the numbers of the adapter. The noise of the draws is independent, so that it cancels on average in every product of a
    first and a second one:

    gradient_norm_mean, _variance, _cv   over clients, of |grad f_i| = sqrt(max(<g_i1, g_i2>, 0))
    gradient_noise       sigma^2 of one half: mean |g_i1 - g_i2|^2 / 2
    drift_between        V_b = mean_i <g_i1, g_i2> - mean_{i != j} <g_i1, g_j2>: unbiased for the variance between
                         clients of the gradients on their own data; finite IID samples differ a little
    drift_within         V_w = gradient_noise; V_b / V_w is the split-half variance ratio
    gradient_alignment   cos(mean update of the round, -mean gradient), with |mean gradient|^2 = <mean g_1, mean g_2>;
                         absent where that is no more than the noise of the mean, |mean g_1 - mean g_2|^2 / 4
    gradient_norm        for each client
    matrix halves        <g_i1, g_j2>, for cohorts of at most 24: what permutation tests need

    `control_error` adds its numbers for algorithms with control variates.

    Two clients whose gradients at the start are 3 and -1, without noise: V_b = (9 + 1) / 2 - (-3).

    >>> from fedfault.testing.toys import Quadratic, measure_round
    >>> pull = Quadratic(H=[[1.0], [1.0]], b=[[0.0], [4.0]], sizes=[4, 4])
    >>> found = measure_round(gradients(), pull, work={"steps": 1, "lr": 0.1}).probes
    >>> {name: round(found[name], 3) for name in ("gradient_norm_mean", "drift_between", "drift_within")}
    {'gradient_norm_mean': 2.0, 'drift_between': 8.0, 'drift_within': 0.0}
    """

    def measure(m: FinishedRound) -> Measurements:
        if m.halves is None:
            return Measurements()
        first, second = (to_float64(h) for h in m.halves)
        whole = torch.isfinite(first.square().sum(1)) & torch.isfinite(second.square().sum(1))  # (K,)
        if not bool(whole.any()):
            return Measurements()
        products = first[whole] @ second[whole].T  # (k, k)
        squared = products.diagonal()
        norm = squared.clamp(min=0).sqrt()
        noise = (first[whole] - second[whole]).square().sum(1)
        update = to_float64(m.trained.adapter.flat - m.start).mean(0)
        means = torch.stack([update, first[whole].mean(0), second[whole].mean(0)])  # (3, P)
        found = {
            "gradient_norm_mean": float(norm.mean()),
            "gradient_noise": float(noise.mean() / 2),
            **gradient_variance(products.cpu().numpy(), noise.cpu().numpy()),
            **gradient_alignment((means @ means.T).cpu().numpy()),
        }
        every = first.new_full((len(first),), math.nan).masked_scatter(whole, norm)
        control, clients = control_error(m, first, second)
        shown = {"halves": products.tolist()} if bool(whole.all()) and 1 < len(first) <= SHOWN else {}
        known = {name: value for name, value in (found | control).items() if math.isfinite(value)}
        return Measurements(known, {"gradient_norm": every.tolist(), **clients}, shown)

    return Probe(measure, sparse=True, gradients=True)


def control_error(m: FinishedRound, first: Tensor, second: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """How far control variates are from what they stand for; empty for algorithms without them.

    rho = sum_i |(grad f_i - grad f) - (c_i - c)|^2 / sum_i |grad f_i - grad f|^2 over the clients i of the round that have
    a control variate already, with grad f and c as means over these clients, and both sums from products of a first and a
    second half, which noise leaves unbiased. 0: c_i is the client's gradient; 1: no better than none; above 1: they hurt.

    control_error, control_spread   numerator and denominator; their ratio is undefined where clients do not differ
    control_ratio                   mean of |c_i| / mean of |grad f_i|; far from 1: the units are wrong, as with momentum;
                                    absent where the gradients are no longer than their noise
    control_error, control_spread, control_norm, control_age   of each client; the age in rounds
    """
    if "c" not in m.before.clients or "c" not in m.before.memory:
        return {}, {}
    ids = torch.tensor(list(m.clients))
    age = torch.tensor([m.round - m.before.stored[k] if m.before.stored[k] else 0 for k in m.clients])
    there = (age > 0) & torch.isfinite(first).all(1).cpu() & torch.isfinite(second).all(1).cpu()
    if int(there.sum()) < 2:
        return {}, {}
    c = to_float64(m.before.clients["c"].flat[ids[there]])
    g1, g2 = first[there], second[there]
    squared, noise = (g1 * g2).sum(1), (g1 - g2).square().sum(1) / 4
    ratio = c.norm(dim=1).mean() / squared.clamp(min=0).sqrt().mean() if squared.mean() > noise.mean() else math.nan
    g1, g2, apart = (x - x.mean(0) for x in (g1, g2, c))
    error, spread = ((g1 - apart) * (g2 - apart)).sum(1), (g1 * g2).sum(1)
    found = {
        "control_error": float(error.mean()),
        "control_spread": float(spread.mean()),
        "control_ratio": float(ratio),
    }
    nothing = torch.full((len(ids),), math.nan, dtype=torch.float64)
    clients = {
        "control_error": nothing.masked_scatter(there, error.cpu()).tolist(),
        "control_spread": nothing.masked_scatter(there, spread.cpu()).tolist(),
        "control_norm": nothing.masked_scatter(there, c.norm(dim=1).cpu()).tolist(),
        "control_age": torch.where(there, age.double(), nothing).tolist(),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}, clients
