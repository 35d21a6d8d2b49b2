import numpy as np
import pytest

from fedfault.dealing.bins import deal_by_score, describe_range, label_emd


def test_bins_are_cut_at_the_ranks_and_go_to_clients_at_random():
    score = np.array([3.0, -1.0, 7.0, 5.0, 0.0, 9.0, 8.0])
    seen = set()
    for seed in range(60):
        owner = deal_by_score(score, 3, 1.0, np.random.default_rng(seed))
        low, middle, high = owner[[1, 4, 0]], owner[[3, 2]], owner[[6, 5]]
        assert all(len(set(own.tolist())) == 1 for own in (low, middle, high))
        seen.add((low[0], middle[0], high[0]))
    assert len(seen) == 6


def test_equal_scores_come_in_random_order():
    own = [deal_by_score(np.zeros(4), 2, 1.0, np.random.default_rng(seed)) for seed in range(400)]
    together = np.mean([owner[0] == owner[1] for owner in own])
    assert abs(together - 1 / 3) < 0.08


@pytest.mark.parametrize("purity", [0.0, 0.3, 1.0])
def test_purity_is_the_share_that_does_not_come_from_everywhere(purity):
    generator = np.random.default_rng(0)
    owner = np.array([deal_by_score(np.arange(400), 4, purity, generator) for _ in range(100)]).reshape(100, 4, 100)
    own = np.mean([max(np.bincount(bin_, minlength=4)) / 100 for draw in owner for bin_ in draw])
    same = np.mean([(draw[0][:, None] == draw[0][None]).mean() for draw in owner])  # two of a bin at one client
    assert abs(own - (purity + (1 - purity) / 4)) < (0.01 if purity else 0.06)  # the largest of equals is larger
    stays = purity + (1 - purity) / 4
    assert abs(same - (stays**2 + (1 - stays) ** 2 / 3)) < 0.02


@pytest.mark.parametrize(("n", "num_clients"), [(7, 7), (100, 7), (101, 10), (50, 49)])
def test_no_client_has_less_than_an_even_share(n, num_clients):
    generator = np.random.default_rng(1)
    for purity in np.linspace(0, 1, 21):
        for length in (None, generator.integers(0, 9, n)):
            sizes = np.bincount(deal_by_score(generator.random(n), num_clients, purity, generator, length))
            assert sizes.min() >= n // num_clients
            assert len(sizes) == num_clients


def test_at_equal_length_clients_differ_in_score_only():
    generator = np.random.default_rng(2)
    length = generator.integers(1, 200, 3000)
    score = length + 20 * generator.standard_normal(3000)

    def means(values, owner):
        return np.bincount(owner, weights=values) / np.bincount(owner)

    free, matched = (deal_by_score(score, 5, 1.0, generator, given) for given in (None, length))
    assert np.ptp(means(length, free)) > 100
    assert np.ptp(means(length, matched)) < 10
    assert np.ptp(means(score - length, matched)) > 40  # five bins of a normal law are 2.8 deviations apart


def test_label_emd_by_hand():
    """p = (1/2, 1/2); clients of 3 and 1 documents with (2/3, 1/3) and (0, 1): 3/4 * 1/3 + 1/4 * 1."""
    assert label_emd(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    assert label_emd(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == 0
    assert label_emd(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3])) == pytest.approx(2 * (1 - 1 / 4))


def test_the_spread_is_that_of_the_clients_means():
    assert describe_range(np.array([1.0, 2.0, 30.0]), np.array([1, 1, 0])) == "1.5 to 30"
