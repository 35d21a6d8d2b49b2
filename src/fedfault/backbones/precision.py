"""In which type a frozen backbone computes, by what this machine multiplies faster."""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch

from fedfault.saying import Say

BIG = 50_000_000  # parameters from which a bfloat16 backbone pays on a CPU: 1.9x at 135 M, nothing at 2 M
SIDE = 1024  # of the square matrices that are multiplied: larger than caches of the second level
REPEATS = 5  # of which the fastest counts: other processes take time from some
HOPELESS = 4  # times as long as float32: one product is enough to know
SLOW = 1.5  # times as long as float32: worth a line


class Rates(NamedTuple):
    """How fast this machine's CPU multiplies square matrices, in GFLOP/s, with the threads that torch has."""

    fp32: float
    bf16: float


@functools.cache
def measure_rates() -> Rates:
    """Measure the machine, once a process: 0.1 s, or 2 s where bfloat16 is emulated."""
    matrices = [torch.ones(SIDE, SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for m in matrices:
        _time_product(m[:64, :64])  # the first product of a type loads its kernels
    best = [float("inf")] * 2
    for _ in range(REPEATS):  # in turn, so that a busy moment hits both
        for i, m in enumerate(matrices):
            best[i] = min(best[i], _time_product(m))
        if best[1] > HOPELESS * best[0]:
            break
    fp32, bf16 = (2 * SIDE**3 / seconds / 1e9 for seconds in best)
    return Rates(fp32, bf16)


def _time_product(m: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(m, m)
    return time.perf_counter() - start


def choose_precision(wanted: str, size: int, device: torch.device, say: Say) -> str:
    """Choose bf16 or fp32 for a model of so many parameters; `auto` is bf16 where the machine gains by it.

    A GPU gains if it multiplies bfloat16 itself; a CPU is measured. A wanted bf16 that is slower here is told.
    """
    if wanted == "auto" and device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu" or wanted == "fp32" or (wanted == "auto" and size < BIG):
        return "fp32" if wanted == "auto" else wanted
    rates = measure_rates()
    measured = f"this CPU multiplies float32 at {rates.fp32:.0f} GFLOP/s and bfloat16 at {rates.bf16:.0f}"
    if wanted == "auto":
        chosen = "bf16" if rates.bf16 > rates.fp32 else "fp32"
        say(f"{measured}: model.precision=auto is {chosen}")
        return chosen
    if rates.fp32 > SLOW * rates.bf16:
        ratio = rates.fp32 / rates.bf16
        say(f"model.precision=bf16 is slow here: {measured} ({ratio:.1f} times slower); auto would be fp32")
    return wanted
