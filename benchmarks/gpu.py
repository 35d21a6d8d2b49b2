"""Local training of K clients on one GPU: fedfault's cohort against PEFT, by tokens a second, memory, kernels and losses.

    python benchmarks/gpu.py             all ten shapes: backbones with random weights of the real sizes
    python benchmarks/gpu.py --quick     three of them, without torch.compile, and PEFT with two clients of each
    python benchmarks/gpu.py --tiny      the same code with two tiny shapes, on a CPU too: numbers that mean nothing

All train float32 adapters on a bfloat16 backbone with AdamW and clipping, on the same tokens from the same start. The sides:

    peft            one model with a PEFT adapter, the clients one after the other
    peft autocast   the same under bfloat16 autocast, as transformers' Trainer has it; the faster of the two is ratio 1
    peft compiled   the same under autocast, with torch.compile
    one model       one PEFT model on the tokens of all clients at once, under autocast: what one trainer can do
    fedfault        the cohort, its steps taken one by one
    fedfault graph  the cohort, its steps recorded and replayed
    fedfault fused  the same over the kernels of liger-kernel, where that is installed

All sides of a shape live in one process and take turns; numbers are medians. MFU counts 4 x parameters x tokens over the
machine's own bfloat16 matmul rate. Then 1,024 blocks are evaluated in passes of a CPU's size and of the device's, and
48 runs of a study (16 with --quick) train together, after one alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fedfault.types.adapter import Adapter

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64,
    },
    "micro": {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 4096,
    },
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "TinyLlama-1.1B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
}  # fmt: skip
ATTENTION, ALL = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 4000  # random token ids below this, or below the model's own
TINY_STUDY = (
    "data.max_samples=100",
    "training.local_steps=1",
    "evaluation.max_blocks=4",
    "evaluation.general_blocks=4",
)
PEFT = ("peft", "peft autocast")


class Shape(NamedTuple):
    """One line of the benchmark."""

    model: str
    clients: int
    batch: int
    tokens: int
    rank: int = 8
    modules: Sequence[str] = ATTENTION

    def __str__(self) -> str:
        more = "" if self.modules is ATTENTION else f", rank {self.rank} on all linear layers"
        return f"{self.model}, {self.clients} x {self.batch} x {self.tokens}{more}"


TINY = (Shape("tiny", 3, 2, 8), Shape("tiny", 2, 2, 8, 4, ALL))
QUICK = (Shape("micro", 10, 4, 64), Shape("SmolLM2-135M", 10, 4, 64), Shape("TinyLlama-1.1B", 8, 4, 128))
EVERY = (
    *QUICK, Shape("micro", 1000, 1, 64), Shape("SmolLM2-135M", 100, 4, 64), Shape("SmolLM2-135M", 10, 4, 512),
    Shape("Qwen2.5-0.5B", 10, 4, 256), Shape("TinyLlama-1.1B", 32, 4, 128), Shape("TinyLlama-1.1B", 8, 16, 512),
    Shape("TinyLlama-1.1B", 8, 4, 128, 32, ALL),
)  # fmt: skip


class Side(NamedTuple):
    """One way to train: `run` gives the clients' mean losses, or none where they are not those of the clients."""

    run: Callable[[], list[float]]
    clients: int  # that a run trains: PEFT's sides train a few of many, one after the other


class Bench:
    """A shape with its data, from which sides are built."""

    def __init__(self, shape: Shape, steps: int, device: torch.device, few: int) -> None:
        """few: clients that PEFT trains, of all: they go one after the other."""
        from fedfault.text.packing import Blocks

        self.few = few
        self.shape, self.steps, self.device = shape, steps, device
        g = torch.Generator().manual_seed(0)
        self.n, vocabulary = steps * shape.batch, min(VOCABULARY, SIZES[shape.model]["vocab_size"])
        ids = [torch.randint(vocabulary, (self.n, shape.tokens + 1), generator=g) for _ in range(shape.clients)]
        self.blocks = [Blocks(own, torch.full((self.n,), shape.tokens)) for own in ids]
        self.parameters = 0
        self.start: Adapter | None = None  # where every side starts

    def backbone(self) -> Any:
        """A Llama of the shape's size with random weights, the same at every call."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        with self.device:
            model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **SIZES[self.shape.model]))
        self.parameters = sum(p.numel() for p in model.parameters())
        return model.to(torch.bfloat16).eval().requires_grad_(False)

    def cohort(self, graph: bool, fused: bool = False) -> Side:
        """Fedfault: the passes that the device's memory holds; without `fused` with torch's own kernels."""
        from fedfault.backbones import cohort, kernels
        from fedfault.backbones.cohort import CohortModel
        from fedfault.backbones.kernels import Kernels
        from fedfault.backbones.replay import record_graph
        from fedfault.backbones.sites import lora_targets
        from fedfault.rounds.local import LocalWork, Passes
        from fedfault.rounds.trainer import Trainer
        from fedfault.tasks.language import LanguageTask

        model = self.backbone()
        with mock.patch.object(cohort, "replace_layers", kernels.replace_layers if fused else lambda model: Kernels()):
            opened = CohortModel(model, lora_targets(model, list(self.shape.modules)), r=self.shape.rank, alpha=16)
        task, work = LanguageTask(opened, self.blocks, {}, {}), LocalWork(batch_size=self.shape.batch, lr=1e-3)
        self.start = start = task.init(0)
        clients = list(range(self.shape.clients))
        passes = Passes(min(len(clients), task.clients_per_pass(self.shape.batch)))
        record = record_graph if graph else None

        def run() -> list[float]:
            trainer = Trainer(task, work, seed=0, round=0, clients=clients, passes=passes, record=record)
            losses: list[float] = trainer(start).loss.tolist()
            if passes.events:
                print(f"    {'; '.join(passes.events)}", flush=True)
                passes.events.clear()
            return losses

        return Side(run, len(clients))

    def peft(self, autocast: bool, compiled: bool = False, one: bool = False) -> Side:
        """PEFT: clients one after the other, the first few of many; or `one` model on what all of them have."""
        import peft

        from fedfault.rounds.local import LocalWork, plan_batches
        from fedfault.seeds import rng

        shape = self.shape
        config = peft.LoraConfig(r=shape.rank, lora_alpha=16, target_modules=list(shape.modules))
        model: Any = peft.get_peft_model(self.backbone(), config)
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        first = self.first_adapter()
        forward = torch.compile(model) if compiled else model
        data = [b.ids.to(self.device) for b in self.blocks]
        dealt = [range(shape.clients)] if one else [[k] for k in range(min(self.few, shape.clients))]

        def train(own: Sequence[int]) -> float:
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(first[name])
            optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0.0, fused=True)
            plans = [plan_batches(self.n, LocalWork(batch_size=shape.batch), rng(0, "batches", 0, k)) for k in own]
            total = torch.zeros((), device=self.device)
            for s in range(self.steps):
                x = torch.cat([data[k][torch.from_numpy(plan[s])] for k, plan in zip(own, plans, strict=True)])
                with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                    logits = forward(input_ids=x[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
                optimizer.step()
                total += loss.detach()
            return float(total) / self.steps

        def run() -> list[float]:
            losses = [train(own) for own in dealt]
            return [] if one else losses

        return Side(run, sum(map(len, dealt)))

    def first_adapter(self) -> dict[str, Tensor]:
        """The cohort's first adapter by PEFT's names."""
        assert self.start is not None  # the cohort is built first
        found: dict[str, Tensor] = {}
        for site in self.start.layout.lora:
            pair = self.start.layout.pair(self.start.flat, site)
            found |= {f"base_model.model.{site.name}.lora_{n}.default.weight": x for n, x in pair._asdict().items()}
        return found


def main() -> None:
    args = parse()
    if not torch.cuda.is_available() and not args.tiny:
        sys.exit(
            "benchmarks/gpu.py needs a GPU with CUDA, and torch sees none here; `--tiny` runs its code on the CPU, for "
            "numbers that mean nothing"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bfloat16 matmul {rate / 1e12:.3g} TFLOP/s")
    for shape in TINY if args.tiny else QUICK if args.quick else EVERY:
        print(
            f"\n**{shape}**\n\n| side | tokens/s | ratio | MFU % | peak GB | kernels a step | largest loss difference |"
        )
        print("|---|---|---|---|---|---|---|", flush=True)
        few = 2 if args.quick else 8
        try:
            compare(Bench(shape, args.steps, device, few), rate, args)
        except torch.OutOfMemoryError:  # all sides of a shape are in memory at once
            print(f"| needs more memory than {name} has |", flush=True)
    evaluate(Bench(TINY[0] if args.tiny else QUICK[1], args.steps, device, few))
    train_study(2 if args.tiny else 8 if args.quick else 24, 1 if args.tiny else 12, TINY_STUDY if args.tiny else ())


def evaluate(bench: Bench) -> None:
    """Print the seconds of an evaluation in passes of a CPU's size and of the device's, computed and replayed."""
    from fedfault.backbones.cohort import CohortModel
    from fedfault.backbones.replay import MET, PASSES
    from fedfault.backbones.sites import lora_targets
    from fedfault.tasks.fitting import EVALUATION_TOKENS
    from fedfault.tasks.language import LanguageTask
    from fedfault.text.packing import Blocks
    from fedfault.types.algorithm import Room

    model, shape = bench.backbone(), bench.shape
    opened = CohortModel(model, lora_targets(model, list(shape.modules)), r=shape.rank, alpha=16)
    ids = torch.randint(SIZES[shape.model]["vocab_size"], (1024, shape.tokens + 1))
    task = LanguageTask(
        opened, bench.blocks, {"topic/a": Blocks(ids, torch.full((1024,), shape.tokens))}, {"topic/a": 1.0}
    )
    adapter, own = task.init(0), task.evaluation_tokens()
    print(
        f"\n**{shape.model}, 1,024 blocks of {shape.tokens} tokens evaluated**\n\n"
        "| tokens a pass | seconds | replayed |\n|---|---|---|"
    )
    for tokens in (EVALUATION_TOKENS, own):
        task.room = Room(task.tokens_per_pass(), tokens)
        seconds = []
        for opened.recordings.record in (None, PASSES.get(bench.device.type)):
            for _ in range(1 if opened.recordings.record is None else MET + 1):
                task.evaluate(adapter)
            began = time.perf_counter()
            task.evaluate(adapter)
            seconds.append(time.perf_counter() - began)
        print(f"| {tokens:,} | {seconds[0]:.3f} | {seconds[1]:.3f} |", flush=True)
        for event in task.take_events():
            print(f"    {event}", flush=True)


def train_study(seeds: int, rounds: int, settings: Sequence[str]) -> None:
    """Print the seconds that a run of a study on micro takes, alone and beside all others: seeds of FedAvg and FedAdam."""
    from fedfault.session.progress import Progress
    from fedfault.studies.file import load_study
    from fedfault.studies.runner import run_all

    base = Path(__file__).parents[1] / "configs/quickstart.yaml"
    arms: dict[str, Any] = {"avg": {}, "adam": {"federation.algorithm": "fedadam"}}
    cohort = ("federation.total_clients=10", "federation.participation_rate=1.0")
    every = [f"federation.num_rounds={rounds}", *cohort, *settings]
    print(f"\n**studies on micro, 10 clients, {rounds} rounds**\n\n| runs | seconds | seconds a run |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, seeds):
            file = Path(folder) / f"{count}.yaml"
            own = arms if count > 1 else {"avg": arms["avg"]}
            file.write_text(json.dumps({"_base_": str(base), "arms": own, "seeds": count}))
            began = time.perf_counter()
            found = run_all(load_study(file, every, folder), Progress(quiet=True), jobs="auto")
            seconds, failed = time.perf_counter() - began, sum(done.state == "failed" for done in found)
            note = f" ({failed} failed)" if failed else ""
            print(f"| {len(found)}{note} | {seconds:.1f} | {seconds / len(found):.1f} |", flush=True)


def compare(bench: Bench, rate: float, args: argparse.Namespace) -> None:
    """Print a row for each side of a shape."""
    cuda = bench.device.type == "cuda"
    ours = {"fedfault": bench.cohort(graph=False)}
    if cuda:
        ours["fedfault graph"] = bench.cohort(graph=True)
    if cuda and importlib.util.find_spec("liger_kernel"):
        ours["fedfault fused"] = bench.cohort(graph=True, fused=True)
    sides = {"peft": bench.peft(False), "peft autocast": bench.peft(True), "one model": bench.peft(True, one=True)}
    sides |= {"peft compiled": bench.peft(True, compiled=True)} if cuda and not args.quick else {}
    sides |= ours
    losses, kernels = {n: s.run() for n, s in sides.items()}, {n: count_kernels(bench, s) for n, s in sides.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(args.repeat):
        for name, side in sides.items():
            found[name].append(measure(bench, side))
    rates = {name: statistics.median(r for r, _ in own) for name, own in found.items()}
    base = max(PEFT, key=rates.__getitem__)
    for name, own in found.items():
        share = 100 * 4 * bench.parameters * rates[name] / rate
        apart = [abs(a - b) for a, b in zip(losses[name], losses[base], strict=False)] if losses[name] else []
        cells = [name, f"{rates[name]:,.0f}", f"{rates[name] / rates[base]:.2f}", f"{share:.1f}"]
        cells += [f"{max(p for _, p in own):.1f}", f"{kernels[name]:,.0f}" if kernels[name] else "–"]
        print(f"| {' | '.join(cells)} | {f'{max(apart):.1e}' if apart else '–'} |", flush=True)


def measure(bench: Bench, side: Side) -> tuple[float, float]:
    """Tokens a second of one run, and the most gigabytes that it had."""
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    side.run()  # ends with a transfer
    seconds = time.perf_counter() - began
    tokens = side.clients * bench.steps * bench.shape.batch * bench.shape.tokens
    return tokens / seconds, torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def count_kernels(bench: Bench, side: Side) -> float:
    """Launches from Python for one step of all the clients that a run trains; 0 without CUDA."""
    if bench.device.type != "cuda":
        return 0.0
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        side.run()
        torch.cuda.synchronize()
    launches: int = sum(e.count for e in seen.key_averages() if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
    return float(launches / bench.steps)


def matmul_rate(device: torch.device) -> float:
    """Bfloat16 operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 256
    a: Tensor = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    seconds: list[float] = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2.0 * side * side * side / statistics.median(seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three shapes, without torch.compile")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of a client in a run")
    parser.add_argument("--repeat", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
