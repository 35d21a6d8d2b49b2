"""Linear algebra of representations: how many directions they fill, and how alike two of them are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedfault.algebra import to_float64


def effective_rank(singular_values: Tensor) -> float:
    """exp(H(p)) with p = s / sum s and H = -sum p log p: n for n equal values, 1 for a single one; NaN where all are zero.

    singular_values: (n,), in any order.

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0

    Reference: Roy and Vetterli, EUSIPCO 2007.
    """
    s = to_float64(singular_values)
    return float(torch.special.entr(s / s.sum()).sum().exp())


def centre_rows(X: Tensor) -> Tensor:
    """Subtract the mean row from X (..., n, d), in float64: float32 rows that are all equal become exactly zero."""
    exact = to_float64(X)
    return exact - exact.mean(-2, keepdim=True)


def singular_values(X: Tensor) -> Tensor:
    """Singular values of X (n, d), in rising order, (min(n, d),): roots of the eigenvalues of the smaller of X'X and XX'.

    Those below 1e-8 of the largest are rounding errors. All are NaN where X is not finite.
    """
    exact = to_float64(X)
    if not bool(torch.isfinite(exact).all()):
        return exact.new_full((min(X.shape),), math.nan)
    products = exact.mT @ exact if X.shape[0] > X.shape[1] else exact @ exact.mT
    values: Tensor = torch.linalg.eigvalsh(products)
    return values.clamp(min=0).sqrt()


def mean_cosines(X: Tensor) -> Tensor:
    """Mean over positions of the cosine between models: X (k, n, d) -> (k, k); NaN where a position is zero."""
    unit: Tensor = (X / X.norm(dim=-1, keepdim=True)).flatten(1)
    return unit @ unit.T / X.shape[1]


def cka(X: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear CKA between k representations of the same n positions: X (k, n, d), centred -> (k, k).

        CKA = |X'Y|^2 / (|X'X| |Y'Y|)      (Frobenius norms)

    It is 1 for X and s X Q with an orthogonal Q. For independent isotropic X and Y it is about d / (n + d) and not zero, so
    that few positions make everything look alike. `debiased` puts the unbiased estimate HSIC_1 in the place of every
    product: zero on average for independent ones, and sometimes below. With x, y the diagonals of K = XX' and L = YY',
    whose rows sum to zero because X and Y are centred,

        n (n - 3) HSIC_1 = <K, L> - n / (n - 2) x'y + (sum x) (sum y) / ((n - 1) (n - 2))

    NaN where a representation is constant, and for debiased ones of less than four positions.

    References: Kornblith et al., arXiv 1905.00414; Song et al., JMLR 13 (2012); Nguyen et al., arXiv 2010.15327.
    """
    products, n = _kernel_products(X), X.shape[1]
    if debiased:
        if n < 4:
            return torch.full_like(products, math.nan)
        x = X.square().sum(-1)  # (k, n)
        total = x.sum(-1)
        products = products - n / (n - 2) * (x @ x.T) + total[:, None] * total / ((n - 1) * (n - 2))
    scale = products.diagonal().sqrt()  # NaN below zero
    return products / scale[:, None] / scale


def _kernel_products(X: Tensor) -> Tensor:
    """<X_i X_i', X_j X_j'> = |X_i' X_j|^2, (k, k): from (n, n) or from (k d, k d) products, whichever costs less."""
    k, n, d = X.shape
    if n < k * d:
        kernels = (X @ X.mT).flatten(1)  # (k, n n)
        return kernels @ kernels.T
    columns = X.transpose(0, 1).reshape(n, k * d)
    return (columns.T @ columns).view(k, d, k, d).square().sum((1, 3))


def mean_of_pairs(matrix: Tensor) -> float:
    """Mean over i != j of a symmetric (k, k); NaN for one row."""
    k = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (k * (k - 1))) if k > 1 else math.nan
