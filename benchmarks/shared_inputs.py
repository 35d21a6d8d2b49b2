"""LoRA sites that share an input (q and v; q, k and v): a pair of products a site, or one product for all their A's.

    OMP_NUM_THREADS=1 python benchmarks/shared_inputs.py

Forward and backward of the pairs alone, without the frozen layers, in float32: operations that are no views, milliseconds of
processor time, and how much longer the pairs of each site take, the median of alternating measurements.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RANK, TIMES, REPEAT = 8, 8, 15
SHAPES = {  # clients, tokens of each, d_in, d_out of each site
    "micro, q v, 1 x 64": (10, 64, 256, (256, 256)),
    "micro, q v, 4 x 64": (10, 256, 256, (256, 256)),
    "micro, q k v, 4 x 64": (10, 256, 256, (256, 256, 256)),
    "SmolLM2, q v, 4 x 64": (5, 256, 576, (576, 192)),
    "SmolLM2, q k v, 4 x 64": (5, 256, 576, (576, 192, 192)),
}
VIEWS = ("view", "split", "transpose", "detach", "expand", "alias", "as_strided", "_unsafe_view")
Pairs = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class Counter(TorchDispatchMode):
    """Counts the operations that compute or copy."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not op.__name__.startswith(VIEWS)
        return op(*args, **(kwargs or {}))


def apply_each(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor]) -> list[Tensor]:
    """x A^T B^T of every site: x (K, n, d_in), A (K, r, d_in), B (K, d_out, r)."""
    return [torch.bmm(torch.bmm(x, a.mT), b.mT) for a, b in zip(As, Bs, strict=True)]


def apply_together(x: Tensor, As: Sequence[Tensor], Bs: Sequence[Tensor]) -> list[Tensor]:
    """The same with the A's of all sites as one factor of (K, sites x r, d_in)."""
    low = torch.bmm(x, torch.cat([*As], 1).mT).split(RANK, 2)
    return [torch.bmm(part, b.mT) for part, b in zip(low, Bs, strict=True)]


def make_step(K: int, n: int, d_in: int, widths: Sequence[int]) -> Callable[[Pairs], None]:
    """Make a forward and backward pass through the pairs, whose numbers lie in one row a client as in a cohort."""
    x = torch.randn(K, n, d_in, requires_grad=True)
    sizes = [m for d_out in widths for m in (RANK * d_in, RANK * d_out)]
    flat = torch.randn(K, sum(sizes), requires_grad=True)
    gradients = [torch.randn(K, n, d_out) for d_out in widths]

    def step(pairs: Pairs) -> None:
        parts = flat.split(sizes, 1)
        As = [a.unflatten(1, (RANK, d_in)) for a in parts[::2]]
        Bs = [b.unflatten(1, (d_out, RANK)) for b, d_out in zip(parts[1::2], widths, strict=True)]
        torch.autograd.grad(pairs(x, As, Bs), (x, flat), gradients)

    return step


def count_operations(step: Callable[[Pairs], None], pairs: Pairs) -> int:
    """Count the operations of a step."""
    with Counter() as counter:  # type: ignore[no-untyped-call]
        step(pairs)
    found: int = counter.count
    return found


def measure(step: Callable[[Pairs], None], pairs: Pairs) -> float:
    """Processor seconds of a step."""
    clock = time.process_time()
    for _ in range(TIMES):
        step(pairs)
    return (time.process_time() - clock) / TIMES


def main() -> None:
    """Print a line a shape."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        step = make_step(*shape)
        operations = [count_operations(step, pairs) for pairs in (apply_each, apply_together)]
        found = [(measure(step, apply_each), measure(step, apply_together)) for _ in range(REPEAT)]
        ratios = sorted(each / together for each, together in found)
        print(
            f"{name:24} operations {operations[0]} -> {operations[1]}   {1e3 * median(each for each, _ in found):6.2f} ms   "
            f"{median(ratios):.2f}x ({ratios[1]:.2f} to {ratios[-2]:.2f})"
        )


if __name__ == "__main__":
    main()
