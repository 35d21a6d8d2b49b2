"""Arrays that another program gives, as numpy arrays that fit, or an error that says what does not. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfault.errors import UserError

ROUNDED = 1e-3  # of the largest squared length: how far inner products in half precision may be off


def read_halves(gradients: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (K, P) of one shape. Raises `UserError` for anything else."""
    if not isinstance(gradients, tuple | list) or len(gradients) != 2:
        raise UserError("gradients should be two arrays (K, P), of two halves of every client's examples")
    first, second = (read_rows("gradients", half) for half in gradients)
    if first.shape != second.shape:
        raise UserError(f"gradients: the halves have the shapes {first.shape} and {second.shape}; they should be equal")
    return first, second


def read_rows(said: str, value: Any) -> np.ndarray:
    """An array (K, P) from one, or from K rows; rows of unequal lengths are named."""
    if not hasattr(value, "ndim") and isinstance(value, Sequence):
        parts = [read_array(f"{said}[{i}]", row) for i, row in enumerate(value)]
        parts = [row.ravel() if row.ndim else row[None, None] for row in parts]  # a lone number is no row
        odd = next((i for i, row in enumerate(parts) if row.shape != parts[0].shape), None)
        if odd is not None:
            raise UserError(
                f"{said}[{odd}] has {parts[odd].size} numbers and {said}[0] has {parts[0].size}: clients of unequal shapes "
                "have no common mean; pad lower ranks with zeros, or give products=, their inner products"
            )
        value = np.stack(parts) if parts else np.empty((0, 0))
    rows = read_array(said, value)
    if rows.ndim != 2 or not rows.size:
        raise UserError(f"{said} has the shape {rows.shape}: a row of P numbers is needed for each of the K clients")
    return rows


def read_array(said: str, value: Any) -> np.ndarray:
    """Numbers as float64. Raises `UserError` for what are none."""
    if hasattr(value, "detach"):  # a tensor, which may need gradients or lie on a GPU
        value = value.detach().cpu().double().numpy()
    if np.ma.is_masked(value):
        raise UserError(f"{said} has masked numbers, which would be taken for measured ones: give the others alone")
    if np.iscomplexobj(value):
        raise UserError(f"{said} has complex numbers; real ones are needed")
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{said} should be numbers, not {value!r:.60} ({error})") from error
    except OverflowError as error:
        raise UserError(f"{said} has a whole number beyond what a float holds, 1.8e308") from error


def read_row(said: str, value: Any) -> np.ndarray:
    """A number for each of the K clients, (K,). Raises `UserError` for anything else."""
    found = read_array(said, value)
    if found.ndim != 1:
        raise UserError(f"{said} has the shape {found.shape}: a number is needed for each of the K clients")
    return found


def read_number(said: str, value: Any) -> float:
    """One number. Raises `UserError` for several."""
    found = read_array(said, value)
    if found.size != 1:
        raise UserError(f"{said} should be one number, not {found.size}")
    return float(found.ravel()[0])


def read_counts(said: str, value: Any, K: int) -> list[int]:
    """K whole numbers from 0 on; zeros where they are not known. Raises `UserError` for other numbers."""
    if value is None:
        return [0] * K
    found = read_row(said, value)
    if not (np.isfinite(found).all() and (found >= 0).all() and (found == found.round()).all()):
        raise UserError(f"{said}={found.tolist()}: counts are whole numbers from 0 on")
    return [int(v) for v in found]


def read_products(value: Any) -> np.ndarray | None:
    """Inner products (K, K), positive semidefinite. Raises `UserError` for an array that cannot be one of these."""
    if value is None:
        return None
    found = read_array("products", value)
    square = found.ndim == 2 and found.shape[0] == found.shape[1] and found.size > 0
    if not square or not np.allclose(found, found.T, equal_nan=True) or (found.diagonal() < 0).any():
        raise UserError(
            f"products has the shape {found.shape}: the inner products of K updates are a symmetric (K, K) with nothing "
            "below 0 on its diagonal"
        )
    whole = np.isfinite(found.diagonal())  # the others are of updates that are not finite
    if not _are_products(found[np.ix_(whole, whole)]):
        raise UserError(
            "products cannot be inner products of updates, as some are larger than the lengths on the diagonal allow, or "
            "not finite: each should be the sum over all parameters of the product of two clients' updates"
        )
    return found


def _are_products(found: np.ndarray) -> bool:
    """Whether there are rows with these inner products: they are finite, and positive semidefinite up to rounding."""
    largest = found.diagonal().max(initial=0.0) or 1.0
    try:
        np.linalg.cholesky(found / largest + ROUNDED * np.eye(len(found)))
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(found).all())


def check_width(said: str, row: np.ndarray, rows: np.ndarray) -> None:
    """Raise `UserError` unless a row (P,) is as wide as the rows (K, P)."""
    if row.size != rows.shape[1]:
        raise UserError(f"{said} has {row.size} numbers and updates have {rows.shape[1]}: they are of other parameters")
