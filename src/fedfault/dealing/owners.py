"""Owners of documents: every document's client, draws until no client has too few, and requests that cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfault.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ATTEMPTS = 1000  # draws at most until every client has min_samples; NIID-Bench tries for ever
RATED = 100  # draws at least for the acceptance rate
HINTS = 20  # draws with each larger alpha that an error message may propose


class NeedsColumn(UserError):
    """The documents lack what a partition deals them by; `setting` is the key of `data` that names a column with it."""

    def __init__(self, message: str, setting: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.setting = setting


def check_request(n: int, num_clients: int, min_samples: int) -> None:
    """Raise `UserError`, which says what would work, if `n` documents are too few for `min_samples` at every client."""
    if num_clients < 1:
        raise UserError(f"{num_clients} clients; there must be at least one")
    if min_samples < 1:
        raise UserError(f"min_samples={min_samples}; every client needs at least one document")
    if num_clients * min_samples > n:
        fits = n // min_samples
        ways = [f"at most {fits} clients (federation.total_clients)"] if fits else []
        ways += [f"min_samples of at most {n // num_clients}"] if min_samples > 1 and n >= num_clients else []
        ways += [f"at least {num_clients * min_samples} documents (data.max_samples)"]
        raise UserError(
            f"{n} documents cannot give {num_clients} clients {min_samples} each; what works: {', or '.join(ways)}"
        )


def number_names(names: Iterable[str]) -> Ints:
    """Give every name a number: its place among the different names in alphabetical order, (n,).

    >>> number_names(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    names = list(names)
    place = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.fromiter((place[name] for name in names), dtype=np.int64, count=len(names))


def check_groups(method: str, groups: Sequence[str], texts: Sequence[str]) -> None:
    """Raise `UserError` where some documents have a group and others none: these would be a group without a name."""
    without = [text for group, text in zip(groups, texts, strict=True) if not group]
    if without and len(without) < len(groups):
        raise UserError(
            f"{method}: {len(without):,} of {len(groups):,} documents have no group, the first is {without[0]!r:.60}; fill "
            "the column data.group_column in their rows, or remove these"
        )


def number_topics(method: str, names: Sequence[str], num_clients: int) -> Ints:
    """Give every document the number of its topic, (n,). `NeedsColumn` if several clients would share a single topic.

    >>> number_topics("topic_skew", ["b", "a", "b"], 2).tolist()
    [1, 0, 1]
    """
    topics = number_names(names)
    if num_clients > 1 and not topics.any():
        raise NeedsColumn(
            f"{method}: all {len(names)} documents have the same topic, {names[0]!r}, so that no two clients "
            "could differ in topics; what works: data.topic_column=COLUMN of a table, text files in a sub-folder for each "
            "topic, a corpus that has topics, or a partition that needs none (iid, quantity_skew, style_skew, token_skew)",
            "topic_column",
        )
    return topics


def group_positions(key: Ints, num_groups: int) -> list[Ints]:
    """Group positions by their key 0, 1, ..., in rising order: the documents of each client, if the keys are owners.

    >>> [own.tolist() for own in group_positions(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    ends = np.cumsum(np.bincount(key, minlength=num_groups))
    return np.split(np.argsort(key, kind="stable"), ends[:-1])


def shuffle_topics(topics: Ints, generator: np.random.Generator) -> list[Ints]:
    """The positions of every topic's documents, (n_k,) each in random order."""
    order = generator.permutation(len(topics))
    return [order[own] for own in group_positions(topics[order], int(topics.max()) + 1)]


def even_sizes(n: int, parts: int) -> Ints:
    """Divide `n` into `parts` sizes that differ by one at most, the larger first."""
    return n // parts + (np.arange(parts) < n % parts)


def isolate_classes(classes: Ints, num_clients: int, generator: np.random.Generator) -> Ints:
    """Give every client one class, returning owners (n,): with K classes in random order, client k gets class k mod K.

    The clients of a class share it evenly. Fewer clients than classes hold several each: class t is at client t mod N.

    >>> isolate_classes(np.array([0, 1, 1, 0]), 2, np.random.default_rng(0)).tolist()
    [1, 0, 0, 1]
    """
    members = shuffle_topics(classes, generator)
    order = generator.permutation(len(members))
    owner = np.empty(len(classes), dtype=np.int64)
    for place, own in enumerate(members[k] for k in order):
        clients = np.arange(place % num_clients, num_clients, len(members))
        owner[own] = np.repeat(clients, even_sizes(len(own), len(clients)))
    return owner


def note_sharing(what: str, num_classes: int, num_clients: int) -> tuple[str, ...]:
    """Note that `isolate_classes` could not give every client exactly one class (such as a `topic`) of its own."""
    if num_clients > num_classes:
        return (f"{num_classes} {what}s for {num_clients} clients: several clients share a {what}",)
    if num_clients < num_classes:
        return (f"{num_classes} {what}s for {num_clients} clients: a client holds several {what}s",)
    return ()


def redeal(owner: Ints, num_clients: int, share: float, generator: np.random.Generator) -> Ints:
    """Move `share` of every client's documents, rounded, into a pool that is dealt out evenly; returns owners (n,).

    Share 0 changes nothing; share 1 deals everything out anew, which is `iid`, sizes included.
    """
    order = generator.permutation(len(owner))
    given = [order[own][: round(share * len(own))] for own in group_positions(owner[order], num_clients)]
    pool = np.concatenate(given)
    after = owner.copy()
    after[pool] = generator.permutation(np.repeat(np.arange(num_clients), even_sizes(len(pool), num_clients)))
    return after


class AcceptedDraw(NamedTuple):
    """A draw in which every client has `min_samples`."""

    counts: Ints  # (..., N) documents at each client
    attempts: int  # draws made until this one
    acceptance: float  # share of such draws among at least `RATED`


def draw_until_accepted(draw: Callable[[], Ints], min_samples: int) -> AcceptedDraw | int:
    """Draw counts (..., N) until every client has `min_samples`.

    After `ATTEMPTS` in vain it returns the most documents that the smallest client ever had. Choosing among draws bends
    their law, the more the fewer are accepted: hence the acceptance rate, for which further draws are made after an early
    success.
    """
    best = -1
    for attempt in range(1, ATTEMPTS + 1):
        counts = draw()
        smallest = _smallest_client(counts)
        if smallest >= min_samples:
            more = max(0, RATED - attempt)
            passed = 1 + sum(_smallest_client(draw()) >= min_samples for _ in range(more))
            return AcceptedDraw(counts, attempt, passed / (attempt + more))
        best = max(best, smallest)
    return best


def propose_larger_alpha(draw: Callable[[float], Ints], alpha: float, min_samples: int) -> list[str]:
    """Propose a larger alpha with which a draw succeeded, in words; an empty list if none was found."""
    for larger in alpha * 2.0 ** np.arange(1, 25):
        if any(_smallest_client(draw(larger)) >= min_samples for _ in range(HINTS)):
            return [f"alpha of about {larger:.2g}"]
    return []


def _smallest_client(counts: Ints) -> int:
    """The number of documents at the client with the fewest, from counts (..., N)."""
    return int(counts.reshape(-1, counts.shape[-1]).sum(axis=0).min())


def apportion(n: int | Ints, shares: Floats) -> Ints:
    """Divide `n` documents (...) by shares (..., N) that sum to one, cutting at the cumulated shares.

    >>> apportion(10, np.array([0.25, 0.25, 0.5])).tolist()
    [2, 3, 5]
    """
    n = np.asarray(n)[..., None]
    cuts = np.floor(np.cumsum(shares, axis=-1)[..., :-1] * n + 1e-6).astype(np.int64)  # a sum of 0.1s may miss 0.7
    return np.diff(cuts.clip(0, n), axis=-1, prepend=0, append=n)


def draw_log_dirichlet(alpha: Floats, generator: np.random.Generator) -> Floats:
    """Draw the logarithms of Dirichlet shares, over the last axis; exact where the shares themselves underflow to zero.

    Gamma(a) = Gamma(a + 1) U^(1/a), so log Gamma(a) = log Gamma(a + 1) - E/a with E exponential
    (Marsaglia and Tsang, ACM TOMS 2000, sec. 6). Shares that cannot be told from zero are not all zero here.
    """
    log_gamma = np.log(generator.standard_gamma(alpha + 1)) - generator.standard_exponential(alpha.shape) / alpha
    largest = log_gamma.max(axis=-1, keepdims=True)
    log_sum: Floats = largest + np.log(np.exp(log_gamma - largest).sum(axis=-1, keepdims=True))
    return log_gamma - log_sum


def normalise_logs(logs: Floats) -> Floats:
    """exp(logs) normalised over the last axis; the largest becomes one first, so that the sum is never zero."""
    scaled = np.exp(logs - logs.max(axis=-1, keepdims=True))
    normalised: Floats = scaled / scaled.sum(axis=-1, keepdims=True)
    return normalised
