"""Whether a change of the code changed any number: runs 22 small configurations and keeps digests of what they gave.

    python scripts/same_numbers.py /tmp/before                     # at the old commit
    python scripts/same_numbers.py /tmp/after --against /tmp/before    # at the new one: says what differs, status 1

A commit that is older than this file gets a copy of it; `type` stands for `name` in some configurations, because such a commit
does not know the other. Compared bit by bit: every exported tensor, and every line of rounds.jsonl without seconds and the memory of the process.
Digests hold for one machine and one version of torch, so that both commands have to run on the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMALL = [
    "federation.total_clients=5", "federation.num_rounds=3", "federation.participation_rate=0.6",
    "training.local_steps=3", "training.batch_size=2", "data.max_samples=400", "evaluation.max_blocks=6",
    "evaluation.general_blocks=6", "detectors.calibration=none",
]  # fmt: skip
TIERS = "tiers=[{name: fast, count: 3}, {name: slow, count: 2, compute_factor: 0.2, bandwidth_up_mbps: 0.5%s}]"
LABELS = ["data.task_type=classification", "model.max_length=32"]
CONFIGURATIONS = {  # every kind of task, ranks, private factors, folds, several models, a clock
    "fedavg": [],
    "fedprox-decoupled": ["federation.algorithm={name: fedprox, mode: decoupled}", "training.optimizer=sgd"],
    "scaffold": ["federation.algorithm=scaffold", "model.lora.dropout=0.1"],
    "scaffold-I": [
        "federation.algorithm={name: scaffold, option: I}", "training.clients_per_pass=2", "data.max_samples=40",
    ],
    "moon": ["federation.algorithm=moon"],
    "feddyn": ["federation.algorithm=feddyn"],
    "fednova": ["federation.algorithm=fednova", "training.local_steps=null", "training.local_epochs=1"],
    "ifca": ["federation.algorithm=ifca"],
    "clustered": ["federation.algorithm={name: clustered, clusters: [0, 0, 1, 1, 1], shrinkage: 0.1}"],
    "private": ["federation.aggregation=fedsa_lora"],
    "folds": ["federation.aggregation=flora"],
    "residual": ["federation.aggregation=fedex_lora", "federation.algorithm=scaffold"],
    "server-optimiser": ["federation.algorithm=fedadam", "federation.aggregation=blockwise"],
    "alternates": ["federation.aggregation=rolora"],
    "prunes": ["federation.aggregation=hetlora", "federation.scheduler={type: fixed, ranks: [8, 4, 8, 2, 4]}"],
    "schedules": [
        "federation.aggregation=flexlora", "federation.scheduler={type: lite, r_bar: 4}", TIERS % "",
        "deadline={seconds: 60, straggler_policy: use_partial}",
    ],
    "quantised": [TIERS % ", quantization: 4bit", "training.local_steps=2"],
    "partial": ["model.trainable=partial"],
    "classification": LABELS,
    "classification-schedules": [*LABELS, "federation.aggregation=blockwise", "federation.scheduler=lite_star"],
    "encoder": [*LABELS, "model.name=minilm", "data.max_samples=60", "training.local_steps=1"],
    "regression": [
        "data.task_type=regression", "data.dataset=glue/stsb", "data.path={stsb}", "model.max_length=32",
        "data.max_samples=null",
    ],
}  # fmt: skip


def main() -> int:
    """Run the configurations that are not there yet, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("--against", type=Path, help="folder of an earlier call")
    parser.add_argument("--without", nargs="*", default=[], help="probes that one of the commits changed on purpose")
    parser.add_argument("--only", nargs="*", choices=CONFIGURATIONS, help="some of the configurations")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.only or list(CONFIGURATIONS)
    for name in names:
        make(name, given.out)
    if given.against is None:
        return 0
    if lost := [name for name in names if not (given.against / name / "report.html").is_file()]:
        raise SystemExit(f"{given.against} has no {', '.join(lost)}; run it at the old commit")
    found = {name: digests(name, given.out, given.without) for name in names}
    before = {name: digests(name, given.against, given.without) for name in found}
    wrong = [name for name in found if found[name] != before.get(name)]
    for name in found:
        print(f"{'DIFFERENT' if name in wrong else 'same':10} {name}")
    return 1 if wrong else 0


def make(name: str, out: Path) -> None:
    """Run a configuration if it is not there yet."""
    folder = out / name
    if not (folder / "report.html").is_file():
        settings = [text.replace("{stsb}", str(_stsb(out))) for text in [*SMALL, *CONFIGURATIONS[name]]]
        place = [f"experiment_name={name}", f"logging.results_dir={out}"]
        command = [sys.executable, "-m", "fedfault", "run", "quickstart", *settings, *place, "--overwrite", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")


def digests(name: str, out: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """What a run gave, by file."""
    folder = out / name
    found = {str(f.relative_to(folder)): tensors(f) for f in sorted((folder / "adapter").rglob("*.safetensors"))}
    return {
        **found,
        "rounds.jsonl": _digest(json.dumps(records(folder / "rounds.jsonl", without), sort_keys=True).encode()),
    }


def tensors(file: Path) -> str:
    """All tensors of a file by name: its own metadata do not count."""
    from safetensors.numpy import load_file

    return _digest(b"".join(name.encode() + t.tobytes() for name, t in sorted(load_file(file).items())))


def records(file: Path, without: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a run without what depends on the machine, and without some probes."""
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for record in found:
        del record["seconds"]
        record["probes"] = {
            k: v for k, v in record["probes"].items() if not k.endswith("memory_mb") and k not in without
        }
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _stsb(out: Path) -> Path:
    """A folder like STS-B's, of made-up sentences: those that share more words are more alike."""
    words = [
        "a",
        "dog",
        "cat",
        "runs",
        "sleeps",
        "in",
        "the",
        "garden",
        "house",
        "man",
        "plays",
        "sings",
        "with",
        "red",
        "small",
        "ball",
    ]
    folder = out / "stsb" / "STS-B"
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 120), ("dev", 40)):
        rows = ["\t".join(("index", "genre", "filename", "year", "old_index", "source1", "source2",
                           "sentence1", "sentence2", "score"))]  # fmt: skip
        for i in range(n):
            own = [words[(i * 7 + j * (3 + i % 5) + (part == "dev")) % len(words)] for j in range(6)]
            kept = i % 6
            other = own[:kept] + [words[(i * 11 + j) % len(words)] for j in range(6 - kept)]
            rows.append("\t".join((str(i), f"genre{i % 3}", "f", "2012", str(i), "s", "s",
                                   f"{' '.join(own)} {part} {i}", f"{' '.join(other)} {i}", str(kept))))  # fmt: skip
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder.parent


if __name__ == "__main__":
    sys.exit(main())
