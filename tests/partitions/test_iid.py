import numpy as np

from fedfault.partitions.iid import iid
from fedfault.testing.decks import deal_documents


def test_sizes_differ_by_one_at_most():
    sizes = [len(own) for own in deal_documents(iid(), np.zeros(107), 10, np.random.default_rng(0))]
    assert sorted(set(sizes)) == [10, 11]


def test_topic_counts_follow_the_hypergeometric_law():
    """40 of 100 documents are of topic 1; a client of 20 has 8 of them on average, variance 20 .4 .6 80/99."""
    topics = np.repeat([0, 1], [60, 40])
    generator = np.random.default_rng(1)
    counts = np.array(
        [[topics[own].sum() for own in deal_documents(iid(), topics, 5, generator)] for _ in range(2000)]
    )  # (2000, 5)
    variance = 20 * 0.4 * 0.6 * 80 / 99
    assert np.abs(counts.mean(axis=0) - 8).max() < 4 * np.sqrt(variance / 2000)
    np.testing.assert_allclose(counts.var(axis=0), variance, rtol=0.15)
