"""What 8 and 4 bits cost and save: memory of the frozen weights, time of a training pass, how far off numbers are.

    python benchmarks/quantisation.py                                 micro, 10 clients x 4 x 64 tokens
    python benchmarks/quantisation.py --model smollm2-135m --clients 5 --passes 3 --precision bf16

One thread and processor time, because other work on the machine would count otherwise; the sides take turns, and ratios are
medians over neighbouring passes. A pass is forward and backward of all clients, without the optimiser. `logits`: relative
distance from those of the model that is not rounded. `gradients`: relative distance from those of the same model with the
rounded weights in dense layers, the largest of all clients.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # bitsandbytes' own threads too

import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import load_backbone
from fedfault.backbones.quantised import count_weight_bytes, dense_weight
from fedfault.backbones.sites import is_quantised, lora_targets

KINDS = ("none", "8bit", "4bit")
VOCABULARY = 4000  # random token ids below this: every backbone has as many


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (args.clients, args.batch, args.length + 1), generator=g)
    print(f"{args.model}, {args.clients} clients x {args.batch} x {args.length} tokens, one thread")
    print("| precision | quantization | MB | ms a pass | ratio | logits | gradients |")
    print("|---|---|---|---|---|---|---|")
    for precision in args.precision:
        models = {kind: load_backbone(args.model, precision=precision, quantization=kind).model for kind in KINDS}
        sizes = {kind: count_weight_bytes(model) / 1e6 for kind, model in models.items()}
        logits = {kind: logits_of(model, ids[0]) for kind, model in models.items()}
        sides = {kind: opened(model) for kind, model in models.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(args.passes):
            for kind, side in sides.items():
                seconds[kind].append(one_pass(side, ids)[0])
        for kind in KINDS:
            ratio = statistics.median(a / b for a, b in zip(seconds[kind], seconds["none"], strict=True))
            spent = f"{sizes[kind]:.1f} | {1e3 * statistics.median(seconds[kind]):,.0f} | {ratio:.2f}"
            off = "–", "–"
            if kind != "none":
                wrong = gradient_error(args.model, precision, sides[kind], models[kind], ids)
                off = f"{apart(logits[kind], logits['none']):.1%}", f"{wrong:.0e}"
            print(f"| {precision} | {kind} | {spent} | {off[0]} | {off[1]} |", flush=True)


def opened(model: Any) -> CohortModel:
    return CohortModel(model, lora_targets(model, None), r=8, alpha=16)


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids[:, :-1]).logits
    return logits.float()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def one_pass(side: CohortModel, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Processor seconds, and the gradient (K, P) at adapters that all differ."""
    K, B, _ = ids.shape
    noise = 0.02 * torch.randn(K, side.layout.size, generator=torch.Generator().manual_seed(1))
    flat = (side.init(0).flat + noise).requires_grad_()
    weight = torch.full((K, B, ids.shape[2] - 1), 1 / (B * (ids.shape[2] - 1)))
    began = time.process_time()
    total, _ = side.losses(flat, ids, weight)
    (gradient,) = torch.autograd.grad(total, flat)
    return time.process_time() - began, gradient


def gradient_error(name: str, precision: str, side: CohortModel, model: Any, ids: torch.Tensor) -> float:
    plain = load_backbone(name, precision=precision).model
    for where, layer in model.named_modules():
        if is_quantised(layer):
            plain.get_parameter(f"{where.removesuffix('.base')}.weight").data = dense_weight(layer)
    ours, theirs = one_pass(side, ids)[1], one_pass(opened(plain), ids)[1]
    return max(apart(a, b) for a, b in zip(ours, theirs, strict=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--passes", type=int, default=9)
    parser.add_argument("--precision", nargs="*", default=["fp32", "bf16"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
