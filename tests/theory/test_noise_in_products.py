"""What Gaussian noise on the factors is in the product B A: FedIT has a term more than FFA-LoRA, and it grows with rank."""

from __future__ import annotations

import pytest
import torch

from fedfault.registry import build
from fedfault.types.adapter import Adapter, Layout, Site

D_OUT, D_IN, DRAWS = 6, 9, 4000


def draw_errors(name: str, rank: int, std: float, round: int = 1) -> tuple[torch.Tensor, Adapter]:
    """B A with noise on what an aggregation trains in a round, less B A: (DRAWS, d_out, d_in); and the adapter."""
    layout = Layout.of([Site("w", "lora", (rank, D_IN, D_OUT))])
    g = torch.Generator().manual_seed(0)
    x = Adapter(layout, torch.randn(layout.size, generator=g, dtype=torch.float64))
    noise = std * torch.randn(DRAWS, layout.size, generator=g, dtype=torch.float64)
    trained = build("aggregation", name).trained(layout, round)
    noise = noise if trained is None else noise.where(trained, 0.0)
    return Adapter(layout, x.flat + noise).delta(layout.sites[0]) - x.delta(layout.sites[0]), x


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize(("name", "round"), [("fedit", 1), ("ffa_lora", 1), ("rolora", 1), ("rolora", 2)])
def test_the_squared_error_of_the_product_is_that_of_its_terms(name, round, rank):
    """E|(B + N)(A + M) - B A|^2 = s^2 (d_out |A|^2 + d_in |B|^2) + s^4 r d_out d_in; without terms of frozen factors."""
    std = 0.8
    error, x = draw_errors(name, rank, std, round)
    A, B = x.layout.pair(x.flat, x.layout.sites[0])
    trained = build("aggregation", name).trained(x.layout, round)
    parts = x.layout.pair(torch.ones_like(x.flat) if trained is None else trained.double(), x.layout.sites[0])
    moves_A, moves_B = bool(parts.A.any()), bool(parts.B.any())
    expected = std**2 * (D_OUT * moves_B * float(A.square().sum()) + D_IN * moves_A * float(B.square().sum()))
    expected += std**4 * rank * D_OUT * D_IN * (moves_A and moves_B)
    assert moves_A + moves_B == (2 if name == "fedit" else 1)
    assert float(error.square().sum((1, 2)).mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_only_factors_that_are_trained_together_multiply_their_noise():
    """Four times the noise: 16 times the squared error with one factor, and more with both."""
    for name, amplified in (("ffa_lora", False), ("rolora", False), ("fedit", True)):
        low, high = (float(draw_errors(name, 4, std)[0].square().sum()) for std in (0.5, 2.0))
        assert (high / low > 20) == amplified
