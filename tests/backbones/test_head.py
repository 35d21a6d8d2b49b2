"""Loss and gradients of the chunked head against cross-entropy on whole logits."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones import head

K, N, D, V = 3, 11, 6, 17


def inputs(per_client: bool, bias: bool):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, N, D, generator=g, requires_grad=True)
    W = torch.randn(*((K,) if per_client else ()), V, D, generator=g, requires_grad=True)
    b = torch.randn(V, generator=g) if bias else None
    y = torch.randint(V, (K, N), generator=g)
    weight = torch.rand(K, N, generator=g)
    weight[1, 3:] = 0
    return hidden, W, b, y, weight


@pytest.mark.parametrize("rows", [4, 5, 100])  # several chunks, uneven chunks, one chunk
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_client", [False, True])
def test_chunks_give_the_loss_and_gradients_of_whole_logits(monkeypatch, rows, bias, per_client):
    monkeypatch.setattr(head, "ROWS", rows * (K if per_client else 1))
    hidden, W, b, y, weight = inputs(per_client, bias)
    total, each = head.head_loss(hidden, W, b, y, weight)
    grads = torch.autograd.grad(total, (hidden, W))
    logits = hidden @ W.mT + (0 if b is None else b)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(K, N)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (hidden, W))
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head.head_loss(hidden, W, b, y, weight)[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_bias_of_each_client_has_the_gradient_of_whole_logits(monkeypatch, rows, frozen):
    monkeypatch.setattr(head, "ROWS", rows * K)
    hidden, W, _, y, weight = inputs(True, False)
    hidden = hidden.detach() if frozen else hidden
    b = torch.randn(K, V, generator=torch.Generator().manual_seed(1), requires_grad=True)
    total, each = head.head_loss(hidden, W, b, y, weight)
    (found,) = torch.autograd.grad(total, b)
    logits = hidden @ W.mT + b[:, None]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(K, N)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), b)
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    hidden, W, b, y, weight = inputs(False, False)
    total, _ = head.head_loss(hidden, W.detach(), b, y, weight)
    (gradient,) = torch.autograd.grad(total, hidden)
    assert gradient.abs().sum() > 0


def test_large_logits_stay_finite():
    hidden, W, b, y, weight = inputs(False, False)
    total, each = head.head_loss(hidden * 1e4, W.detach(), b, y, weight)
    assert torch.isfinite(total)
    assert torch.isfinite(each).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_client", [False, True])
def test_how_many_rows_are_softened_at_a_time_changes_no_bit(monkeypatch, dtype, per_client):
    *layers, y, weight = inputs(per_client, True)
    hidden, W, b = (v.to(dtype) for v in layers)
    found = []
    for numbers in (1, 5 * V, 1000 * V):
        monkeypatch.setattr(head, "SOFTENED", numbers)
        total, each = head.head_loss(hidden, W, b, y, weight)
        found.append((each, *torch.autograd.grad(total, (hidden, W))))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0)
