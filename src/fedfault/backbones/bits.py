"""bitsandbytes' linear layers, made fit for a frozen backbone that clients train through. Imported only on demand.

On a CPU they multiply by the dequantised weight, y = x W^T, forward and backward, in training as in evaluation. What
bitsandbytes 0.50 does there itself has three traps:

    Linear4bit    on a CPU with AVX512-BF16, a pass in evaluation mode repacks the weight for inference, for good; all later
                  passes have no gradient, without an error: whatever lies below such a layer learns nothing
    Linear4bit    on a CPU with AVX512, rows of 16 n weights that are no multiple of 64 get the scales of other blocks
    Linear8bitLt  in evaluation mode activations are rounded to float16 and int8 too: the scores are of another model

On CUDA they are bitsandbytes' own.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # speaks of a kernel from the Hub that is not used here
import bitsandbytes as bnb  # noqa: E402

BLOCK = 64  # weights that share a scale (arXiv 2305.14314, sec. 3)
OUTLIER = 6.0  # activations beyond it are multiplied in 16 bits on CUDA (arXiv 2208.07339, sec. 3.2)
NF4 = {"quant_type": "nf4", "compress_statistics": False}  # what transformers makes of load_in_4bit with nf4


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """weight (d_out, d_in) of float32 in NF4, with a float32 scale for every 64 weights in a row."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, dtype, device="meta", **NF4)
        self.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=self, **NF4).to(device)
        self.bias = bias
        self.support_avx512bf16_for_cpu = False  # no repacking, if anybody calls bitsandbytes' own forward either

    @property
    def scale(self) -> Tensor:
        """The scale of every block of 64 weights, (ceil(d_out d_in / 64),)."""
        absmax: Tensor = self.weight.quant_state.absmax
        return absmax

    def dequantise(self) -> Tensor:
        """The weight (d_out, d_in) in the type of the activations. Blocks go in as rows, which all kernels get right."""
        packed = self.weight.data.flatten()  # two weights a byte
        rows = F.pad(packed, (0, -len(packed) % (BLOCK // 2))).view(-1, BLOCK // 2)
        shape = len(rows), BLOCK
        found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            rows, self.scale, BLOCK, "nf4", shape, self.compute_dtype
        )
        return found.flatten()[: self.in_features * self.out_features].view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        y: Tensor = _multiply(x, self) if x.device.type == "cpu" else super().forward(x)
        return y


class Linear8bit(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """weight (d_out, d_in) of float32 in int8, with a float32 scale for every row."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype, device: torch.device) -> None:
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias is not None, has_fp16_weights=False, threshold=OUTLIER, device="meta")
        self.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
        self.init_8bit_state()
        self.bias, self.compute_dtype = bias, dtype

    @property
    def scale(self) -> Tensor:
        """The largest number of each row, (d_out,), which int8 stores as 127."""
        largest: Tensor = self.state.SCB
        return largest

    def dequantise(self) -> Tensor:
        """The weight (d_out, d_in) in the type of the activations."""
        found: Tensor = self.weight.data.to(self.compute_dtype).mul_(self.scale[:, None] / 127)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        y: Tensor = _multiply(x, self) if x.device.type == "cpu" else super().forward(x)
        return y


def _multiply(x: Tensor, layer: Linear4bit | Linear8bit) -> Tensor:
    y: Tensor = _Product.apply(x, layer)  # type: ignore[no-untyped-call]
    return y


class _Product(torch.autograd.Function):
    """x W^T + b without a gradient for W, which is dense only while it is multiplied by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4bit | Linear8bit) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantise(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.layer.dequantise(), None
