import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.dealing.owners import draw_log_dirichlet
from fedfault.errors import UserError
from fedfault.partitions.topic_skew import topic_skew
from fedfault.registry import build
from fedfault.testing.decks import deal_documents

CONVENTIONS = ["per_client", "per_topic", "balanced"]


def topic_counts(topics, clients):
    """(N, K) documents of each topic at each client."""
    return np.array([np.bincount(topics[own], minlength=topics.max() + 1) for own in clients])


def test_log_dirichlet_has_the_dirichlet_moments():
    a = np.array([0.3, 0.6, 2.1])
    draws = np.exp(draw_log_dirichlet(np.tile(a, (20_000, 1)), np.random.default_rng(0)))
    p = a / a.sum()
    variance = p * (1 - p) / (a.sum() + 1)
    assert (np.abs(draws.mean(axis=0) - p) < 4 * np.sqrt(variance / 20_000)).all()
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.05)
    np.testing.assert_allclose(draws.sum(axis=1), 1)


def test_log_dirichlet_stays_finite_where_the_shares_underflow():
    assert np.isfinite(draw_log_dirichlet(np.full((100, 50), 1e-9), np.random.default_rng(0))).all()


@pytest.mark.long
@pytest.mark.parametrize(("n_clients", "alpha"), [(5, 0.3), (8, 2.0)])
def test_per_topic_shares_have_the_mean_and_variance_of_the_dirichlet(n_clients, alpha):
    """Mean 1/N, variance (1/N)(1 - 1/N) / (N alpha + 1), over 2,000 draws; so many topics that no draw is refused."""
    num_topics, size = 40, 500
    topics = np.repeat(np.arange(num_topics), size)
    split, generator = topic_skew(alpha=alpha, convention="per_topic"), np.random.default_rng(3)
    shares = np.concatenate(
        [topic_counts(topics, deal_documents(split, topics, n_clients, generator)) / size for _ in range(50)], 1
    )
    mean, variance = 1 / n_clients, (1 - 1 / n_clients) / n_clients / (n_clients * alpha + 1)
    assert shares.shape == (n_clients, 2000)
    assert np.abs(shares.mean(axis=1) - mean).max() < 4 * np.sqrt(variance / 2000)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.1)


def hsu_by_the_letter(topics, num_clients, alpha, generator):
    """Hsu et al. 2019, one document at a time: (N, K) counts."""
    left = np.bincount(topics)
    prior = left / left.sum()
    counts = np.zeros((num_clients, len(left)), dtype=int)
    for i in range(num_clients):
        q = generator.dirichlet(alpha * prior)
        for _ in range(len(topics) // num_clients):
            law = q * (left > 0)
            k = generator.choice(len(left), p=law / law.sum())
            counts[i, k] += 1
            left[k] -= 1
    return counts


@pytest.mark.slow
def test_per_client_is_in_law_the_drawing_one_by_one_of_the_paper():
    topics = np.repeat([0, 1, 2], [12, 6, 3])
    generator = np.random.default_rng(4)
    split = topic_skew(alpha=4.0)
    ours = np.array(
        [topic_counts(topics, deal_documents(split, topics, 3, generator)) for _ in range(1500)]
    )  # (draws, N, K)
    letter = np.array([hsu_by_the_letter(topics, 3, 4.0, generator) for _ in range(1500)])
    for statistic in (
        lambda counts: (counts**2).sum((1, 2)),  # the skew of the whole split
        lambda counts: (counts.max(axis=2) == 7).sum(1),  # clients of a single topic
        lambda counts: (counts[:, :, 2] > 0).sum(1),  # clients that have the rarest topic
    ):
        a, b = statistic(ours), statistic(letter)
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 1500)


def test_per_client_sizes_are_equal():
    sizes = [
        len(own) for own in deal_documents(topic_skew(alpha=0.05), np.arange(1007) % 4, 10, np.random.default_rng(0))
    ]
    assert sorted(set(sizes)) == [100, 101]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_large_alpha_is_close_to_the_global_mixture(convention):
    topics = np.repeat(np.arange(4), [4000, 3000, 2000, 1000])
    clients = deal_documents(topic_skew(alpha=1e4, convention=convention), topics, 5, np.random.default_rng(0))
    law = topic_counts(topics, clients)
    law = law / law.sum(axis=1, keepdims=True)
    assert np.abs(law - [0.4, 0.3, 0.2, 0.1]).sum(axis=1).max() / 2 < 0.03  # total variation


def test_per_client_with_a_tiny_alpha_leaves_nine_clients_of_ten_one_topic():
    topics = np.random.default_rng(0).integers(4, size=10_000)
    counts = topic_counts(topics, deal_documents(topic_skew(alpha=1e-3), topics, 100, np.random.default_rng(1)))
    assert (counts.max(axis=1) / counts.sum(axis=1) > 0.99).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["per_topic", "balanced"])
def test_with_a_tiny_alpha_a_topic_is_at_one_client(convention):
    topics = np.repeat(np.arange(60), 100)
    counts = topic_counts(
        topics, deal_documents(topic_skew(alpha=1e-3, convention=convention), topics, 4, np.random.default_rng(1))
    )
    assert (counts.max(axis=0) > 99).mean() >= 0.9


@pytest.mark.long
def test_balanced_stops_a_client_at_its_share():
    """Before its last topic a client holds less than n / N, so it ends below n / N plus one topic."""
    topics = np.repeat(np.arange(40), 25)
    split = topic_skew(alpha=0.05, convention="balanced")
    for seed in range(8):
        assert max(map(len, deal_documents(split, topics, 5, np.random.default_rng(seed)))) < 1000 / 5 + 25


@pytest.mark.slow
@pytest.mark.long
def test_topics_do_not_favour_low_or_high_client_numbers():
    topics = np.arange(400) % 4
    generator = np.random.default_rng(0)
    for convention in CONVENTIONS:
        split = topic_skew(alpha=1.0, convention=convention)
        counts = np.array(
            [topic_counts(topics, deal_documents(split, topics, 4, generator)) for _ in range(120)]
        )  # (120, N, K)
        sd = counts.std(axis=0) / np.sqrt(120)
        assert (np.abs(counts.mean(axis=0) - 25) < 4.5 * sd + 1).all(), convention


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(-3, 6).map(lambda e: 10**e),
    num_clients=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=12),
    seed=st.integers(0, 2**32),
)
def test_any_alpha_and_number_of_clients_gives_a_partition(alpha, num_clients, sizes, seed):
    topics = np.repeat(np.arange(len(sizes)), sizes)
    if num_clients > len(topics):
        with pytest.raises(UserError, match="at most"):
            deal_documents(topic_skew(alpha=alpha), topics, num_clients, np.random.default_rng(seed))
        return
    clients = deal_documents(topic_skew(alpha=alpha), topics, num_clients, np.random.default_rng(seed))
    assert sorted(np.concatenate(clients).tolist()) == list(range(len(topics)))
    assert {len(own) for own in clients} <= {len(topics) // num_clients, len(topics) // num_clients + 1}


@pytest.mark.long
@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1.0, 1e6, 1e9])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_thousand_clients_end_with_a_partition_or_an_explanation(convention, alpha):
    topics = np.arange(20_000) % 4
    split = topic_skew(alpha=alpha, convention=convention)
    start = time.perf_counter()
    if convention != "per_client" and alpha < 1:  # four topics at four clients
        with pytest.raises(UserError, match="what works: convention=per_client"):
            deal_documents(split, topics, 1000, np.random.default_rng(0))
    else:
        clients = deal_documents(split, topics, 1000, np.random.default_rng(0))
        assert min(map(len, clients)) >= 1
        assert sum(map(len, clients)) == 20_000
    assert time.perf_counter() - start < 30  # no hang; usually well under a second


@pytest.mark.slow
def test_a_split_that_is_never_drawn_is_explained():
    topics = np.arange(400) % 4
    with pytest.raises(UserError) as error:
        deal_documents(
            topic_skew(alpha=0.01, convention="per_topic", min_samples=5), topics, 20, np.random.default_rng(0)
        )
    for part in ("per_topic", "alpha 0.01", "1000 attempts", "20 clients", "400 documents", "4 topics", "alpha of"):
        assert part in str(error.value)


@pytest.mark.slow
def test_the_proposed_alpha_works():
    topics = np.arange(400) % 4
    with pytest.raises(UserError) as error:
        deal_documents(
            topic_skew(alpha=0.01, convention="balanced", min_samples=5), topics, 20, np.random.default_rng(0)
        )
    proposed = float(str(error.value).split("alpha of about ")[1].split(",")[0])
    clients = deal_documents(
        topic_skew(alpha=proposed, convention="balanced", min_samples=5), topics, 20, np.random.default_rng(1)
    )
    assert min(map(len, clients)) >= 5


@pytest.mark.parametrize(
    "options", [{"alpha": 0.0}, {"alpha": -1}, {"alpha": float("nan")}, {"convention": "per_label"}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="topic_skew"):
        build("partition", "topic_skew", **options)
