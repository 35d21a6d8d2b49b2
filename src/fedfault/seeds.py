"""Named random streams: every draw is a function of (seed, purpose, ...), never of what was drawn before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def entropy(seed: int, *name: str | int) -> int:
    """Hash the seed and every part of the name to 128 bits."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *name)).encode(), digest_size=16).digest(), "little")


def rng(seed: int, *name: str | int) -> np.random.Generator:
    """Make a numpy generator for one purpose: `rng(7, "batches", round, client)`. The order of calls never matters.

    >>> rng(7, "cohort", 3).permutation(5).tolist()
    [1, 2, 4, 3, 0]
    """
    return np.random.default_rng(entropy(seed, *name))


def torch_rng(seed: int, *name: str | int) -> torch.Generator:
    """Make a torch generator on the CPU; draw there and move the result, so that a seed is the same on every device."""
    import torch

    return torch.Generator().manual_seed(entropy(seed, *name) % 2**63)
