"""Dirichlet topic skew, in the three conventions of the literature. Their alphas are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedfault.dealing.owners import (
    ATTEMPTS,
    Ints,
    apportion,
    check_request,
    draw_log_dirichlet,
    draw_until_accepted,
    even_sizes,
    group_positions,
    normalise_logs,
    number_topics,
    propose_larger_alpha,
    shuffle_topics,
)
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.corpus import Deal, Document, Partition

MEANING = {
    "per_client": "a client's topic law ~ Dir(alpha * prior) (Hsu)",
    "per_topic": "a topic's shares over clients ~ Dir(alpha) (Yurochkin)",
    "balanced": "a topic's shares over clients ~ Dir(alpha), full clients left out (NIID-Bench)",
}


@register("partition", cite=("hsu2019",))
def topic_skew(
    *,
    alpha: Annotated[float, Field(ge=1e-9, le=1e9)] = 0.3,
    convention: Literal["per_client", "per_topic", "balanced"] = "per_client",
    min_samples: int = 1,
) -> Partition:
    """Clients differ in topics, by Dirichlet draws: the smaller `alpha`, the fewer topics a client has.

    per_client: clients of one size, each with its own topic law q ~ Dir(alpha * prior); documents are drawn without
    replacement, from the topics that are left (Hsu, Qi and Brown, arXiv 1909.06335).
    per_topic: the shares of a topic over the clients are ~ Dir(alpha, ..., alpha); sizes vary (Yurochkin et al.,
    ICML 2019). balanced: as per_topic, but clients that hold n / N documents get no more (Li et al., ICDE 2022).

    per_topic and balanced are drawn again until every client has `min_samples`, at most 1,000 times, which bends the
    law where that is rare. `UserError` if it never happens.

    alpha: of the Dirichlet distribution: the smaller, the fewer topics a client has
    convention: how the draws are made: topics of each client, clients of each topic, or with clients of equal sizes
    min_samples: documents that every client gets at least

    >>> documents = [Document("text", topic) for topic in "aaaabbbbcccc"]
    >>> for alpha in (100.0, 0.01):
    ...     deal = topic_skew(alpha=alpha)(documents, 3, np.random.default_rng(0))
    ...     print(*("".join(documents[i].topic for i in own) for own in deal.clients))
    aabc abbc abcc
    aaaa cccc bbbb
    """

    def partition(documents: Sequence[Document], num_clients: int, generator: np.random.Generator) -> Deal:
        n = len(documents)
        check_request(n, num_clients, min_samples)
        members = shuffle_topics(number_topics("topic_skew", [d.topic for d in documents], num_clients), generator)
        members = [members[k] for k in generator.permutation(len(members))]  # `balanced` depends on their order
        sizes = np.array([len(own) for own in members])

        def draw(alpha: float) -> Ints:
            return _deal_per_topic(sizes, num_clients, alpha, convention == "balanced", generator)

        attempts, acceptance = 1, None
        if convention == "per_client":
            counts = _deal_per_client(sizes, num_clients, alpha, generator)
        else:
            drawn = draw_until_accepted(lambda: draw(alpha), min_samples)
            if isinstance(drawn, int):
                raise _explain_refusal(f"topic_skew, convention {convention}", alpha, min_samples, drawn, draw)
            counts, attempts, acceptance = drawn
        owner = np.empty(n, dtype=np.int64)
        for own, count in zip(members, counts, strict=True):
            owner[own] = np.repeat(np.arange(num_clients), count)
        note = f"alpha {alpha:g} is of the convention {convention}, {MEANING[convention]}; other conventions differ"
        return Deal(group_positions(owner, num_clients), attempts, acceptance, notes=(note,))

    return partition


def _deal_per_client(sizes: Ints, num_clients: int, alpha: float, generator: np.random.Generator) -> Ints:
    """Draw the number of documents of each topic at each client, (K, N), with client laws q_i ~ Dir(alpha * prior).

    Drawing a client's topics in one multinomial, keeping what the topics still hold and drawing the rest from the
    other topics is, in law, the paper's drawing one by one with renormalisation when a topic runs out.
    """
    left = sizes.copy()  # (K,)
    prior = sizes / sizes.sum()  # (K,)
    log_q = draw_log_dirichlet(np.tile(alpha * prior, (num_clients, 1)), generator)  # (N, K)
    counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
    wanted = even_sizes(int(sizes.sum()), num_clients)
    for i in generator.permutation(num_clients):  # who comes last has the least choice
        missing = int(wanted[i])
        while missing:  # every turn but the last empties a topic
            rest = np.flatnonzero(left)
            drawn = np.minimum(generator.multinomial(missing, normalise_logs(log_q[i, rest])), left[rest])
            counts[rest, i] += drawn
            left[rest] -= drawn
            missing -= int(drawn.sum())
    return counts


def _deal_per_topic(
    sizes: Ints, num_clients: int, alpha: float, balanced: bool, generator: np.random.Generator
) -> Ints:
    """Draw the number of documents of each topic at each client, (K, N), once."""
    logs = draw_log_dirichlet(np.full((len(sizes), num_clients), alpha), generator)  # (K, N)
    if not balanced:
        return apportion(sizes, normalise_logs(logs))
    counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
    for k, size in enumerate(sizes):
        open_ = np.flatnonzero(counts.sum(axis=0) < sizes.sum() / num_clients)  # never empty while a topic is left
        counts[k, open_] = apportion(size, normalise_logs(logs[k, open_]))
    return counts


def _explain_refusal(name: str, alpha: float, min_samples: int, best: int, draw: Callable[[float], Ints]) -> UserError:
    """Make the error that says that no draw gave every client `min_samples`, and what would work."""
    num_topics, num_clients = (counts := draw(alpha)).shape
    ways = ["convention=per_client, whose clients have one size", *propose_larger_alpha(draw, alpha, min_samples)]
    ways.append("fewer clients (federation.total_clients)")
    if best > 0:
        ways.append(f"min_samples of at most {best}")
    return UserError(
        f"{name}, alpha {alpha:g}: in {ATTEMPTS} attempts never did all {num_clients} clients get {min_samples} of the "
        f"{counts.sum()} documents in {num_topics} topics (the smallest client had at most {best}); "
        f"what works: {', or '.join(ways)}"
    )
