"""The layers that know the client axis."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.layers import _dropout_mask


def test_dropout_keeps_the_mean():
    mask = _dropout_mask(torch.Size([4, 100, 100]), torch.tensor([1, 2, 3, 2**61]), 0.3, torch.empty(0))
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
    per_client = mask.mean((1, 2))
    assert (per_client - 1).abs().max() < 5 * (0.3 / 0.7 / 1e4) ** 0.5  # five standard errors
    flat = mask.flatten(1) - 1
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05
