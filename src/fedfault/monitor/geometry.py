"""Inner products of adapters: of what they add to the weights, and of their factors part by part. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedfault.monitor.adapters import FULL, Upload

WIDTH = 1 << 16  # numbers of every adapter that are in memory at once


def multiply_changes(uploads: Sequence[Upload]) -> np.ndarray:
    """Inner products (n, n) of the weight changes s B A that adapters make; ranks may differ.

    Nothing of size d_out x d_in is formed: <B A, B' A'> is the sum of (B^T B') * (A A'^T) elementwise.
    """
    products = np.zeros((len(uploads), len(uploads)))
    for site in uploads[0].sites:
        for pairs in zip(*(_read_pairs(site, u) for u in uploads), strict=True):
            A, B = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], 1)
            edges = np.cumsum([0, *(len(a) for a, _ in pairs)])[:-1]
            inner = (B.T @ B) * (A @ A.T)
            products += np.add.reduceat(np.add.reduceat(inner, edges, 0), edges, 1)
    return products


def _read_pairs(site: str, upload: Upload) -> list[tuple[np.ndarray, np.ndarray]]:
    """The factors A (r, d_in) and s B (d_out, r) of a layer, of each expert; kernels of convolutions are flat.

    E of AdaLoRA is multiplied into B, and where all of a layer is pruned there is a rank of zeros.
    """
    factors, experts = upload.sites[site], upload.experts(site)
    A, B = (factors[name].read() for name in "AB")
    A, B = A.reshape(len(A), math.prod(A.shape[1:])), upload.scale(site) * B.reshape(len(B), math.prod(B.shape[1:]))
    if "E" in factors:
        B = B * factors["E"].read().T
    if not len(A):
        A, B = np.zeros((1, A.shape[1])), np.zeros((len(B), 1))
    rank = len(A) // experts
    return [(A[e * rank : (e + 1) * rank], B[:, e::experts]) for e in range(experts)]


def split_parts(uploads: Sequence[Upload], frozen: Sequence[str] = ()) -> dict[str, list[str]]:
    """The names of the tensors of every part: `lora_A` and other factors, what is saved in full, patterns of the frozen."""
    found: dict[str, list[str]] = {}
    for name in sorted(uploads[0].tensors):
        found.setdefault(uploads[0].part(name, frozen), []).append(name)
    return dict(sorted(found.items(), key=lambda item: item[0] == FULL))


def multiply_part(uploads: Sequence[Upload], names: Sequence[str]) -> np.ndarray:
    """Inner products (n, n) of some tensors of adapters minus those of the first one; a lower rank is filled with zeros."""
    products = np.zeros((len(uploads), len(uploads)))
    for X in _read_blocks(uploads, names):
        moved = X - X[0]
        products += moved @ moved.T
    return products


def multiply_steps(start: Upload, uploads: Sequence[Upload], names: Sequence[str]) -> np.ndarray:
    """Inner products (n + 1, n + 1) of what uploads have changed of some tensors since the start, and last of the start."""
    products = np.zeros((len(uploads) + 1, len(uploads) + 1))
    for X in _read_blocks([*uploads, start], names):
        X[:-1] -= X[-1]
        products += X @ X.T
    return products


def _read_blocks(uploads: Sequence[Upload], names: Sequence[str]) -> Iterator[np.ndarray]:
    """Some tensors of all adapters, (n, some of their numbers), block after block; a lower rank is filled with zeros."""
    for name in names:
        shape = tuple(np.max([u.tensors[name].shape for u in uploads], axis=0))
        rows = [_fill(u.tensors[name].read(), shape).ravel() for u in uploads]
        for start in range(0, len(rows[0]), WIDTH):
            yield np.stack([row[start : start + WIDTH] for row in rows])


def _fill(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.pad(value, [(0, wide - own) for wide, own in zip(shape, value.shape, strict=True)])


def digest_parts(uploads: Sequence[Upload], parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The hash of every part of every adapter: equal where its bytes are."""
    return {part: [u.digest(names) for u in uploads] for part, names in parts.items()}
