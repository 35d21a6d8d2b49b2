"""Exposure of a secret among others: by hand, and what chance gives."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.measures.exposure import find_exposure


def test_the_likeliest_of_256_has_8_bits_and_the_last_one_none():
    others = np.arange(1.0, 256.0)
    assert find_exposure(0.0, others) == 8
    assert find_exposure(300.0, others) == 0
    assert find_exposure(64.5, others) == pytest.approx(8 - np.log2(65))


def test_a_model_that_finds_all_alike_ranks_a_secret_in_the_middle():
    assert find_exposure(1.0, np.ones(255)) == pytest.approx(8 - np.log2(128.5))


def test_of_a_secret_that_nobody_knows_the_mean_is_1_44_bits_and_b_bits_have_a_chance_of_two_to_the_minus_b():
    losses = np.random.default_rng(0).normal(size=(4000, 256))
    seen = np.array([find_exposure(row[0], row[1:]) for row in losses])
    assert seen.mean() == pytest.approx(8 - np.log2(np.arange(1, 257)).mean(), abs=0.06)  # four standard errors
    assert (seen >= 3).mean() == pytest.approx(1 / 8, abs=0.02)
