"""Do the detectors find faults, which do they miss, and how often do they cry wolf?

    python benchmarks/faults.py [--fresh 59] [--seeds 5] [--only NAME ...]
    python benchmarks/faults.py --data data.dataset=wikitext data.path=FOLDER --results results/faults-wikitext
    python benchmarks/faults.py --base instruct/quick --calibration instruct --data data.partition=iid --only fresh-healthy
        --results results/faults-instruct

Thresholds are those of the packaged calibration `demos` (`fedfault calibrate demos/base`), or of another, on other data too:
that asks how far they carry, which `fedfault run` does not do. Fresh IID controls count false alarms, every fault is
injected into runs with seeds of their own. Each run is kept as RESULTS/NAME-SEED.jsonl and not repeated. Prints the table of
docs/metrics.md; benchmarks/rules.py puts rules of thumb beside the detectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedfault.config.loading import load
from fedfault.diagnosis.calibration import ALPHA, PACKAGED, Calibration, learn_thresholds
from fedfault.diagnosis.detection import build_detectors, detect_failures
from fedfault.records import Records, RoundRecord
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.files import read_records
from fedfault.seeds import entropy, rng
from fedfault.setup.experiment import Prepared, prepare
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, Message, State, Train
from fedfault.types.corpus import Corpus

RESULTS = Path("results/faults")
IID = "fresh-healthy"
OWN = "own"  # the name of calibrations that are learned here
Inject = Callable[[Prepared], Prepared]
Judged = tuple[str, Records, Calibration]  # the name of a run, what it recorded, and what it is judged by


def _same(p: Prepared) -> Prepared:
    return p


@dataclasses.dataclass(frozen=True)
class Fault:
    """Settings that differ from the healthy federation, and what is broken in the prepared run beyond them."""

    about: str
    expected: tuple[str, ...]  # detectors of which at least one should alarm
    settings: tuple[str, ...] = ()
    inject: Inject = _same


def _one_topic(p: Prepared) -> Prepared:
    """All clients hold the one topic that is furthest from the others; validation stays mixed."""
    corpus = p.split.corpus
    topic = sorted({d.topic for d in corpus.train})[0]
    narrow = dataclasses.replace(corpus, train=tuple(d for d in corpus.train if d.topic == topic))
    return prepare(p.config, like=_with_corpus(p, narrow))


def _with_corpus(p: Prepared, corpus: Corpus) -> Prepared:
    return dataclasses.replace(p, split=dataclasses.replace(p.split, corpus=corpus))


def _garbage(p: Prepared) -> Prepared:
    """Client 0 has the tokens of its texts in random order, in training and in its held-out set."""
    task: Any = p.federation.task
    generator = rng(p.config.seed, "garbage")
    at = len(task.ids) - sum(len(b) for b in task.sets.values())
    rows = list(range(int(task.first[0]), int(task.first[0]) + task.counts[0]))
    for name, blocks in task.sets.items():
        rows += list(range(at, at + len(blocks))) if name == "client/0" else []
        at += len(blocks)
    own = task.ids[rows]
    flat = own.flatten()
    task.ids[rows] = flat[torch.from_numpy(generator.permutation(len(flat)))].view_as(own)
    return p


def _changed(p: Prepared, change: Callable[[Algorithm], Algorithm]) -> Prepared:
    return dataclasses.replace(
        p, federation=dataclasses.replace(p.federation, algorithm=change(p.federation.algorithm))
    )


def _deaf(p: Prepared) -> Prepared:
    """The server throws the aggregate away."""

    def change(a: Algorithm) -> Algorithm:
        def server(state: State, got: Message, average: Average) -> State:
            return dataclasses.replace(a.server(state, got, average), adapter=state.adapter)

        return dataclasses.replace(a, server=server)

    return _changed(p, change)


def _momentum_units(p: Prepared) -> Prepared:
    """Control variates ten times as large: what (x - y) / (K lr) measures when clients have momentum 0.9."""

    def change(a: Algorithm) -> Algorithm:
        def client(got: Message, memory: Mapping[str, Adapter], train: Train) -> tuple[Message, Mapping[str, Adapter]]:
            up, home = a.client(got, memory, train)
            c = 10 * home["c"]
            return {**up, "dc": c - memory["c"]}, {"c": c}

        return dataclasses.replace(a, client=client)

    return _changed(p, change)


ISOLATED = "data.partition=topic_isolation"
SCAFFOLD = ("federation.algorithm=scaffold", "federation.total_clients=40", "federation.participation_rate=0.1")
FAULTS = {
    "lr_x20": Fault("learning rate times 20", ("divergence", "oscillation"), ("training.lr=6e-2",)),
    "lr_x10_skew": Fault(
        "learning rate times 10, one topic a client", ("divergence", "oscillation"), ("training.lr=3e-2", ISOLATED)
    ),
    "server_x2.5": Fault(
        "server learning rate 2.5", ("oscillation", "divergence"),
        ("federation.algorithm=fedavgm", "federation.algorithm.beta=0.0", "federation.algorithm.server_lr=2.5"),
    ),
    "server_beta": Fault(
        "server momentum 0.99", ("oscillation", "divergence"),
        ("federation.algorithm=fedavgm", "federation.algorithm.beta=0.99", "federation.algorithm.server_lr=1.0"),
    ),
    "lr_/100": Fault("learning rate over 100", ("slow_convergence",), ("training.lr=3e-5",)),
    "drift": Fault("one topic a client, 80 local steps", ("client_drift",), (ISOLATED, "training.local_steps=80")),
    "forgetting": Fault("20 rounds on one narrow topic", ("forgetting",), ("federation.num_rounds=20",), _one_topic),
    "collapse": Fault(
        "rank 1, learning rate times 5", ("rank_collapse", "representation_collapse"),
        ("model.lora.r_max=1", "training.lr=1.5e-2"),
    ),
    "garbage": Fault("one client with shuffled tokens", ("fairness_gap", "negative_transfer"), (), _garbage),
    "stale_10x": Fault(
        "SCAFFOLD, 10 % of 40 clients, c_i in units of momentum 0.9", ("stale_controls",), SCAFFOLD, _momentum_units
    ),
    "no_op": Fault("the server drops the aggregate", ("no_federation",), (), _deaf),
}  # fmt: skip
HEALTHY = {
    IID: Fault("nothing: IID clients", ()),
    "fresh-scaffold": Fault("nothing: SCAFFOLD, 10 % of 40 IID clients", (), SCAFFOLD),
}


def train(
    name: str,
    fault: Fault,
    seed: int,
    like: Prepared | None,
    folder: Path,
    data: Sequence[str] = (),
    base: str = "demos/base",
) -> Prepared | None:
    """One run, unless its records are in the folder; returns what the next one can share."""
    file = folder / f"{name.replace('/', '_')}-{seed}.jsonl"
    if file.is_file():
        return like
    settings = [*data, *fault.settings, f"seed={entropy(seed, 'faults', name) % 2**31}"]
    exp = load(base, settings).experiment
    p = prepare(exp, like=like)
    broken = fault.inject(p)
    clock = time.perf_counter()
    try:
        records = [record for _, record in rounds(broken.federation, begin(broken.federation))]
    finally:
        p.model.fold({})
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(r.to_json(), allow_nan=False) + "\n" for r in records))
    part.replace(file)
    print(f"{file.name}: {time.perf_counter() - clock:.1f} s, loss {_last(records):.3f}", flush=True)
    return p


def _last(records: Records) -> float:
    return records[-1].scores["validation"].loss


def kept(name: str, folder: Path) -> list[list[RoundRecord]]:
    """The runs of that name that are in the folder."""
    return [read_records(file)[0] for file in sorted(folder.glob(f"{name.replace('/', '_')}-[0-9]*.jsonl"))]


def learn(controls: Sequence[Records]) -> Calibration:
    """The calibration of these healthy runs."""
    thresholds, exact = learn_thresholds(controls, build_detectors())
    return Calibration(OWN, thresholds, len(controls), ALPHA, exact, {})


def judge_folder(folder: Path) -> tuple[list[Judged], list[Judged]]:
    """The healthy runs and the broken ones of a folder, each with the calibration that it is judged by.

    It is that of the folder's own `fresh-healthy` runs, for one of these of all others; where there are no more than three,
    the packaged one `demos`.
    """
    healthy, broken = ([(n, r) for n in names for r in kept(n, folder)] for names in (HEALTHY, FAULTS))
    controls = [r for name, r in healthy if name == IID]
    if len(controls) <= 3:
        packaged = Calibration.load(PACKAGED / "demos.json")
        return [(n, r, packaged) for n, r in healthy], [(n, r, packaged) for n, r in broken]
    own = learn(controls)
    others = [learn([c for c in controls if c is not r]) if name == IID else own for name, r in healthy]
    return [(n, r, o) for (n, r), o in zip(healthy, others, strict=True)], [(n, r, own) for n, r in broken]


def upper(k: int, n: int) -> float:
    """One-sided 95 % Clopper-Pearson bound of a proportion."""
    from scipy.stats import beta

    bound: float = 1.0 if k == n else float(beta.ppf(0.95, k + 1, n - k))
    return bound


def alarms(records: Records, calibration: Calibration | None) -> dict[str, int]:
    """Detector -> round of its first alarm."""
    return {f.detector: f.round for f in reversed(detect_failures(records, calibration)) if f.level == "alarm"}


def table(calibration: Calibration, folder: Path) -> None:
    """What was found, and what was not."""
    print("\n| run | what is broken | runs | any alarm | the right one | first alarm, round | alarms of |")
    print("|---|---|---:|---:|---:|---:|---|")
    for name, fault in (HEALTHY | FAULTS).items():
        found = [alarms(records, calibration) for records in kept(name, folder)]
        if found:
            print(row(name, fault, found))


def row(name: str, fault: Fault, found: list[dict[str, int]]) -> str:
    """A line of the table."""
    n, any_ = len(found), sum(map(bool, found))
    right = [min(a[d] for d in fault.expected if d in a) for a in found if set(fault.expected) & set(a)]
    counts = {d: sum(d in a for a in found) for a in found for d in a}
    cells = [
        name,
        fault.about,
        str(n),
        f"{any_}/{n}" + ("" if fault.expected else f" (at most {upper(any_, n):.1%})"),
        f"{len(right)}/{n}" if fault.expected else "–",
        f"{np.median(right):.0f}" if right else "–",
        ", ".join(f"{d} {c}" for d, c in sorted(counts.items(), key=lambda item: -item[1])),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", type=int, default=59)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="*", help="names of faults, fresh-healthy, fresh-scaffold; without a name only the table"
    )
    parser.add_argument("--data", nargs="*", default=(), metavar="KEY=VALUE", help="settings of other data")
    parser.add_argument("--base", default="demos/base", help="configuration of the healthy federation")
    parser.add_argument("--calibration", default="demos", help="name of a packaged calibration")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs' records")
    a = parser.parse_args()
    a.results.mkdir(parents=True, exist_ok=True)
    like: Prepared | None = None
    for name, fault in (HEALTHY | FAULTS).items():
        if a.only is None or name in a.only:
            for seed in range(a.fresh if name == IID else a.seeds):
                like = train(name, fault, seed, like, a.results, a.data, a.base)
    table(Calibration.load(PACKAGED / f"{a.calibration}.json"), a.results)


if __name__ == "__main__":
    main()
