"""Weak scaling: a cohort that grows with the processes of the job. A round should take as long on two as on one.

    python benchmarks/distributed.py                                   micro, 5 clients for each of 1 and 2 processes
    python benchmarks/distributed.py --model smollm2-135m --steps 2 --processes 1 2 4
    python benchmarks/distributed.py --clients 500 --steps 1 --batch 1 --length 16 --rounds 2      memory of many clients

Every measurement is a job of its own with one thread a process, on loopback; rounds without evaluation, medians over all but
the first. Wall seconds need as many idle cores as processes; CPU seconds are those of process 0, which has its part of
the cohort and is the server: read their ratio where other programs run too. Bytes are those of tensors between the
processes, and MB are what process 0 took more than model and data, beside what `scaling.py` says of both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scaling import SHAPES, Work, at_process, at_server, operations, sent


def main() -> None:
    args = parse()
    if args.file:
        sys.exit(measure(args))
    print(f"{args.model}, {args.clients} clients a process, {args.steps} steps of {args.batch} x {args.length} tokens")
    print("| processes | s a round | ratio | CPU s a round | ratio | GFLOP/s | MB out, in | model | MB more | model |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    base: dict[str, Any] | None = None
    for n in args.processes:
        found = job(args, n)
        base = base or found
        print(row(args, n, found, base), flush=True)


def row(args: argparse.Namespace, n: int, found: dict[str, Any], base: dict[str, Any]) -> str:
    """A table row: what was measured, and what the model of cost says."""
    m, w = SHAPES[args.model], Work(n * args.clients, n, args.steps, args.batch, args.length, rank=8, size=4)
    times = [f"{found[name]:.2f} | {found[name] / base[name]:.2f}" for name in ("wall", "cpu")]
    rate = operations(m, w) / found["cpu"] / 1e9
    out, in_ = (", ".join(f"{size / 1e6:.2f}" for size in sizes) for sizes in (found["bytes"], sent(m, w)))
    more = (at_process(m, w) + at_server(m, w, w.clients) - 4 * m.parameters) / 1e6
    return f"| {n} | {' | '.join(times)} | {rate:.0f} | {out} | {in_} | {found['more']:.0f} | {more:.0f} |"


def job(args: argparse.Namespace, n: int) -> dict[str, Any]:
    """A run of n processes, and what the first of them measured."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        words = [sys.executable, __file__, "--file", str(file), "--model", args.model, "--processes", str(n)]
        for name in ("clients", "steps", "batch", "length", "rounds"):
            words += [f"--{name}", str(getattr(args, name))]
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        one = {**os.environ, **job, "OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen(words, env={**one, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(n)]
        if any(process.wait() for process in running):
            sys.exit(1)
        read: dict[str, Any] = json.loads(file.read_text())
    return read


def measure(args: argparse.Namespace) -> int:
    """One process of a job."""
    import torch

    from fedfault.parallel.distributed import lead_team, serve_team
    from fedfault.processes import this_process
    from fedfault.setup.experiment import prepare

    torch.set_num_threads(1)
    if this_process().rank:
        return serve_team()
    if this_process().count == 1:
        found = rounds(args, prepare)
    else:
        with lead_team() as others:
            found = rounds(args, others.prepare)
    Path(args.file).write_text(json.dumps(found))
    return 0


def rounds(args: argparse.Namespace, ready: Any) -> dict[str, Any]:
    """Medians over the rounds of a run: seconds, and bytes between the processes."""
    from fedfault.rounds.engine import begin, run_round
    from fedfault.saying import say_nothing

    p, moved = ready(experiment(args), say_nothing), counted()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    state = run_round(p.federation, begin(p.federation))[0]
    seconds: dict[str, list[float]] = {"wall": [], "cpu": []}
    moved.clear()
    for _ in range(args.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        state = run_round(p.federation, state)[0]
        seconds["wall"].append(time.perf_counter() - wall)
        seconds["cpu"].append(time.process_time() - cpu)
    each = [moved.get(way, 0) / args.rounds for way in ("send", "recv")]
    more = memory("VmHWM") - before
    return {name: statistics.median(all_of_it) for name, all_of_it in seconds.items()} | {"bytes": each, "more": more}


def memory(name: str) -> float:
    """Of this process in MB, as Linux has it: VmRSS is now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def experiment(args: argparse.Namespace) -> Any:
    from fedfault.config import load

    clients = args.processes[0] * args.clients
    none = [f"metrics.{name}=false" for name in ("updates", "gradients", "ranks", "aggregation", "representation")]
    settings = [
        f"model.name={args.model}", "model.precision=fp32", f"model.max_length={args.length}", "data.dataset=synthetic",
        f"data.dataset.num_documents={max(250, clients)}",
        f"federation.total_clients={clients}", "data.partition=iid",
        f"federation.num_rounds={args.rounds + 2}", f"evaluation.every={args.rounds + 2}", "evaluation.general=none",
        f"training.local_steps={args.steps}", f"training.batch_size={args.batch}", *none, "metrics.attention=false",
    ]  # fmt: skip
    return load("default", settings).experiment


def counted() -> dict[str, int]:
    """Bytes of tensors that this process sends and receives from now on."""
    import torch.distributed as dist

    found: dict[str, int] = {}

    def counting(name: str) -> Any:
        plain = getattr(dist, name)

        def moved(tensor: Any, other: int) -> None:
            if tensor.is_floating_point():
                found[name] = found.get(name, 0) + tensor.nbytes
            plain(tensor, other)

        return moved

    for name in ("send", "recv"):
        setattr(dist, name, counting(name))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", choices=list(SHAPES))
    parser.add_argument("--clients", type=int, default=5, help="for each process")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
