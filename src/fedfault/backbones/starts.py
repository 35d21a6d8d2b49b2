"""Where LoRA starts other than PEFT's default: A from a normal distribution, or factors of the base's own weights.

    W = (W - s B0 A0) + s B0 A0        PiSSA, OLoRA: the first is frozen in the place of W, training goes on from the pair

The function at the start is that of the base, as with B = 0. The factors are those of PEFT, which calls the choice
`init_lora_weights`, up to the sign of each slice, which its product does not show.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedfault.backbones.quantised import dense_weight
from fedfault.backbones.sites import is_conv1d
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Layout, Pair

Start = Literal["uniform", "gaussian", "pissa", "olora"]
FROM_BASE = ("pissa", "olora")


def draw_gaussian(layout: Layout, flat: Tensor, seed: int) -> None:
    """Write A ~ N(0, 1/r^2) into every LoRA site of flat (P,), in place: PEFT's `gaussian`."""
    for site in layout.lora:
        A, _ = layout.pair(flat, site)
        A.copy_(torch.randn(A.shape, generator=torch_rng(seed, "init", site.name)) / len(A))


def factorise(W: Tensor, r: int, scaling: float, start: Start) -> Pair:
    """Make the factors A (r, d_in) and B (d_out, r) that a site starts from, of its weight W (d_out, d_in), in float32.

    pissa: the r largest components of W = U S V^T, B = U (S / s)^1/2 and A = (S / s)^1/2 V^T (Meng et al., NeurIPS 2024,
    eq. 2 and 3). olora: the first columns of Q and rows of R of W = Q R (Büyükakyüz, arXiv 2406.01775), multiplied by s
    as any pair is, as in PEFT. The largest entry of every column of B is positive, so that who factorises on another
    machine gets the same.

    >>> A, B = factorise(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), r=1, scaling=2.0, start="pissa")
    >>> torch.allclose(2.0 * B @ A, torch.tensor([[0.0, 3.0], [0.0, 0.0]]), atol=1e-6)
    True
    """
    W = W.float()
    if start == "pissa":
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        root = (S[:r] / scaling).sqrt()
        A, B = root[:, None] * Vh[:r], U[:, :r] * root
    else:
        Q, R = torch.linalg.qr(W)
        A, B = R[:r], Q[:, :r]
    sign = B.gather(0, B.abs().argmax(0, keepdim=True)).sign()[0]  # (r,)
    return Pair(A * sign[:, None], B * sign)


def leave_rest(layer: Any, change: Tensor) -> nn.Module:
    """Make a linear layer like `layer`, in floating point, whose weight lacks `change` (d_out, d_in), in its own type."""
    rest: nn.Module = copy.deepcopy(layer)
    W = (dense_weight(layer).float() - change).to(layer.weight.dtype)
    rest.weight = nn.Parameter((W.T if is_conv1d(layer) else W).contiguous(), requires_grad=False)
    return rest
