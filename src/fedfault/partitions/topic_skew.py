"""Dirichlet topic skew, in the three conventions of the literature. Their alphas are not comparable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedfault.errors import UserError
from fedfault.partitions.owners import Ints, check, even_sizes, grouped, shuffled_topics
from fedfault.registry import register
from fedfault.types import Partition

ATTEMPTS = 1000  # draws until every client has min_samples; NIID-Bench tries for ever
HINT_ATTEMPTS = 20  # draws for each larger alpha that the error message may propose

Floats = NDArray[np.float64]


@register("partition")
def topic_skew(
    *,
    alpha: Annotated[float, Field(ge=1e-9, le=1e9)] = 0.3,
    convention: Literal["per_client", "per_topic", "balanced"] = "per_client",
    min_samples: int = 1,
) -> Partition:
    """Dirichlet topic skew: the smaller `alpha`, the fewer topics a client has.

    per_client: clients of one size, each with its own topic law q ~ Dir(alpha * prior); documents are drawn without
    replacement, from the topics that are left (Hsu, Qi and Brown, arXiv 1909.06335).
    per_topic: the shares of a topic over the clients are ~ Dir(alpha, ..., alpha); sizes vary (Yurochkin et al.,
    ICML 2019). balanced: as per_topic, but clients that hold n / N documents get no more (Li et al., ICDE 2022).

    per_topic and balanced are drawn again until every client has `min_samples`, at most 1,000 times, which bends the
    law where that is rare. `UserError` if it never happens.

    >>> def topics_of(alpha):
    ...     topics = np.repeat(np.arange(4), 100)
    ...     clients = topic_skew(alpha=alpha)(topics, 8, np.random.default_rng(0))
    ...     return sorted(len(np.unique(topics[own])) for own in clients)
    >>> topics_of(100.0)[0], topics_of(0.001)[0]
    (4, 1)
    """

    def partition(topics: Ints, num_clients: int, generator: np.random.Generator) -> list[Ints]:
        n = len(topics)
        check(n, num_clients, min_samples)
        members = shuffled_topics(topics, generator)
        members = [members[k] for k in generator.permutation(len(members))]  # `balanced` depends on their order
        sizes = np.array([len(own) for own in members])
        if convention == "per_client":
            counts = _per_client(sizes, num_clients, alpha, generator)
        else:
            counts = _accepted(
                lambda alpha: _per_topic(sizes, num_clients, alpha, convention == "balanced", generator),
                alpha,
                min_samples,
                f"topic_skew, convention {convention}",
            )
        owner = np.empty(n, dtype=np.int64)
        for own, count in zip(members, counts, strict=True):
            owner[own] = np.repeat(np.arange(num_clients), count)
        return grouped(owner, num_clients)

    return partition


def log_dirichlet(alpha: Floats, generator: np.random.Generator) -> Floats:
    """Logarithms of Dirichlet draws, over the last axis; exact where the shares themselves underflow to zero.

    Gamma(a) = Gamma(a + 1) U^(1/a), so log Gamma(a) = log Gamma(a + 1) - E/a with E exponential
    (Marsaglia and Tsang, ACM TOMS 2000, sec. 6). Shares that cannot be told from zero are not all zero here.
    """
    log_gamma = np.log(generator.standard_gamma(alpha + 1)) - generator.standard_exponential(alpha.shape) / alpha
    largest = log_gamma.max(axis=-1, keepdims=True)
    log_sum: Floats = largest + np.log(np.exp(log_gamma - largest).sum(axis=-1, keepdims=True))
    return log_gamma - log_sum


def _shares(logs: Floats) -> Floats:
    """exp(logs), normalised over the last axis; the largest is brought to one first, so that the sum is never zero."""
    scaled = np.exp(logs - logs.max(axis=-1, keepdims=True))
    shares: Floats = scaled / scaled.sum(axis=-1, keepdims=True)
    return shares


def _cut(size: int, shares: Floats) -> Ints:
    """`size` documents cut at the cumulated shares, (N,)."""
    cuts = np.floor(np.cumsum(shares)[:-1] * size).astype(np.int64)
    return np.diff(cuts.clip(0, size), prepend=0, append=size)


def _per_client(sizes: Ints, num_clients: int, alpha: float, generator: np.random.Generator) -> Ints:
    """Documents of each topic at each client, (K, N), with client laws q_i ~ Dir(alpha * prior).

    Drawing a client's topics in one multinomial, keeping what the topics still hold and drawing the rest from the
    other topics is, in law, the paper's drawing one by one with renormalisation when a topic runs out.
    """
    left = sizes.copy()  # (K,)
    prior = sizes / sizes.sum()  # (K,)
    log_q = log_dirichlet(np.tile(alpha * prior, (num_clients, 1)), generator)  # (N, K)
    counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
    wanted = even_sizes(int(sizes.sum()), num_clients)
    for i in generator.permutation(num_clients):  # who comes last has the least choice
        missing = int(wanted[i])
        while missing:  # every turn but the last empties a topic
            rest = np.flatnonzero(left)
            drawn = np.minimum(generator.multinomial(missing, _shares(log_q[i, rest])), left[rest])
            counts[rest, i] += drawn
            left[rest] -= drawn
            missing -= int(drawn.sum())
    return counts


def _per_topic(sizes: Ints, num_clients: int, alpha: float, balanced: bool, generator: np.random.Generator) -> Ints:
    """Documents of each topic at each client, (K, N), one attempt."""
    logs = log_dirichlet(np.full((len(sizes), num_clients), alpha), generator)  # (K, N)
    if not balanced:
        return np.stack([_cut(size, p) for size, p in zip(sizes, _shares(logs), strict=True)])
    counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
    for k, size in enumerate(sizes):
        open_ = np.flatnonzero(counts.sum(axis=0) < sizes.sum() / num_clients)  # never empty while a topic is left
        counts[k, open_] = _cut(size, _shares(logs[k, open_]))
    return counts


def _accepted(draw: Callable[[float], Ints], alpha: float, min_samples: int, name: str) -> Ints:
    """The first draw of counts (K, N) in which every client has `min_samples`."""
    best = -1
    for _ in range(ATTEMPTS):
        counts = draw(alpha)
        smallest = int(counts.sum(axis=0).min())
        if smallest >= min_samples:
            return counts
        best = max(best, smallest)
    num_topics, num_clients = counts.shape
    ways = ["convention=per_client, whose clients have one size"]
    for larger in alpha * 2.0 ** np.arange(1, 25):
        if any(draw(larger).sum(axis=0).min() >= min_samples for _ in range(HINT_ATTEMPTS)):
            ways.append(f"alpha of about {larger:.2g}")
            break
    ways.append("fewer clients (federation.total_clients)")
    if best > 0:
        ways.append(f"min_samples of at most {best}")
    raise UserError(
        f"{name}, alpha {alpha:g}: in {ATTEMPTS} attempts never did all {num_clients} clients get {min_samples} of the "
        f"{counts.sum()} documents in {num_topics} topics (the smallest client had at most {best}); "
        f"what works: {', or '.join(ways)}"
    )
