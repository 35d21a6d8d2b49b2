"""MOON's contrast by hand, and on batches with padding."""

from __future__ import annotations

import math

import pytest
import torch

from fedfault.algorithms.moon import contrastive_loss
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import pack_blocks
from fedfault.types.task import Step
from tiny import VOCAB, tiny_llama


def rows(*vectors) -> torch.Tensor:
    return torch.tensor([vectors])  # (1, B, d)


def test_contrast_by_hand():
    """Cosines 0 and 1 at T = 1/2: -log(1 / (1 + e^2)); cosines 1 and 0: -log(e^2 / (e^2 + 1)); their mean over a batch."""
    right, up = [3.0, 0.0], [0.0, 0.5]
    assert contrastive_loss(rows(right), rows(up), rows(right), 0.5).item() == pytest.approx(math.log(1 + math.e**2))
    assert contrastive_loss(rows(right), rows(right), rows(up), 0.5).item() == pytest.approx(math.log(1 + math.e**-2))
    both = contrastive_loss(rows(right, right), rows(up, right), rows(right, up), 0.5)
    assert both.item() == pytest.approx((math.log(1 + math.e**2) + math.log(1 + math.e**-2)) / 2)


def test_descending_turns_towards_the_global_and_away_from_the_previous():
    z = rows([1.0, 1.0]).requires_grad_()
    contrastive_loss(z, rows([1.0, 0.0]), rows([0.0, 1.0]), 0.5).sum().backward()
    step = -z.grad[0, 0]
    assert step[0] > 0 > step[1]


def test_equal_models_give_no_gradient():
    z = rows([1.0, -2.0]).requires_grad_()
    other = rows([0.3, 0.4])
    loss = contrastive_loss(z, other, other, 0.5)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert z.grad.abs().max() < 1e-7


def test_padding_does_not_count_and_has_no_gradient():
    one = [rows([1.0, 2.0]), rows([2.0, -1.0]), rows([-1.0, 1.0])]
    padded = [torch.cat([v, torch.zeros(1, 3, 2)], 1) for v in one]
    padded[0].requires_grad_()
    loss = contrastive_loss(*padded, 0.5)
    loss.sum().backward()
    assert loss.item() == pytest.approx(contrastive_loss(*one, 0.5).item())
    assert bool(padded[0].grad.isfinite().all())
    assert padded[0].grad[0, 1:].abs().max() == 0


def test_language_models_leave_padding_out_of_the_contrast():
    """A last batch that is not full, beside a client whose batch is: the same loss and gradient as without the padding."""
    model, g = tiny_llama(), torch.Generator().manual_seed(1)
    texts = [[torch.randint(1, VOCAB, (3 + i,), generator=g).tolist() for i in range(4)] for _ in range(2)]
    train = [pack_blocks(t, 6, 0) for t in texts]
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    task = LanguageTask(opened, train, {}, {})
    start = task.init(0).flat
    flat, other, third = (start + 0.2 * torch.randn(2, len(start), generator=g) for _ in range(3))

    def grad(clients: list[int], rows: torch.Tensor, real: torch.Tensor):
        seen = []

        def extra(z, see):
            seen.append(contrastive_loss(z, see(other[clients]), see(third[clients]), 0.5))
            return seen[0]

        _, gradient, _ = task.grad(flat[clients], Step(torch.tensor(clients), rows, real, extra_loss=extra))
        return gradient, seen[0].detach()

    real = torch.tensor([[True, True, True], [True, False, False]])
    gradient, contrast = grad([0, 1], torch.tensor([[0, 1, 2], [1, 0, 0]]), real)
    alone, by_itself = grad([1], torch.tensor([[1]]), real[1:, :1])
    assert contrast[1].item() == pytest.approx(by_itself.item(), rel=1e-5)
    assert abs(contrast[1].item() - math.log(2)) > 1e-4
    torch.testing.assert_close(gradient[1], alone[0], rtol=1e-4, atol=1e-6)
    assert bool(gradient.isfinite().all())
