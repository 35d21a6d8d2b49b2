"""Five indices of how different clients are, each beside its value under chance.

The null of an index is its distribution when documents are dealt at random to clients of the same sizes. Documents are
dealt, not tokens: words come in bursts, so that a token-level test finds every corpus heterogeneous.

    index                null by              unit
    token_js             permuted documents   nats
    label_emd            permuted documents   0 to 2
    embedding_mmd        permuted documents   squared RBF distance
    gradient             permuted halves      squared gradient norm
    size_cv              multinomial sizes    ratio
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PERMUTATIONS = 400  # p-values are multiples of 1/401
EXPECTED = 5  # token types that an average client has fewer times are pooled (Cochran's rule)


@dataclass(frozen=True)
class Index:
    """A measure of skew beside its distribution under chance, the null."""

    value: float
    chance: float  # mean under the null
    sd: float  # standard deviation under the null; zero where the null has no spread
    skewness: float  # of the null: few or unequal documents make a long tail
    p: float  # share of null draws that are as large, this one included

    @property
    def excess(self) -> float:
        """The value minus its mean under chance."""
        return self.value - self.chance

    @property
    def z(self) -> float:
        """Standard deviations from chance; zero where chance gives exactly this.

        The long tail of a skewed null is drawn in by a cube root, (6/g)((1 + g x/2)^(1/3) - 1) for x standard deviations
        and skewness g, so that the tail beyond 3 is about as thin as a normal one (Wilson and Hilferty, PNAS 1931).
        """
        if abs(self.excess) <= 1e-12 * max(1.0, abs(self.chance)):
            return 0.0
        if self.sd == 0:
            return math.copysign(math.inf, self.excess)
        x, g = self.excess / self.sd, self.skewness
        return float(6 / g * ((1 + g * x / 2) ** (1 / 3) - 1)) if g * x > 1e-9 else x


def compare_with_permutations(statistic: Callable[[Ints], float], owner: Ints, generator: np.random.Generator) -> Index:
    """Compare `statistic(owner)` with its values for owners (n,) in random order."""
    null = np.array([statistic(generator.permutation(owner)) for _ in range(PERMUTATIONS)])
    return _compare_with_null(statistic(owner), null)


def _compare_with_null(value: float, null: Floats) -> Index:
    close = 1e-9 * max(1.0, abs(value))  # sums in another order are not other values
    mean, sd = float(null.mean()), float(null.std(ddof=1))
    skewness = float(((null - mean) ** 3).mean() / sd**3) if sd > 0 else 0.0
    return Index(value, mean, sd, skewness, (1 + int((null >= value - close).sum())) / (1 + len(null)))


def token_js(document: Ints, token: Ints, owner: Ints, generator: np.random.Generator) -> Index:
    """Jensen-Shannon divergence of the clients' token distributions, sum_i w_i KL(p_i | p), weights by tokens, in nats.

    document, token: (m,) one entry a token; owner: (n,) the client of each document. 0 for equal clients, at most ln N.
    Finite texts differ by chance: with V types, N clients and m tokens the value is about (V - 1)(N - 1) / 2m even
    under IID, and more with bursty words; `excess` is corrected for that. Types that an average client has fewer than
    five times are pooled.

    Reference: Lin, IEEE Trans. Inf. Theory 37 (1991).
    """
    num_clients = int(owner.max()) + 1
    types = _common_types(token, num_clients)
    V = int(types.max()) + 1
    pair, count = np.unique(document * V + types, return_counts=True)  # one entry a (document, type)
    of, kind = pair // V, pair % V
    whole = np.bincount(kind, count, minlength=V)
    constant = _x_log_x(np.array([count.sum()])).sum() - _x_log_x(whole).sum()

    def statistic(owner: Ints) -> float:
        c = np.bincount(owner[of] * V + kind, count, minlength=num_clients * V).reshape(num_clients, V)
        return float((_x_log_x(c).sum() - _x_log_x(c.sum(axis=1)).sum() + constant) / count.sum())

    return compare_with_permutations(statistic, owner, generator)


def _common_types(token: Ints, num_clients: int) -> Ints:
    """Renumber token ids so that the rare ones share a number."""
    _, types, count = np.unique(token, return_inverse=True, return_counts=True)
    common = count >= EXPECTED * num_clients
    renumbered = np.where(common, np.cumsum(common) - 1, common.sum())
    return renumbered[types]


def _x_log_x(counts: NDArray[Any]) -> Floats:
    product: Floats = counts * np.log(np.maximum(counts, 1))  # 0 log 0 = 0
    return product


def label_emd(labels: Ints, owner: Ints, generator: np.random.Generator) -> Index:
    """Mean over clients, weighted by documents, of sum_k |p_i(k) - p(k)|: twice the total variation, 0 to 2.

    labels, owner: (n,). Zhao et al. (arXiv 1806.00582) call it earth mover's distance.
    """
    num_clients, K = int(owner.max()) + 1, int(labels.max()) + 1
    law = np.bincount(labels, minlength=K) / len(labels)

    def statistic(owner: Ints) -> float:
        counts = np.bincount(owner * K + labels, minlength=num_clients * K).reshape(num_clients, K)
        return float(np.abs(counts - counts.sum(axis=1, keepdims=True) * law).sum() / len(labels))

    return compare_with_permutations(statistic, owner, generator)


def shared_mass(counts: Ints) -> float:
    """Mean over pairs of clients of sum_k min(p_i(k), p_j(k)): the topic mass that two clients share, 0 to 1.

    counts: (N, K) documents by topic. 1 for a single client.
    """
    p = counts / counts.sum(axis=1, keepdims=True)
    N = len(p)
    if N == 1:
        return 1.0
    ordered = np.sort(p, axis=0)  # sum over pairs of the smaller one: the smallest value is it N - 1 times, and so on
    return float((ordered * np.arange(N - 1, -1, -1)[:, None]).sum() / (N * (N - 1) / 2))


def size_cv(sizes: Ints) -> Index:
    """Coefficient of variation of the clients' sizes (N,), beside sizes that documents drawn one by one would give.

    n CV^2 is the chi-square statistic of equal sizes with N - 1 degrees of freedom. Sizes more even than chance, as
    partitioners make them, are no skew: they have z = 0 and p = 1.
    """
    N, n = len(sizes), int(sizes.sum())
    generator = np.random.default_rng(0)  # of the null only, so that equal sizes always have equal numbers
    null = generator.multinomial(n, np.full(N, 1 / N), size=PERMUTATIONS).std(axis=1) * N / n
    value = float(sizes.std() * N / n)
    found = _compare_with_null(value, null)
    return found if value > found.chance else Index(value, value, found.sd, found.skewness, 1.0)


def effective_clients(sizes: Ints) -> float:
    """1 / sum_i p_i^2: the number of clients of equal size that would weigh as evenly."""
    p = sizes / sizes.sum()
    return float(1 / (p @ p))


def embedding_mmd(embeddings: Floats, owner: Ints, generator: np.random.Generator) -> Index:
    """Unbiased squared maximum mean discrepancy, the mean over pairs of clients; RBF kernel of median bandwidth.

    embeddings: (m, d); owner: (m,), each client with two documents at least. Zero on average under IID.

    Reference: Gretton et al., JMLR 13 (2012), eq. 3.
    """
    squared = (embeddings**2).sum(axis=1)
    distance = np.maximum(squared[:, None] + squared[None] - 2 * embeddings @ embeddings.T, 0)
    off = distance[np.triu_indices(len(distance), 1)]
    kernel = np.exp(-distance / max(float(np.median(off)), 1e-12))
    np.fill_diagonal(kernel, 0)
    size = np.bincount(owner).astype(float)  # (N,)

    def statistic(owners: Ints) -> Floats:
        """All permutations (R, m) at once: one matrix product instead of R small ones."""
        member = (owners[:, None] == np.arange(len(size))[:, None]) / size[:, None]  # (R, N, m)
        summed = member @ kernel  # (R, N, m)
        own = (summed * member).sum(axis=2)  # (R, N) mean kernel within a client, the zero diagonal included
        every = (summed.sum(axis=1) * member.sum(axis=1)).sum(axis=1)  # (R,) the same over all pairs of clients
        between = (every - own.sum(axis=1)) / (len(size) * (len(size) - 1))
        mmd: Floats = 2 * (own * size / (size - 1)).mean(axis=1) - 2 * between
        return mmd

    null = statistic(np.stack([generator.permutation(owner) for _ in range(PERMUTATIONS)]))
    return _compare_with_null(float(statistic(owner[None])[0]), null)


@dataclass(frozen=True)
class GradientSkew:
    """Differences between the clients' gradients at one point."""

    between: Index  # variance between clients, mean_i <g_i1, g_i2> - mean_{i != j} <g_i1, g_j2>
    within: float  # variance of one half's gradient about its client's, mean |g_i1 - g_i2|^2 / 2
    dissimilarity: float  # B^2 = mean |grad f_i|^2 / |grad f|^2; 1 for equal clients; NaN where noise hides grad f


def gradient_skew(first: Floats, second: Floats, generator: np.random.Generator) -> GradientSkew:
    """Split-half estimates from two gradients of every client, on disjoint halves of its documents: (N, P) each, N >= 2.

    Noise of the halves is independent, so it cancels in every product of a first and a second half: `between` is
    unbiased for the variance of the clients' true gradients, and zero on average under IID. The null exchanges second
    halves between clients.

    Reference: B is FedProx's measure (Li et al., MLSys 2020, definition 3).
    """
    inner = first @ second.T  # (N, N)
    N, whole = len(inner), float(inner.sum())
    rows = np.arange(N)

    def variance(order: Ints) -> float:
        own = float(inner[rows, order].sum())
        return own / N - (whole - own) / (N * (N - 1))

    between = compare_with_permutations(variance, rows, generator)
    common = whole / N**2
    return GradientSkew(
        between,
        float(((first - second) ** 2).sum(axis=1).mean() / 2),
        float(np.trace(inner) / N / common) if common > 0 else math.nan,
    )
