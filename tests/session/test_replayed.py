"""Whatever a run trains, a device that replays steps gets the numbers of one that does not, or says why it does not replay.

A CPU gets the twin of CUDA graphs here, which fails where a replay would do anything else than the step that was recorded.
"""

from __future__ import annotations

import pytest

from chatting import write_rows
from fedfault.rounds import passes
from fedfault.setup import experiment
from small import start
from twin import record_twin

BRIEF = ["federation.num_rounds=2", "training.local_steps=5", "metrics.generation=false", "detectors.calibration=none"]
LABELS = ["data.task_type=classification", "model.max_length=32"]
ANSWERS = ["data.dataset=skills", "data.task_type=instruction", "model.max_length=64", "evaluation.generate=0"]
HIDDEN = ["federation.weighting=uniform", "privacy.delta=0.001", "privacy.noise_multiplier=1.0", "privacy.secret=s"]
REPLAYED = {
    "dropout, two rates, parts": ["model.lora.dropout=0.2", "training.lr_ratio=4", "training.gradient_accumulation=2"],
    "short batches": ["training.local_epochs=1", "training.local_steps=null"],
    "trained layers": ["model.trainable=partial", "training.activation_cache_mb=0"],
    "a frozen factor": ["federation.aggregation=ffa_lora"],
    "folded weights": ["federation.aggregation=flora"],
    "pruned ranks": ["federation.aggregation=hetlora", "federation.weighting=uniform"],
    "ditto": ["federation.algorithm=ditto"],
    "fedper": ["federation.aggregation=fedper"],
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
    "hidden examples": ([*HIDDEN, "privacy.unit=example"], "the noise of every step is drawn on the CPU"),
}  # fmt: skip


def run(folder, *words: str) -> tuple[list[list[float]], set[str]]:
    """Losses and norms of every round, and what its events say of replays."""
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n} it is", "rejected": "no " * (1 + n % 4)} for n in range(24)]
    own = ["data.dataset=text", f"data.path={write_rows(folder.parent / 'pairs.jsonl', pairs)}", "data.partition=iid"]
    records = start(folder, *BRIEF, *(own if "data.task_type=preference" in words else ()), *words).read_records()
    numbers = [
        [s.loss for s in r.scores.values()] + [x for c in r.clients for x in (c.loss, c.update_norm, c.grad_norm)]
        for r in records
    ]
    return numbers, {event for r in records for event in r.events if "replayed" in event}


@pytest.fixture
def recorded(monkeypatch):
    """Lets the CPU replay steps, from two of a shape on; the steps that were recorded."""
    steps = []

    def record(step):
        steps.append(step)
        return record_twin(step)

    def use() -> list:
        monkeypatch.setitem(experiment.RECORDS, "cpu", record)
        return steps

    monkeypatch.setattr(passes, "WORTH", 1)
    return use


@pytest.mark.long
@pytest.mark.parametrize("words", REPLAYED.values(), ids=REPLAYED)
def test_replayed_steps_give_the_numbers_of_the_steps(words, recorded, tmp_path):
    plain, _ = run(tmp_path / "plain", *words)
    steps = recorded()
    found, events = run(tmp_path / "replayed", *words)
    assert events == set()
    assert steps
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("words", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_replayed_is_the_same_to_the_bit_and_the_round_says_why(words, why, recorded, tmp_path):
    plain, _ = run(tmp_path / "plain", *words)
    steps = recorded()
    assert run(tmp_path / "stepwise", *words) == (plain, {f"steps are not replayed: {why}"})
    assert steps == []
