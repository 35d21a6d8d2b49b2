"""The number of clusters of clients, if there are any: k-means over their embeddings, k by silhouette against chance.

k-means always finds clusters, so that the best silhouette over k = 2, 3, ... means nothing by itself. It is compared with
the best silhouettes of clients to whom the very same documents were dealt anew at random, with the numbers that they had.
Under an IID split the true deal is one more such draw: k > 1 is chosen in at most one of DRAWS + 1 of them, whatever the
embeddings, their number and the sizes of the clients (a permutation test; Phipson and Smyth, 2010).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfault.seeds import rng

DRAWS = 39  # random deals, all of which the true one must beat: 1 chance in 40 under an IID split, where 5 % would do
LEVEL = 1 / (DRAWS + 1)  # of the tests: no deal reaches the true one
MOST = 8  # clusters at most
RESTARTS = 20  # of k-means++, the best of which counts
ROUNDING = 1e-12  # of a mean of vectors of length one: what is not farther off has no direction
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """The clusters of clients, and how sure it is that there are any."""

    labels: tuple[int, ...]  # (N,) the cluster of every client; clusters are numbered as clients meet them
    silhouettes: dict[int, float]  # k -> mean silhouette of the clients
    threshold: float | None  # what the best one had to exceed; None: too few clients to look for clusters
    p: float | None  # share of the deals, the true one included, whose best silhouette is at least as high
    p_apart: float | None  # share of the deals, the true one included, whose clients lie at least as far apart

    @property
    def k(self) -> int:
        """The number of clusters: 1 for clients that a random deal could have made."""
        return max(self.labels) + 1

    @property
    def sentence(self) -> str:
        """The result in words."""
        if self.threshold is None:
            return f"{len(self.labels)} clients are too few to look for clusters: one model for all"
        best = max(self.silhouettes.values())
        compared = f"best silhouette {best:.3f}, {self.threshold:.3f} at most by chance, p = {self.p:.3f}"
        if self.k == 1 and self.p_apart is not None and self.p_apart <= LEVEL:
            return (
                f"no clusters: the clients differ more than a random deal makes them (p = {self.p_apart:.3f}), but no "
                f"groups of them stand out: each is for itself, or one shades into the next ({compared})"
            )
        if self.k == 1:
            return f"no clusters: the clients are as alike as a random deal makes them ({compared})"
        members = ", ".join(str([i for i, c in enumerate(self.labels) if c == j]) for j in range(self.k))
        return f"{self.k} clusters: {members} ({compared})"

    def to_json(self) -> dict[str, Any]:
        """Return the content of clusters.json."""
        return {
            "k": self.k,
            "labels": list(self.labels),
            "silhouettes": self.silhouettes,
            "threshold": self.threshold,
            "p": self.p,
            "p_apart": self.p_apart,
            "sentence": self.sentence,
        }


def average_documents(documents: Array, owner: NDArray[np.int64], clients: int) -> Array:
    """The mean of every client's documents (n, d), as (N, d); owner (n,) says whose each is, and every client has one."""
    total = np.zeros((clients, documents.shape[1]))
    np.add.at(total, owner, documents)
    return np.asarray(total / np.bincount(owner, minlength=clients)[:, None])


def embed_clients(means: Array) -> Array:
    """Client embeddings (N, d): in which direction the mean of a client's documents lies from all clients' mean.

    Without that mean, which is most of every hidden state, and at length one: the mean of few documents lies farther off by
    chance, and lengths would make clusters of small clients and large ones.
    """
    return _normalise(means - means.mean(0))


def choose_clusters(documents: Array, owner: NDArray[np.int64], clients: int, seed: int) -> Clusters:
    """Clusters of clients from the embeddings (n, d) of documents and who owns each, (n,); every client owns one at least.

    Raises nothing: fewer than three clients, for whom no silhouette exists, are one cluster.
    """
    together = (0,) * clients
    if clients < 3:
        return Clusters(together, {}, None, None, None)
    found, apart = _judge_deal(documents, owner, clients, seed)
    best = max(score for score, _ in found.values())
    null, spreads = zip(*_draw_null(documents, owner, clients, seed), strict=True)
    threshold = max(null)
    k = max(found, key=lambda k: (found[k][0], -k))
    return Clusters(
        labels=_number_labels(found[k][1]) if best > threshold else together,
        silhouettes={k: score for k, (score, _) in found.items()},
        threshold=threshold,
        p=_compute_p(best, null),
        p_apart=_compute_p(apart, spreads),
    )


def _draw_null(documents: Array, owner: NDArray[np.int64], clients: int, seed: int) -> Iterator[tuple[float, float]]:
    """The best silhouette and the spread of every random deal."""
    for i in range(DRAWS):
        found, spread = _judge_deal(documents, rng(seed, "clusters", i).permutation(owner), clients, seed)
        yield max(score for score, _ in found.values()), spread


def _judge_deal(
    documents: Array, owner: NDArray[np.int64], clients: int, seed: int
) -> tuple[dict[int, tuple[float, NDArray[np.int64]]], float]:
    """The silhouettes of a deal, and how far its clients' means lie apart.

    That is the sum of their squared distances from the mean of all documents, by the size of the client.
    """
    means, sizes = average_documents(documents, owner, clients), np.bincount(owner, minlength=clients)
    spread = float(sizes @ np.square(means - documents.mean(0)).sum(1))
    return _compute_silhouettes(embed_clients(means), seed), spread


def _compute_p(value: float, null: Sequence[float]) -> float:
    """The share of the deals, the true one included, that are at least at its value."""
    return (1 + sum(drawn >= value for drawn in null)) / (len(null) + 1)


def _compute_silhouettes(points: Array, seed: int) -> dict[int, tuple[float, NDArray[np.int64]]]:
    """Compute k -> (mean silhouette, labels (N,)) of k-means with k = 2 ... N - 1, MOST at most."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    points, found = _rotate(points), {}
    start = int(rng(seed, "k-means").integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters
        for k in range(2, min(MOST, len(points) - 1) + 1):
            labels = KMeans(k, n_init=RESTARTS, random_state=start).fit_predict(points)
            several = 1 < len(set(labels.tolist())) < len(points)
            found[k] = (float(silhouette_score(points, labels)) if several else 0.0, labels)
    return found


def _rotate(points: Array) -> Array:
    """The same points (N, d) in their own N dimensions at most: distances stay, and k-means has less to add up."""
    centred = points - points.mean(0)
    U, s, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(U * s)


def _normalise(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > ROUNDING, length, np.inf))


def _number_labels(labels: NDArray[np.int64]) -> tuple[int, ...]:
    """
    >>> _number_labels(np.array([2, 0, 2, 1]))
    (0, 1, 0, 2)
    """
    place: dict[int, int] = {}
    return tuple(place.setdefault(label, len(place)) for label in labels.tolist())
