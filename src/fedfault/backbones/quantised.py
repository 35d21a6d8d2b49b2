"""Frozen linear layers in 8 or 4 bits, and functions that work on layers whether they are quantised or not.

    8bit  LLM.int8: whole numbers with a float32 scale a row (Dettmers et al., arXiv 2208.07339)
    4bit  NF4 with a float32 scale for every 64 weights, 4.5 bits a weight (Dettmers et al., arXiv 2305.14314)

All linear layers of the backbone but its head; embeddings, norms and biases stay in `model.precision`, in which everything
is computed. On a CPU a layer is y = x dequantised(W)^T, so that gradients are exactly those of the rounded weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.backbones.sites import find_parent, is_conv1d, is_linear, is_quantised
from fedfault.errors import UserError, read_first_line

PLATFORMS = ("cpu", "cuda")
# what a model may raise that reads the weights of its layers instead of calling them
BROKEN = (RuntimeError, TypeError, ValueError, AttributeError)


def check_platform(kind: str, device: torch.device) -> None:
    """Raise `UserError` where layers cannot be quantised: without bitsandbytes, or on another platform than its own."""
    if device.type not in PLATFORMS:
        raise UserError(
            f"model.quantization={kind} works on {' and '.join(PLATFORMS)}, not on {device.type}; set device=cpu, or "
            "model.quantization=none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={kind} needs bitsandbytes, which is not installed: pip install 'fedfault[quant]', or set "
            "model.quantization=none"
        )


def quantise(model: Any, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Replace the linear layers of a float32 model on the CPU, in place, by quantised ones of `dtype` on `device`.

    Raises `UserError` as `check_platform` does, and for a linear layer of a kind of its own.
    """
    check_platform(kind, device)
    try:
        from fedfault.backbones.bits import Linear4bit, Linear8bit
    except (ImportError, OSError, RuntimeError) as e:
        raise UserError(f"model.quantization={kind}: bitsandbytes cannot be loaded ({read_first_line(e)})") from e
    head, make = model.get_output_embeddings(), {"8bit": Linear8bit, "4bit": Linear4bit}[kind]
    for name, layer in list(model.named_modules()):
        if layer is head or not is_linear(layer):
            continue
        if type(layer) is not nn.Linear and not is_conv1d(layer):
            raise UserError(
                f"model.quantization={kind}: {name} is a {type(layer).__name__}, which is no plain linear layer; set "
                "model.quantization=none"
            )
        parent, leaf = find_parent(model, name)
        try:
            made: Any = make(dense_weight(layer), layer.bias, dtype, device)
        except BROKEN as e:
            raise UserError(f"model.quantization={kind} does not work on {device.type}: {read_first_line(e)}") from e
        made.fan_in_fan_out = is_conv1d(layer)
        setattr(parent, leaf, made)


@torch.no_grad()
def check_runs(model: Any, name: str, kind: str) -> None:
    """Raise `UserError` if the model cannot compute with quantised layers."""
    try:
        model.base_model(input_ids=torch.arange(1, 5, device=model.device)[None])
    except BROKEN as e:
        raise UserError(
            f"model.name={name}: {type(model).__name__} does not run with model.quantization={kind} "
            f"({read_first_line(e)}); set model.quantization=none"
        ) from e


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, (d_out, d_in), dequantised if it is quantised. Must not be written to."""
    if is_quantised(layer):
        dequantised: Tensor = layer.dequantise()  # type: ignore[operator]
        return dequantised
    weight = layer.get_parameter("weight").detach()
    return weight.T if is_conv1d(layer) else weight


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of the frozen model with their names: its parameters, and the scales of quantised ones."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if is_quantised(module):
            yield f"{name}.scale", module.scale


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, those of 4 bits too, of which two share a byte."""
    counts = {id(p): p.numel() for p in model.parameters()}
    counts |= {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    return sum(counts.values())


def count_weight_bytes(model: nn.Module) -> int:
    """Count the bytes of the frozen model in memory."""
    return sum(tensor.nbytes for _, tensor in named_tensors(model))
