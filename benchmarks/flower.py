"""Whole federated jobs: fedfault in one process against Flower + PEFT as its users write it, in the same run.

    python benchmarks/flower.py                                      micro, 10 clients, 5 steps, batch 4 and 1, 3 rounds
    python benchmarks/flower.py --model smollm2-135m --clients 5 --steps 2 --batch 4 --bf16

The peer is Flower's simulation (Ray, one worker a core) of a ClientApp that loads the model, puts a PEFT adapter on it and
trains, for every client and round: AdamW, clip_grad_norm_, float32, Flower's FedAvg. Both sides see the same tokens in the
same order and start from B = 0. With --bf16 both have a bfloat16 backbone under a float32 adapter, too: what
`model.precision: auto` chooses for SmolLM2-135M on a CPU with bfloat16 instructions. Every job is a process of its own, the
sides take turns, the numbers are medians, ratios those of neighbouring pairs. Start-up is the time to the first round, which
for Ray starts inside it. Memory is the largest sum of proportional shares (PSS) over all processes of a job. Ray listens on
all interfaces, so jobs run in a network namespace where this user may make one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from cohort import blocks, opened

MARK = "FEDFAULT_BENCHMARK"
LR = 1e-3


def main() -> None:
    args = parse()
    if args.side:
        work = flower if args.side == "flower" else fedfault
        print(json.dumps(work(args)), flush=True)
        return
    shape = f"{args.clients} clients, {args.steps} steps, {args.length} tokens, {args.rounds} rounds"
    print(f"{args.model}, {shape}, {os.cpu_count()} cores, {args.repeat} repeats")
    print(
        "| batch | side | start-up s | first round s | s a round | ratio | job s | ratio | peak MB | ratio | last loss |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for batch in args.batch or [4, 1]:
        sides = [(who, precision) for precision in ("fp32", "bf16")[: 1 + args.bf16] for who in ("flower", "fedfault")]
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(args.repeat):
            for side, found in runs.items():
                found.append(job(args, *side, batch))
        for side, found in runs.items():
            print(row(batch, " ".join(side), found, runs[sides[0]]), flush=True)


def row(batch: int, side: str, own: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    cells = [f"{batch}", side]
    for key, digits, with_ratio in (
        ("start", 1, False), ("first", 2, False), ("round", 2, True), ("whole", 1, True), ("peak_mb", 0, True)
    ):  # fmt: skip
        cells.append(f"{statistics.median(r[key] for r in own):,.{digits}f}")
        if with_ratio:
            cells.append(f"{statistics.median(b[key] / a[key] for a, b in zip(own, base, strict=True)):.2f}")
    cells.append(f"{own[-1]['loss']:.3f}")
    return f"| {' | '.join(cells)} |"


def job(args: argparse.Namespace, side: str, precision: str, batch: int) -> dict[str, Any]:
    """One job from the start of its process to its end."""
    words = [sys.executable, __file__, "--side", side, "--precision", precision, "--batch", str(batch)]
    for name in ("model", "clients", "steps", "length", "rank", "rounds"):
        words += [f"--{name}", str(getattr(args, name))]
    apart = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "-"]
    if shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0:
        words = [*apart, *words]
    with tempfile.TemporaryDirectory() as home:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {**os.environ, **quiet, "FLWR_HOME": home, MARK: str(time.time())}
        began = time.time()
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        peaks: list[float] = []
        watch = threading.Thread(target=lambda: peaks.extend(memory_of(environment[MARK], process)))
        watch.start()
        out, err = process.communicate()
        whole = time.time() - began
        watch.join()
    if process.returncode:
        sys.exit(err)
    found: dict[str, Any] = json.loads(next(line for line in reversed(out.splitlines()) if line.startswith("{")))
    ends = found["ends"]
    later = [b - a for a, b in itertools.pairwise(ends)]
    first = {"start": found["start"] - began, "first": ends[0] - found["start"]}
    return {**first, "round": statistics.median(later), "whole": whole, "peak_mb": max(peaks), "loss": found["loss"]}


def memory_of(mark: str, process: subprocess.Popen[str]) -> list[float]:
    """PSS in MB of all processes that carry the mark in their environment, every half second."""
    import psutil

    found = [0.0]
    while process.poll() is None:
        total = 0
        for one in psutil.process_iter():
            try:
                if one.environ().get(MARK) == mark:
                    total += one.memory_full_info().pss
            except psutil.Error:
                continue
        found.append(total / 2**20)
        time.sleep(0.5)
    return found


def order(args: argparse.Namespace, client: int, t: int) -> Any:
    from fedfault.rounds.local import LocalWork, plan_batches
    from fedfault.seeds import rng

    return plan_batches(args.steps * args.batch[0], LocalWork(batch_size=args.batch[0]), rng(0, "batches", t, client))


def fedfault(args: argparse.Namespace) -> dict[str, Any]:
    from fedfault.registry import build
    from fedfault.rounds.engine import begin, rounds
    from fedfault.rounds.federation import Federation
    from fedfault.rounds.local import LocalWork
    from fedfault.tasks.language import LanguageTask

    batch, N = args.batch[0], args.clients
    data = blocks(args, batch)
    task = LanguageTask(opened(args, args.precision), data, {"topic/one": data[0]}, {"topic/one": 1.0})
    parts = {"algorithm": build("algorithm", "fedavg"), "aggregation": build("aggregation", "fedit")}
    work = LocalWork(batch_size=batch, lr=LR, max_grad_norm=1.0)
    per_pass = min(N, task.clients_per_pass(batch))
    sizes = {"total_clients": N, "cohort_size": N, "num_rounds": args.rounds, "clients_per_pass": per_pass}
    fed = Federation(task=task, work=work, evaluate_every=args.rounds, **parts, **sizes)
    start, ends, loss = time.time(), [], 0.0
    for _, record in rounds(fed, begin(fed)):
        if record.round:
            ends.append(time.time())
            loss = statistics.mean(c.loss for c in record.clients)
        else:
            start = time.time()
    return {"start": start, "ends": ends, "loss": loss}


def peft_model(args: argparse.Namespace) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from fedfault.backbones.load import locate_model

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    base = AutoModelForCausalLM.from_pretrained(locate_model(args.model), dtype=dtype)
    return peft.get_peft_model(base, peft.LoraConfig(r=args.rank, lora_alpha=16, task_type="CAUSAL_LM"))


def flower(args: argparse.Namespace) -> dict[str, Any]:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
    from peft import get_peft_model_state_dict

    client, server, found = ClientApp(), ServerApp(), dict[str, Any]()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        torch.set_num_threads(1)
        k, t = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        model, ids, losses = peft_model(args), blocks(args, args.batch[0])[k].ids, []
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0)
        model.train()
        for rows in order(args, k, t):
            optimizer.zero_grad()
            loss = model(input_ids=ids[rows], labels=ids[rows]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            losses.append(float(loss))
        metrics = MetricRecord({"num-examples": len(ids), "loss": statistics.mean(losses)})
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=args.clients, min_available_nodes=args.clients)
        arrays = ArrayRecord(get_peft_model_state_dict(peft_model(args)))
        ends: list[float] = []
        found.update(start=time.time(), ends=ends)
        seen = lambda t, arrays: ends.append(time.time()) if t else None  # noqa: E731
        done = strategy.start(grid, arrays, num_rounds=args.rounds, evaluate_fn=seen)
        found["loss"] = float(done.train_metrics_clientapp[args.rounds]["loss"])

    workers = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": os.cpu_count()}}
    run_simulation(server, client, args.clients, backend_config=workers)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro")
    for name, value in (("clients", 10), ("steps", 5), ("length", 64), ("rank", 8), ("rounds", 3), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--bf16", action="store_true", help="with a bfloat16 backbone, too")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["flower", "fedfault"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.partial = 0  # what benchmarks/cohort.py asks of its own arguments
    return args


if __name__ == "__main__":
    main()
