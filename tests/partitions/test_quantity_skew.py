import numpy as np
import pytest

from fedfault.partitions.quantity_skew import quantity_skew
from fedfault.registry import find_citations
from fedfault.testing.decks import deal_documents, documents

TOPICS = np.repeat([0, 1, 2], [3000, 2000, 1000])


def sizes(split, num_clients, generator, n=4000):
    return np.array([len(own) for own in deal_documents(split, np.zeros(n, int), num_clients, generator)])


@pytest.mark.slow
@pytest.mark.parametrize(("num_clients", "alpha"), [(5, 2.0), (8, 5.0)])
def test_sizes_have_the_mean_and_variance_of_the_dirichlet(num_clients, alpha):
    """Mean n/N, variance n^2 (1/N)(1 - 1/N) / (N alpha + 1)."""
    generator, split = np.random.default_rng(0), quantity_skew(alpha=alpha)
    shares = np.array([sizes(split, num_clients, generator) for _ in range(400)]) / 4000
    variance = (1 - 1 / num_clients) / num_clients / (num_clients * alpha + 1)
    assert np.abs(shares.mean(axis=0) - 1 / num_clients).max() < 4 * np.sqrt(variance / 400)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.12)


@pytest.mark.slow
def test_log_sizes_have_the_spread_of_the_lognormal():
    generator, split = np.random.default_rng(1), quantity_skew(law="lognormal", sigma=0.5)
    logs = np.log([sizes(split, 10, generator) for _ in range(300)])
    np.testing.assert_allclose(logs.var(axis=1, ddof=1).mean(), 0.25, rtol=0.06)


def test_sigma_zero_gives_even_sizes():
    assert set(sizes(quantity_skew(law="lognormal", sigma=0.0), 10, np.random.default_rng(0))) == {400}


@pytest.mark.slow
def test_the_mixture_of_topics_is_the_same_for_all():
    """Chi-square homogeneity over 200 splits: sum over clients and topics of (O - E)^2 / E, mean (N - 1)(K - 1)."""
    generator, statistic = np.random.default_rng(2), []
    for _ in range(200):
        clients = deal_documents(quantity_skew(alpha=1.0, min_samples=30), TOPICS, 6, generator)
        counts = np.array([np.bincount(TOPICS[own], minlength=3) for own in clients])
        expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
        statistic.append(((counts - expected) ** 2 / expected).sum())
    assert abs(np.mean(statistic) - 10) < 4 * np.sqrt(20 / 200)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1e6])
def test_everybody_gets_min_samples_whatever_the_skew(alpha):
    """The rest goes by the shares: with a tiny alpha all of it to one client."""
    got = sizes(quantity_skew(alpha=alpha, min_samples=20), 10, np.random.default_rng(0), n=400)
    assert sorted(got)[:-1] == [20] * 9 if alpha < 1 else set(got) <= {39, 40, 41}
    assert got.sum() == 400


def test_it_says_what_unequal_sizes_do_to_the_steps():
    (note,) = quantity_skew()(documents([0] * 400), 2, np.random.default_rng(0)).notes
    assert "local_epochs" in note
    assert "local_steps" in note


def test_it_cites_those_who_have_studied_it():
    assert find_citations("partition", "quantity_skew") == ("li2022silos",)
