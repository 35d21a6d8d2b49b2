"""Local training of K clients: fedfault's cohort against one PEFT model trained client by client, in the same run.

    python benchmarks/cohort.py                                      micro, 10 clients, batch 4 and 1
    python benchmarks/cohort.py --model smollm2-135m --clients 5 --batch 4 --steps 2
    python benchmarks/cohort.py --partial 2 --rounds 4               the activation cache on and off

The peer is what a hand-written simulator does: one model with a PEFT adapter, the clients one after the other, AdamW and
clip_grad_norm_, float32, all cores. Both sides see the same tokens, start from the same adapter and train the same steps;
the largest difference between their losses is printed. Every measurement is a process of its own, the sides take turns,
and the numbers are medians. GFLOP/s counts 4 x backbone parameters x tokens, over the machine's own float32 matmul rate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = 4000  # random token ids below this: every backbone has as many


def main() -> None:
    args = parse()
    if args.side:
        print(json.dumps(measure(args)))
        return
    batches = args.batch or ([4] if args.partial else [4, 1])
    sides = ["cache_off", "cache_on"] if args.partial else ["peft", "fp32", *(["bf16"] if args.bf16 else [])]
    print(f"{args.model}, {args.clients} clients, {args.steps} steps, {args.length} tokens, {os.cpu_count()} cores")
    print(f"float32 matmul {matmul_rate():.0f} GFLOP/s")
    print("| batch | side | tokens/s | ratio | GFLOP/s | peak MB | peak ratio | largest loss difference |")
    print("|---|---|---|---|---|---|---|---|")
    for batch in batches:
        runs: dict[str, list[dict[str, Any]]] = {s: [] for s in sides}
        for _ in range(args.repeat):
            for side in sides:
                runs[side].append(child(args, side, batch))
        base = runs[sides[0]]
        for side in sides:
            print(row(batch, side, runs[side], base), flush=True)


def row(batch: int, side: str, own: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """A table row; ratios are medians over the pairs of runs that were neighbours in time."""
    ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(own, base, strict=True))
    apart = max(abs(x - y) for x, y in zip(own[0]["losses"], base[0]["losses"], strict=True))
    gflops = 4 * own[0]["parameters"] * middle("rate", own) / 1e9  # forward 2, backward to activations 2
    peak = middle("peak_mb", own) / middle("peak_mb", base)
    return (
        f"| {batch} | {side} | {middle('rate', own):,.0f} | {ratio:.2f} | {gflops:.0f} | {middle('peak_mb', own):,.0f} "
        f"| {peak:.2f} | {apart:.1e} |"
    )


def middle(key: str, runs: list[dict[str, Any]]) -> float:
    return float(statistics.median(r[key] for r in runs))


def child(args: argparse.Namespace, side: str, batch: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--side", side, "--batch", str(batch)]
    for name in ("model", "clients", "steps", "length", "rank", "partial", "rounds", "per_pass"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    batch = args.batch[0]
    work = peft_loop if args.side == "peft" else cohort
    parameters, losses, seconds = work(args, batch)
    tokens = args.clients * args.steps * batch * args.length * (args.rounds if args.partial else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": tokens / seconds, "peak_mb": peak, "losses": losses, "parameters": parameters}


def blocks(args: argparse.Namespace, batch: int) -> list[Any]:
    """Each client's training blocks: one epoch is `steps` batches."""
    import torch

    from fedfault.text.packing import Blocks

    g = torch.Generator().manual_seed(0)
    n = args.steps * batch
    ids = [torch.randint(VOCABULARY, (n, args.length + 1), generator=g) for _ in range(args.clients)]
    return [Blocks(i, torch.full((n,), args.length)) for i in ids]


def opened(args: argparse.Namespace, precision: str) -> Any:
    from fedfault.backbones.cohort import CohortModel
    from fedfault.backbones.load import load_backbone
    from fedfault.backbones.sites import lora_targets, partial_targets

    model = load_backbone(args.model, precision=precision).model
    targets = partial_targets(model, args.partial, []) if args.partial else lora_targets(model, None)
    return CohortModel(model, targets, r=args.rank, alpha=16)


def cohort(args: argparse.Namespace, batch: int) -> tuple[int, list[float], float]:
    from fedfault.rounds.local import LocalWork, Passes
    from fedfault.rounds.trainer import Trainer
    from fedfault.tasks.language import LanguageTask

    model = opened(args, "bf16" if args.side == "bf16" else "fp32")
    cache_mb = 4096 if args.side == "cache_on" else 0
    task = LanguageTask(model, blocks(args, batch), {}, {}, cache_mb=cache_mb)
    work = LocalWork(batch_size=batch, lr=1e-3, max_grad_norm=1.0)
    size = args.per_pass or min(args.clients, max(1, task.tokens_per_pass() // (batch * args.length)))
    start, clients = task.init(0), list(range(args.clients))
    warm_up = LocalWork(epochs=None, steps=1, batch_size=batch)
    Trainer(task, warm_up, seed=1, round=0, clients=clients, passes=Passes(size))(start)
    began, losses = time.perf_counter(), []
    for t in range(args.rounds if args.partial else 1):
        trained = Trainer(task, work, seed=0, round=t, clients=clients, passes=Passes(size))(start)
        losses += trained.loss.tolist()
    return sum(p.numel() for p in model.model.parameters()), losses, time.perf_counter() - began


def peft_loop(args: argparse.Namespace, batch: int) -> tuple[int, list[float], float]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from fedfault.backbones.load import locate_model
    from fedfault.rounds.local import LocalWork, plan_batches
    from fedfault.seeds import rng

    base = AutoModelForCausalLM.from_pretrained(locate_model(args.model), dtype=torch.float32)
    parameters = sum(p.numel() for p in base.parameters())
    start, sites = first_adapter(args)
    model = peft.get_peft_model(base, peft.LoraConfig(r=args.rank, lora_alpha=16))
    trainable = [p for p in model.parameters() if p.requires_grad]
    data, losses = blocks(args, batch), []

    def client(k: int, steps: int) -> float:
        put(model, start, sites)
        optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
        model.train()
        seen = []
        for rows in plan_batches(len(data[k]), LocalWork(batch_size=batch), rng(0, "batches", 0, k))[:steps]:
            x = data[k].ids[torch.from_numpy(rows)]
            logits = model(input_ids=x[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            seen.append(loss.item())
        return sum(seen) / len(seen)

    client(0, 1)
    began = time.perf_counter()
    losses = [client(k, args.steps) for k in range(args.clients)]
    return parameters, losses, time.perf_counter() - began


def first_adapter(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The cohort's own first adapter, so that both sides start from the same numbers."""
    model = opened(args, "fp32")
    adapter = model.init(0)
    return adapter, [s.name for s in model.layout.sites]


def put(model: Any, adapter: Any, sites: list[str]) -> None:
    import torch

    modules = dict(model.base_model.model.named_modules())
    with torch.no_grad():
        for site in adapter.layout.sites:
            pair = adapter.layout.pair(adapter.flat, site)
            modules[site.name].lora_A["default"].weight.copy_(pair.A)
            modules[site.name].lora_B["default"].weight.copy_(pair.B)


def matmul_rate() -> float:
    """Float32 GFLOP/s of a large matrix product on this machine, now."""
    import torch

    a = torch.randn(1536, 1536)
    rates = []
    for _ in range(12):
        began = time.perf_counter()
        a @ a
        rates.append(2 * 1536**3 / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path("micro")))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="*")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="measure model.precision=bf16 too")
    parser.add_argument("--partial", type=int, default=0, help="train the last N blocks in full, cache on against off")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the cache measurement, the first one fills it")
    parser.add_argument("--per-pass", type=int, default=0, help="clients in a pass; 0: as fedfault chooses")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
