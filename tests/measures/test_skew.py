"""The indices by hand, their laws under chance, and that they rise with the skew."""

import numpy as np
import pytest
import scipy

from fedfault.measures import skew
from fedfault.registry import build
from fedfault.testing.decks import documents

TEXTS, TYPES = 300, 60
LABELS = np.arange(TEXTS) % 5


@pytest.fixture(scope="module")
def texts():
    """300 documents of five topics in bursts: each document has token laws of its own around its topic's."""
    generator = np.random.default_rng(0)
    topic_laws = generator.dirichlet(np.full(TYPES, 0.5), size=5)
    rows = [
        generator.choice(TYPES, 40 + i % 30, p=generator.dirichlet(20 * topic_laws[k])) for i, k in enumerate(LABELS)
    ]
    return np.repeat(np.arange(TEXTS), [len(r) for r in rows]), np.concatenate(rows)


def owners(name, seed, num_clients=10, labels=LABELS, **options):
    deal = build("partition", name, **options)(documents(labels), num_clients, np.random.default_rng(seed))
    owner = np.empty(len(labels), dtype=np.int64)
    for client, own in enumerate(deal.clients):
        owner[own] = client
    return owner


def embedded(seed):
    """A point a document, around a centre for each topic."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(5, 8))[LABELS] + generator.normal(size=(TEXTS, 8))


def test_token_divergence_by_hand():
    """Two clients with one token each, a and b, ten times: JSD = ln 2. With equal texts: 0."""
    document, token = np.repeat([0, 1], 10), np.repeat([3, 9], 10)
    generator = np.random.default_rng(0)
    assert skew.token_js(document, token, np.array([0, 1]), generator).value == pytest.approx(np.log(2))
    assert skew.token_js(document, np.tile([3, 9], 10), np.array([0, 1]), generator).value == pytest.approx(
        0, abs=1e-12
    )


def test_token_divergence_is_the_g_statistic(texts):
    """G = 2 m JSD, with scipy's likelihood-ratio test of homogeneity on the same table."""
    document, token = texts
    owner = owners("iid", 0, num_clients=3)
    table = np.array([np.bincount(token[owner[document] == k], minlength=TYPES) for k in range(3)])
    table = table[:, table.sum(0) >= 3 * skew.EXPECTED]
    kept = np.isin(token, np.flatnonzero(np.bincount(token, minlength=TYPES) >= 3 * skew.EXPECTED))
    ours = skew.token_js(document[kept], token[kept], owner, np.random.default_rng(0)).value
    g = scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")[0]
    assert 2 * table.sum() * ours == pytest.approx(g)


@pytest.mark.slow
def test_token_divergence_by_chance_is_the_textbook_bias_when_tokens_are_independent():
    """E[JSD] = (V - 1)(N - 1) / 2m: 20,000 tokens of 50 types in short documents, 5 clients."""
    generator = np.random.default_rng(0)
    document, token = np.repeat(np.arange(4000), 5), generator.integers(50, size=20_000)
    index = skew.token_js(document, token, np.arange(4000) % 5, generator)
    assert index.chance == pytest.approx(49 * 4 / 40_000, rel=0.03)
    assert abs(index.z) < 3


def test_rare_types_are_counted_together():
    """Three types of five or more in each of two clients stay; the other two share a number."""
    token = np.repeat([7, 8, 9, 100, 200], [10, 20, 30, 9, 1])
    np.testing.assert_array_equal(skew._common_types(token, 2), np.repeat([0, 1, 2, 3, 3], [10, 20, 30, 9, 1]))


def test_label_distance_by_hand():
    """Clients (3, 1) and (1, 3) of two labels: each |3/4 - 1/2| + |1/4 - 1/2| = 1/2."""
    labels, owner = np.array([0, 0, 0, 1, 0, 1, 1, 1]), np.repeat([0, 1], 4)
    assert skew.label_emd(labels, owner, np.random.default_rng(0)).value == pytest.approx(0.5)


def test_isolated_labels_have_the_largest_distance():
    """N clients with one of N labels each: |1 - 1/N| + (N - 1)/N = 2 (1 - 1/N)."""
    labels = np.repeat(np.arange(4), 10)
    assert skew.label_emd(labels, labels, np.random.default_rng(0)).value == pytest.approx(1.5)


def test_shared_topic_mass_by_hand():
    """Laws (1, 0), (0, 1), (1/2, 1/2): the pairs share 0, 1/2, 1/2."""
    assert skew.shared_mass(np.array([[4, 0], [0, 2], [3, 3]])) == pytest.approx(1 / 3)
    assert skew.shared_mass(np.array([[5, 5]])) == 1.0


def test_sizes_by_hand():
    """Sizes 10, 30: mean 20, standard deviation 10, CV 1/2; 1 / (1/16 + 9/16) = 1.6 effective clients."""
    sizes = np.array([10, 30])
    assert skew.size_cv(sizes).value == pytest.approx(0.5)
    assert skew.size_cv(sizes).p < 0.05
    assert skew.effective_clients(sizes) == pytest.approx(1.6)


def test_sizes_more_even_than_chance_are_no_skew():
    index = skew.size_cv(np.array([100, 100, 100, 100]))
    assert (index.value, index.z, index.p) == (0.0, 0.0, 1.0)


def test_mmd_by_hand():
    """Points 0, 0 and 1, 1: squared distances 0 and 1, median 1, so 1 + 1 - 2 exp(-1)."""
    points, owner = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])
    index = skew.embedding_mmd(points, owner, np.random.default_rng(0))
    assert index.value == pytest.approx(2 - 2 * np.exp(-1))


@pytest.mark.long
def test_gradient_variance_is_unbiased():
    """Clients with true gradients m_i and noise far larger: the mean of 400 estimates is sum |m_i - m|^2 / (N - 1)."""
    generator = np.random.default_rng(0)
    m = generator.normal(size=(6, 3))
    truth = ((m - m.mean(0)) ** 2).sum() / 5
    draws = [skew.gradient_skew(*(m + 2 * generator.normal(size=(2, 6, 3))), generator) for _ in range(400)]
    values = np.array([d.between.value for d in draws])
    assert abs(values.mean() - truth) < 4 * values.std() / 20
    within = np.array([d.within for d in draws])
    assert abs(within.mean() - 3 * 4) < 4 * within.std() / 20


def test_dissimilarity_is_one_for_equal_clients_and_by_hand_for_two():
    """Gradients (2, 0) and (0, 2): mean |g|^2 = 4, mean gradient (1, 1), so B^2 = 2."""
    generator = np.random.default_rng(0)
    same = np.ones((3, 4))
    assert skew.gradient_skew(same, same, generator).dissimilarity == pytest.approx(1)
    two = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert skew.gradient_skew(two, two, generator).dissimilarity == pytest.approx(2)
    assert np.isnan(skew.gradient_skew(two, -two, generator).dissimilarity)


SEEDS = 100


@pytest.mark.slow
@pytest.mark.long
def test_iid_splits_look_iid(texts):
    """|z| < 3 for every index, in at least 99 of 100 seeds."""
    document, token = texts
    outside = dict.fromkeys(("token_js", "label_emd", "embedding_mmd", "size_cv", "gradient"), 0)
    for seed in range(SEEDS):
        owner, generator = owners("iid", seed), np.random.default_rng(seed)
        gradients = generator.standard_t(4, size=(2, 10, 30)) + 1
        found = {
            "token_js": skew.token_js(document, token, owner, generator),
            "label_emd": skew.label_emd(LABELS, owner, generator),
            "embedding_mmd": skew.embedding_mmd(embedded(seed)[:200], owner[:200], generator),
            "size_cv": skew.size_cv(np.bincount(owner)),
            "gradient": skew.gradient_skew(*gradients, generator).between,
        }
        for name, index in found.items():
            outside[name] += abs(index.z) >= 3
    assert max(outside.values()) <= SEEDS / 100, outside


@pytest.mark.slow
def test_every_index_falls_as_alpha_rises(texts, monkeypatch):
    """Spearman's rank correlation of the mean over 10 seeds with alpha is below -0.9."""
    monkeypatch.setattr(skew, "PERMUTATIONS", 8)  # the null does not matter here, only that it is subtracted
    document, token = texts
    alphas = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0]
    means = {"token_js": [], "label_emd": [], "embedding_mmd": [], "shared_mass": []}
    for alpha in alphas:
        rows = []
        for seed in range(10):
            owner, generator = owners("topic_skew", seed, alpha=alpha), np.random.default_rng(seed)
            counts = np.array([np.bincount(LABELS[owner == k], minlength=5) for k in range(10)])
            rows.append(
                (
                    skew.token_js(document, token, owner, generator).excess,
                    skew.label_emd(LABELS, owner, generator).value,
                    skew.embedding_mmd(embedded(0), owner, generator).value,
                    -skew.shared_mass(counts),
                )
            )
        for name, value in zip(means, np.mean(rows, axis=0), strict=True):
            means[name].append(value)
    for name, values in means.items():
        assert scipy.stats.spearmanr(alphas, values).statistic < -0.9, (name, values)


def test_an_index_equal_to_chance_has_z_zero_and_a_sure_difference_infinite_z():
    assert skew.Index(1.0, 1.0, 0.0, 0.0, 1.0).z == 0.0
    assert skew.Index(2.0, 1.0, 0.0, 0.0, 0.1).z == np.inf
    assert skew.Index(2.0, 1.5, 0.25, 0.0, 0.1).z == pytest.approx(2.0)


def test_the_z_of_a_skewed_null_has_a_normal_tail():
    """Of values drawn from a gamma law of skewness 1, as the null is, 0.13 % are beyond 3; in plain deviations over 1 %."""
    values = np.random.default_rng(0).gamma(4.0, size=20_000)  # mean 4, standard deviation 2, skewness 1
    found = np.array([skew.Index(v, 4.0, 2.0, 1.0, 1.0).z for v in values])
    assert (found > 3).mean() < 0.003
    assert (values > 10).mean() > 0.008
    assert skew.Index(7.0, 4.0, 2.0, 1e-12, 1.0).z == pytest.approx(1.5)
