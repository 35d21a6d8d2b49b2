"""Owners of documents by score: clients get equal bins of the sorted documents."""

from __future__ import annotations

import math

import numpy as np

from fedfault.dealing.owners import Floats, Ints, even_sizes, redeal


def deal_by_score(
    score: Floats | Ints, num_clients: int, purity: float, generator: np.random.Generator, length: Ints | None = None
) -> Ints:
    """Sort documents by score and give each of N clients a bin of them, equal and at random; returns owners (n,).

    Then every client gives the share 1 - `purity` of its documents to a pool that is dealt out anew. With `length` (n,)
    the documents are ranked among those of about the same length, so that bins differ in score but not in length.

    >>> deal_by_score(np.array([5.0, 1.0, 6.0, 2.0]), 2, 1.0, np.random.default_rng(0)).tolist()
    [1, 0, 1, 0]
    """
    n = len(score)
    if length is not None:
        score = _rank_among_equal_lengths(score, length, num_clients, generator)
    order = np.lexsort((generator.random(n), score))  # equal scores in random order
    owner = np.empty(n, dtype=np.int64)
    owner[order] = np.repeat(generator.permutation(num_clients), even_sizes(n, num_clients))
    return redeal(owner, num_clients, 1 - purity, generator)


def _rank_among_equal_lengths(
    score: Floats | Ints, length: Ints, num_clients: int, generator: np.random.Generator
) -> Floats:
    """The rank of each document in its stratum of max(N, sqrt(n)) documents of about one length, from 0 to 1, (n,).

    Strata are as small as may be, yet large enough to have a document for every client and a ranking worth the name.
    """
    n = len(score)
    strata = max(1, n // max(num_clients, math.isqrt(n)))
    sizes = even_sizes(n, strata)
    stratum = np.empty(n, dtype=np.int64)
    stratum[np.lexsort((generator.random(n), length))] = np.repeat(np.arange(strata), sizes)
    place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = np.empty(n)
    rank[np.lexsort((generator.random(n), score, stratum))] = (place + 0.5) / np.repeat(sizes, sizes)
    return rank


def label_emd(owner: Ints, topics: Ints) -> float:
    """sum_k |p_i(k) - p(k)| over topics k, averaged over clients i by size: twice the total variation distance.

    Reference: Zhao et al., arXiv 1806.00582.

    >>> label_emd(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    1.0
    """
    N, K = owner.max() + 1, topics.max() + 1
    counts = np.bincount(owner * K + topics, minlength=N * K).reshape(N, K)
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(owner)
    return float(np.abs(counts - expected).sum() / len(owner))


def note_equal_scores(score: Floats | Ints, num_clients: int, unit: str) -> tuple[str, ...]:
    """Note that all documents have one score, so that dealing by it is dealing at random."""
    if num_clients < 2 or len(np.unique(score)) > 1:
        return ()
    return (f"all {len(score):,} documents have the same {unit}, {score[0]:.4g}: this is an IID split",)


def describe_range(score: Floats | Ints, owner: Ints) -> str:
    """Describe the range of the clients' mean scores: `21.5 to 48`."""
    sizes = np.bincount(owner)
    means = np.bincount(owner, weights=score)[sizes > 0] / sizes[sizes > 0]
    return f"{means.min():.4g} to {means.max():.4g}"
