"""How long may a step be in the same memory? Peak memory of one training step with and without gradient checkpointing.

    MALLOC_MMAP_THRESHOLD_=1000000 OMP_NUM_THREADS=1 python benchmarks/recompute.py [--lengths 512 2048]

One client, one row of tokens, LoRA of rank 8 on the default modules, fp32 on a CPU. Each step runs in a process of its own;
what is printed is how far the process grew beyond the loaded model, and the seconds of the step. Linux only; the first
variable lets glibc give back what is freed, so that the peak is what the step holds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import load_backbone
from fedfault.backbones.sites import lora_targets
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.task import Step


def measure_step(name: str, length: int, recompute: bool) -> tuple[float, float]:
    """Measure the growth of the peak in MB, and the seconds, of one step on a row of `length` tokens."""
    backbone = load_backbone(name, precision="fp32", device="cpu", quantization="none", length=length)
    targets = lora_targets(backbone.model, None)
    model = CohortModel(backbone.model, targets, r=8, alpha=16.0, recompute=recompute)
    ids = torch.randint(10, 1000, (1, length + 1), generator=torch.Generator().manual_seed(0))
    task = LanguageTask(model, [Blocks(ids, torch.tensor([length]))], {}, {})
    step = Step(torch.tensor([0]), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
    flat = task.init(0).flat[None]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = _read_memory("VmRSS"), time.perf_counter()
    task.grad(flat, step)
    return _read_memory("VmHWM") - before, time.perf_counter() - began


def _read_memory(name: str) -> float:
    """A line of Linux's status of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    """Measure, and print a line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    args = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    for length in args.lengths:
        for recompute in (False, True):
            with fresh.Pool(1) as pool:
                grown, seconds = pool.apply(measure_step, (args.model, length, recompute))
            print(f"{length:6,} tokens  checkpointing {recompute!s:5}  {grown:8,.0f} MB  {seconds:6.1f} s")


if __name__ == "__main__":
    main()
