"""Effective rank, CKA and cosines against their limits and against dense formulas."""

from __future__ import annotations

import math

import pytest
import torch

from fedfault.measures.spectrum import centre_rows, cka, effective_rank, mean_cosines, mean_of_pairs, singular_values

G = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64)


def hsic(X: torch.Tensor, Y: torch.Tensor) -> float:
    """HSIC_1 from whole kernels with zeros on the diagonal: Song et al., JMLR 13 (2012)."""
    n = len(X)
    K, L = ((Z @ Z.T).fill_diagonal_(0) for Z in (X, Y))
    ones = torch.ones(n, dtype=K.dtype)
    between = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    return float(((K @ L).trace() + between - 2 / (n - 2) * (ones @ K @ L @ ones)) / (n * (n - 3)))


def test_the_effective_rank_of_n_equal_values_is_n_and_of_one_value_1():
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([0.0, 0.2])) == pytest.approx(1)
    assert effective_rank(torch.tensor([1.0, 3.0])) == pytest.approx(
        math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    )
    assert math.isnan(effective_rank(torch.zeros(3)))


def test_an_isotropic_gaussian_fills_all_its_dimensions_and_a_line_one():
    d, n = 10, 4000
    assert effective_rank(singular_values(centre_rows(normal(n, d)))) == pytest.approx(d, rel=0.01)
    line = normal(n, 1) * normal(1, d)
    assert effective_rank(singular_values(centre_rows(line))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_singular_values_are_those_of_an_svd(shape):
    X = normal(*shape)
    torch.testing.assert_close(singular_values(X).flip(0), torch.linalg.svdvals(X))


def test_what_is_not_finite_has_no_singular_values():
    X = normal(4, 3)
    X[1, 2] = torch.inf
    assert math.isnan(effective_rank(singular_values(X)))


def test_rows_that_are_all_equal_become_zero_without_rounding():
    X = torch.full((7, 3), 0.1) * torch.tensor([1.0, -3.0, 1e6])
    assert not centre_rows(X).any()


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("n", [9, 200])  # less and more than k d: the two ways to the products
def test_cka_knows_no_rotation_no_scale_and_no_order(debiased, n):
    X, Y = centre_rows(normal(2, n, 6))
    Q = torch.linalg.qr(normal(6, 6))[0]
    found = cka(torch.stack([X, -0.3 * X @ Q, Y]), debiased=debiased)
    torch.testing.assert_close(found.diagonal(), torch.ones(3, dtype=found.dtype))
    assert float(found[0, 1]) == pytest.approx(1)
    assert float(found[0, 2]) == pytest.approx(float(found[1, 2]))
    torch.testing.assert_close(found, found.T, rtol=1e-12, atol=0.0)
    assert float(found[0, 2]) < 0.9


@pytest.mark.parametrize("n", [9, 200])
def test_cka_is_its_formula(n):
    X, Y = centre_rows(normal(2, n, 6))
    plain = (X.T @ Y).norm() ** 2 / ((X.T @ X).norm() * (Y.T @ Y).norm())
    assert float(cka(torch.stack([X, Y]))[0, 1]) == pytest.approx(float(plain))
    unbiased = hsic(X, Y) / math.sqrt(hsic(X, X) * hsic(Y, Y))
    assert float(cka(torch.stack([X, Y]), debiased=True)[0, 1]) == pytest.approx(unbiased)


def test_only_debiased_cka_sees_that_independent_representations_are_unlike():
    n, d, draws = 24, 8, 400
    pairs = [centre_rows(normal(2, n, d)) for _ in range(draws)]
    biased, unbiased = (torch.stack([cka(p, debiased=b)[0, 1] for p in pairs]) for b in (False, True))
    assert float(biased.mean()) == pytest.approx(d / (n + d), rel=0.1)
    assert abs(float(unbiased.mean())) < 4 * float(unbiased.std()) / math.sqrt(draws)
    assert float(unbiased.min()) < 0


def test_cka_of_a_constant_or_of_three_positions_is_not_defined():
    X = normal(2, 9, 3).float()
    X[1] = 0.1
    assert math.isnan(float(cka(centre_rows(X))[0, 1]))
    assert math.isnan(float(cka(centre_rows(X), debiased=True)[0, 1]))
    assert bool(cka(centre_rows(normal(2, 3, 3)), debiased=True).isnan().all())


def test_cosines_are_means_over_positions_of_each_position_s_cosine():
    X = normal(3, 5, 4)
    for i in range(3):
        for j in range(3):
            expected = torch.nn.functional.cosine_similarity(X[i], X[j]).mean()
            assert float(mean_cosines(X)[i, j]) == pytest.approx(float(expected))
    X[1, 2] = 0
    assert bool(mean_cosines(X)[1].isnan().all())
    assert bool(mean_cosines(X)[0, 2].isfinite())


def test_a_mean_of_pairs_leaves_the_diagonal_out():
    assert mean_of_pairs(torch.tensor([[1.0, 0.2, 0.3], [0.2, 1.0, 0.7], [0.3, 0.7, 1.0]])) == pytest.approx(0.4)
    assert math.isnan(mean_of_pairs(torch.ones(1, 1)))
