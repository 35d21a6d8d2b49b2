"""Evaluations whose passes are recorded and replayed give the bits of those that are not; a CPU has the twin of a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.backbones import replay
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.memory import RECORDED
from fedfault.backbones.scorer import LAST, MEAN, Scorer
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.tasks import fitting
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask
from fedfault.text.conversing import EncodedConversation
from fedfault.text.examples import EncodedText, Examples
from fedfault.text.packing import Blocks
from fedfault.text.responses import Responses
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Room
from fedfault.types.task import Served
from tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama
from twin import list_recorded, record_twin

T = 8


@pytest.fixture
def recorded(monkeypatch):
    """Lets the CPU record passes, from the second of a shape on; those that were recorded."""
    steps, record = list_recorded()
    monkeypatch.setitem(replay.PASSES, "cpu", record)
    monkeypatch.setattr(replay, "MET", 1)
    monkeypatch.setattr(fitting, "EVALUATION_TOKENS", 5 * T)  # several passes, of which the last one is smaller
    return steps


def blocks(make=tiny_llama, cache_mb: int = 0, trained=lora_targets) -> LanguageTask:
    model = make()
    opened = CohortModel(model, trained(model, None), r=2, alpha=4.0, dropout=0.1)
    g = torch.Generator().manual_seed(0)
    own = lambda n: Blocks(torch.randint(VOCAB, (n, T + 1), generator=g), torch.full((n,), T))  # noqa: E731
    sets = {"topic/a": own(12), "client/0": own(3), "client/1": own(2)}
    return LanguageTask(opened, [own(4), own(3)], sets, {"topic/a": 1.0}, cache_mb=cache_mb)


def responses() -> LanguageTask:
    model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    g = torch.Generator().manual_seed(0)
    rows = [
        EncodedConversation(torch.randint(1, VOCAB, (n,), generator=g).tolist(), [False] * 2 + [True] * (n - 2))
        for n in (4, 9, 12, 5, 7, 12, 3, 6, 10)
    ]
    own = Responses.from_rows(rows, 16)
    return LanguageTask(opened, [own, own], {"topic/a": own, "client/0": own[[1, 2]]}, {"topic/a": 1.0})


def labels(make, pooling: str) -> ClassificationTask:
    model = make()
    scorer = Scorer(pooling, model.config.hidden_size, 2)
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, scorer=scorer)
    rows = [EncodedText([1 + (k * i + i * i) % 9 for i in range(k)], max(2, k // 2)) for k in (3, 5, 9, 12, 12, 4, 7)]
    own = Examples.from_rows(rows, [0, 1, 1, 0, 1, 0, 0])
    return ClassificationTask(opened, [own, own], {"topic/a": own, "client/0": own[[0, 1]]})


TASKS = [
    pytest.param(blocks, marks=pytest.mark.slow, id="blocks"),
    pytest.param(lambda: blocks(tiny_gpt2), marks=pytest.mark.slow, id="blocks, GPT-2"),
    pytest.param(responses, id="responses"),
    pytest.param(lambda: labels(tiny_bert, MEAN), marks=pytest.mark.slow, id="labels, encoder"),
    pytest.param(lambda: labels(tiny_llama, LAST), id="labels, decoder"),
]


def moved(task, seed: int) -> Adapter:
    start = task.init(0)
    noise = torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(seed))
    return Adapter(start.layout, start.flat + 0.1 * noise)


def score(task) -> list:
    """What four models score, those of the clients, and single texts under two models."""
    models = [moved(task, n) for n in range(4)]
    own = torch.stack([moved(task, n).flat for n in (5, 6)])
    served = [Served(models[0], Adapter(task.layout, own))]
    found = [task.evaluate(x) for x in models]
    texts = [text.members.tolist() for text in task.text_losses([own[0], own[1]], [0, 1], 3)]
    return [*found, task.evaluate_each(served), task.held_out(own, torch.arange(2)).tolist(), texts]


@pytest.mark.slow
@pytest.mark.parametrize("make", TASKS)
def test_replayed_evaluations_give_the_bits_of_the_others(make, recorded):
    task = make()
    found = score(task)
    assert recorded
    assert task.take_events() == []
    plain = make()
    plain.model.recordings.record = None
    assert repr(found) == repr(score(plain))


@pytest.mark.slow
def test_clients_side_by_side_are_one_recorded_pass(recorded):
    found = []
    for record in (record_twin, None):
        task = blocks()
        task.model.recordings.record = record and replay.PASSES["cpu"]
        task.room = Room(100, 100)  # as a device with memory for 12 rows has it
        models = [torch.stack([moved(task, n).flat, moved(task, n + 4).flat]) for n in range(4)]
        found.append([task.held_out(own, torch.arange(2)).tolist() for own in models])
    assert found[0] == found[1]
    assert len(recorded) == 1


@pytest.mark.slow
def test_weights_that_an_aggregation_adds_to_are_those_of_the_replays(recorded):
    task, plain = blocks(), blocks()
    plain.model.recordings.record = None
    site = task.layout.lora[0]
    for n in range(3):
        base = {site.name: torch.full((site.shape[2], site.shape[1]), 0.1 * n)} if n else {}
        for one in (task, plain):
            one.fold(base)
        for x in (moved(task, seed) for seed in range(3)):
            assert task.evaluate(x) == plain.evaluate(x)
    assert recorded


@pytest.mark.slow
def test_what_a_cache_looks_up_is_not_recorded(recorded):
    task = blocks(cache_mb=8, trained=lambda model, _: partial_targets(model, 1, []))
    assert task.cache is not None
    score(task)
    assert recorded == []


@pytest.mark.slow
def test_a_pass_that_a_graph_cannot_repeat_is_computed_and_the_round_says_why(monkeypatch):
    def fail(step):
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setitem(replay.PASSES, "cpu", fail)
    monkeypatch.setattr(replay, "MET", 1)
    task = blocks()
    parts = {"algorithm": build("algorithm", "fedavg"), "aggregation": build("aggregation", "fedit")}
    sizes = {"total_clients": 2, "cohort_size": 2, "num_rounds": 3}
    fed = Federation(task=task, **parts, work=LocalWork(epochs=1, batch_size=2, lr=0.01), **sizes)
    records = [record for _, record in rounds(fed, begin(fed))]
    said = "evaluation passes are not replayed: operation not permitted when stream is capturing"
    assert [record.events for record in records] == [(), (said,), (), ()]


def test_what_recorded_passes_keep_is_a_share_of_the_free_memory(monkeypatch, recorded):
    monkeypatch.setattr(fitting, "find_free_bytes", lambda device: 10**7)
    small = blocks()
    monkeypatch.setattr(fitting, "find_free_bytes", lambda device: 10**8)
    large = blocks()
    one, ten = small.model.recordings.most, large.model.recordings.most
    assert 0 < one < ten
    assert ten == pytest.approx(10 * one, rel=0.05)
    assert one * small.model.logit_bytes() < RECORDED * 10**7


@pytest.mark.long
def test_a_resumed_run_has_the_numbers_of_one_that_went_on(recorded):
    parts = {"algorithm": build("algorithm", "fedavg"), "aggregation": build("aggregation", "fedit")}
    sizes = {"total_clients": 2, "cohort_size": 2, "num_rounds": 4}
    fed = Federation(task=blocks(), **parts, work=LocalWork(epochs=1, batch_size=2, lr=0.01), **sizes)
    history = list(rounds(fed, begin(fed)))
    again = [record for _, record in rounds(replace(fed, task=blocks()), history[2][0])]
    assert [r.scores for r in again] == [r.scores for _, r in history[3:]]
    assert recorded
