"""Whatever a run trains, a device that replays steps gets the numbers of one that does not, or says why it does not replay.

A CPU gets the twin of CUDA graphs here, which fails where a replay would do anything else than the step that was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chatting import write_rows
from fedfault.config import load
from fedfault.rounds import passes
from fedfault.rounds.federation import Federation
from fedfault.setup.experiment import Prepared, prepare
from fedfault.setup.federation import RECORDS
from fedfault.testing.toys import run_to_end
from small import SMALL
from twin import list_recorded

BRIEF = ["federation.num_rounds=2", "training.local_steps=3", "metrics.generation=false", "evaluation.general=none"]
LABELS = ["data.task_type=classification", "model.max_length=32"]
ANSWERS = [
    "data.dataset=skills",
    "data.task_type=instruction",
    "model.max_length=64",
    "evaluation.generate=0",
    "evaluation.max_blocks=1",
]
HIDDEN = ["federation.weighting=uniform", "privacy.delta=1e-5", "privacy.noise_multiplier=1.0", "privacy.secret=s"]
REPLAYED = {
    "dropout, two rates, parts": ["model.lora.dropout=0.2", "training.lr_ratio=4", "training.gradient_accumulation=2"],
    "trained layers": ["model.trainable=partial", "training.activation_cache_mb=0"],
    "a frozen factor": ["federation.aggregation=ffa_lora"],
    "folded weights": ["federation.aggregation=flora"],
    "pruned ranks": ["federation.aggregation=hetlora", "federation.weighting=uniform"],
    "ditto": ["federation.algorithm=ditto"],
    "apfl": ["federation.algorithm=apfl"],
    "fedper": [*LABELS, "federation.aggregation=fedper"],
    "fedrep": [*LABELS, "federation.aggregation={name: fedper, in_turn: true}", "training.local_steps=6"],
    "scaffold": ["federation.algorithm=scaffold"],
    "moon": ["federation.algorithm=moon"],
    "attacks": ["attacks=[{name: sign_flip}, {name: gaussian_noise, from_round: 2}]"],
    "hidden clients": [*HIDDEN, "privacy.unit=client"],
    "labels": LABELS,
    "labels, parts, an attack": [*LABELS, "training.gradient_accumulation=2", "attacks=[{name: label_flip}]"],
    "labels and moon": [*LABELS, "federation.algorithm=moon"],
    "answers": [*ANSWERS, "training.gradient_accumulation=2"],
    "preferences": ["data.task_type=preference", "model.max_length=64", "training.gradient_accumulation=2"],
}
REFUSED = {
    "looked up": (
        ["model.trainable=partial", "training.activation_cache_mb=64"], "rows are looked up in the activation cache"
    ),
    "computed again": (["training.gradient_checkpointing=true"], "blocks are computed again for the gradient"),
    "hidden examples": ([*HIDDEN, "privacy.unit=example"], None),  # records of a private run have no events
}  # fmt: skip


def prepare_small(folder: Path, words: Sequence[str]) -> Prepared:
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": "no " * (1 + n % 4)} for n in range(24)]
    own = ["data.dataset=text", f"data.path={write_rows(folder / 'pairs.jsonl', pairs)}", "data.partition=iid"]
    preferences = "data.task_type=preference" in words
    return prepare(load("quickstart", [*SMALL, *BRIEF, *(own if preferences else ()), *words]).experiment)


def train(fed: Federation) -> tuple[list[list[float]], set[str]]:
    """Losses and norms of every round, and what its events say of replays."""
    _, records = run_to_end(replace(fed))
    fed.task.fold({})
    numbers = [
        [s.loss for s in r.scores.values()] + [x for c in r.clients for x in (c.loss, c.update_norm, c.grad_norm)]
        for r in records
    ]
    return numbers, {event for r in records for event in r.events if "replayed" in event}


@pytest.fixture
def recorded(monkeypatch):
    """Lets the CPU replay steps, from two of a shape on; the steps that were recorded."""
    steps, record = list_recorded()
    monkeypatch.setitem(RECORDS, "cpu", record)
    monkeypatch.setattr(passes, "WORTH", 1)
    return steps


@pytest.mark.long
@pytest.mark.parametrize("words", REPLAYED.values(), ids=REPLAYED)
def test_replayed_steps_give_the_numbers_of_the_steps(words, recorded, tmp_path):
    fed = prepare_small(tmp_path, words).federation
    plain, _ = train(replace(fed, record=None))
    assert recorded == []
    found, events = train(fed)
    assert events == set()
    assert recorded
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("words", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_replayed_is_the_same_to_the_bit_and_the_round_says_why(words, why, recorded, tmp_path):
    fed = prepare_small(tmp_path, words).federation
    plain, _ = train(replace(fed, record=None))
    assert train(fed) == (plain, set() if why is None else {f"steps are not replayed: {why}"})
    assert recorded == []
