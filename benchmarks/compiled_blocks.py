"""Blocks that have no fused kernels (here GPT-2's), as they are and by torch.compile: a gradient of a cohort on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/compiled_blocks.py

Random weights, 4 blocks of width 256, 4 x 64 tokens a client. Printed are the seconds of the first gradient with each number
of clients, then processor time a gradient of the first number, the median of alternating measurements.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import find_blocks, lora_targets
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.task import Step

CLIENTS, BATCH, TOKENS, REPEAT = (10, 7, 3), 4, 64, 7
SHAPE = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4096, "n_positions": 128, "eos_token_id": None}


def make_task(compiled: bool) -> LanguageTask:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, bos_token_id=None, **SHAPE))
    opened = CohortModel(model, lora_targets(model, None), r=8, alpha=16.0)
    if compiled:
        for block in find_blocks(model)[1]:
            block.compile()
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(model.config.vocab_size, (BATCH, TOKENS + 1), generator=g) for _ in range(CLIENTS[0])]
    return LanguageTask(opened, [Blocks(own, torch.full((BATCH,), TOKENS)) for own in ids], {}, {})


def differentiate(task: LanguageTask, clients: int) -> Tensor:
    rows = torch.arange(BATCH).expand(clients, -1)
    step = Step(torch.arange(clients), rows, torch.ones_like(rows, dtype=torch.bool))
    return task.grad(task.init(0).flat.expand(clients, -1).contiguous(), step)[1]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sides = {"as they are": make_task(False), "compiled": make_task(True)}
    for name, task in sides.items():
        for clients in CLIENTS:
            began = time.perf_counter()
            differentiate(task, clients)
            print(
                f"{name}: {time.perf_counter() - began:.1f} s for the first gradient of {clients} clients", flush=True
            )
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPEAT):
        for name, task in sides.items():
            began = time.process_time()
            differentiate(task, CLIENTS[0])
            spent[name].append(time.process_time() - began)
    for name, own in spent.items():
        print(f"{name}: {1000 * median(own):.0f} ms a gradient of {CLIENTS[0]} clients")


if __name__ == "__main__":
    main()
