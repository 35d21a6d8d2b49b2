"""What a round costs: compute, memory and bytes as formulas, for any number of clients and processes (docs/scaling.md).

    python benchmarks/scaling.py                                    from micro to 7 B parameters, 10 to 1,000 clients
    python benchmarks/scaling.py --models micro --clients 5 --processes 2 --flops 20e9 --bytes 4

LoRA on the query and value projections, K clients of a round in n processes, s steps of b x T tokens each. Nothing is
measured here: `benchmarks/distributed.py` holds the formulas against a run.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A decoder as Llama has it."""

    blocks: int
    width: int
    inner: int
    kv: int  # width of keys and values
    vocab: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights that a token is multiplied with, the head included."""
        block = 2 * self.width**2 + 2 * self.width * self.kv + 3 * self.width * self.inner
        return self.blocks * block + self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All of the backbone."""
        norms = (2 * self.blocks + 1) * self.width
        return self.linear + norms + (0 if self.tied else self.vocab * self.width)

    def adapter(self, rank: int) -> int:
        """P: the numbers of LoRA on q_proj and v_proj."""
        return rank * self.blocks * (3 * self.width + self.kv)


SHAPES = {
    "micro": Shape(6, 128, 512, 64, 4096, True),
    "smollm2-135m": Shape(30, 576, 1536, 192, 49152, True),
    "tinyllama": Shape(22, 2048, 5632, 256, 32000, False),
    "llama-2-7b": Shape(32, 4096, 11008, 4096, 32000, False),
}


@dataclass(frozen=True)
class Work:
    """A round."""

    clients: int  # K
    processes: int  # n
    steps: int
    batch: int
    length: int
    rank: int
    size: int  # bytes of a frozen weight
    memory: int = 0  # numbers that a client keeps for each of its adapter: 1 for SCAFFOLD
    halves: bool = False  # metrics.gradients

    @property
    def tokens(self) -> int:
        """Of one client."""
        return self.steps * self.batch * self.length

    @property
    def widest(self) -> int:
        """Clients of the process that has most, where all have as many steps."""
        return math.ceil(self.clients / self.processes)


def operations(m: Shape, w: Work) -> int:
    """Of the process with most clients: forward and the gradient of the input 4 a frozen weight, adapters 6; no scores."""
    return w.widest * w.tokens * (4 * m.linear + 6 * m.adapter(w.rank))


def per_pass(m: Shape, w: Work) -> int:
    """Clients that go through the model at once: 1 GiB of activations, as `CohortTask.tokens_per_pass` has it."""
    return min(w.widest, max(1, 2**30 // held(m, w) // (w.batch * w.length)))


def held(m: Shape, w: Work) -> int:
    """Bytes that a token leaves behind for the backward pass."""
    return m.blocks * (16 * m.width + 4 * m.inner) * w.size


def at_process(m: Shape, w: Work) -> float:
    """Bytes: backbone, activations, every client's row and what it keeps, before and after, six further rows in a pass."""
    c = per_pass(m, w)
    rows = w.widest * (1 + 2 * w.memory) + 6 * c
    return m.parameters * w.size + held(m, w) * c * w.batch * w.length + 4 * m.adapter(w.rank) * rows


def at_server(m: Shape, w: Work, total_clients: int) -> float:
    """Bytes of process 0 beside its part: uploads and what clients keep in float32; gradients of probes in float64, too."""
    numbers = w.clients * m.adapter(w.rank)
    kept = 4 * w.memory * total_clients * m.adapter(w.rank)
    return numbers * (40 if w.halves else 4) + kept + 4 * w.memory * numbers


def sent(m: Shape, w: Work) -> tuple[int, int]:
    """Bytes that process 0 gives to the others in a round, and takes from them: adapters in float32, equal ranks."""
    P, away = m.adapter(w.rank), w.clients - math.ceil(w.clients / w.processes - 0.5)
    helping = min(w.processes - 1, away)
    return 4 * P * (helping + w.memory * away), 4 * P * (helping + away * (1 + w.memory + 2 * w.halves))


def main() -> None:
    args = parse()
    shown = f"{args.steps} steps of {args.batch} x {args.length} tokens, rank {args.rank}, {args.bytes} bytes a weight"
    print(f"{shown}; {args.flops:.3g} operations a second and process, {args.gbps:g} Gbit/s\n")
    print("| model | P | clients | processes | train, s | transfer, s | process, GB | server, GB | federation, GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for clients in args.clients:
            for processes in args.processes:
                print(row(name, clients, processes, args))


def row(name: str, clients: int, processes: int, args: argparse.Namespace) -> str:
    """Of the table; what the federation would move up and down is 4 P a client each way."""
    m = SHAPES[name]
    w = Work(clients, processes, args.steps, args.batch, args.length, args.rank, args.bytes, args.memory)
    train, transfer = operations(m, w) / args.flops, 8 * sum(sent(m, w)) / (args.gbps * GB)
    process, server = at_process(m, w) / GB, at_server(m, w, clients) / GB
    moved = 8 * m.adapter(args.rank) * clients / GB
    found = " | ".join(
        f"{number:.2g}" if number < 100 else f"{number:,.0f}" for number in (train, transfer, process, server, moved)
    )
    return f"| {name} | {m.adapter(args.rank):,} | {clients:,} | {processes:,} | {found} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000], help="of a round")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--bytes", type=int, default=2, help="of a frozen weight")
    parser.add_argument("--memory", type=int, default=0, help="numbers a client keeps for each of its adapter")
    parser.add_argument(
        "--flops", type=float, default=1e14, help="sustained, of a process: a third of a large GPU's peak"
    )
    parser.add_argument("--gbps", type=float, default=100.0, help="of the network at process 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
