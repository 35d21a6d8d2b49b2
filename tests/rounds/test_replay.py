"""Steps of local training, recorded and replayed: a CPU's twin of CUDA graphs holds them to what a graph repeats."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.backbones import replay
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.replay import refuse_to_record
from fedfault.backbones.scorer import LAST, MEAN, Scorer
from fedfault.backbones.sites import lora_targets
from fedfault.rounds import passes as trips
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.tasks import grouping
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask
from fedfault.tasks.preference import Objective, PreferenceTask
from fedfault.text.conversing import EncodedConversation
from fedfault.text.examples import EncodedText, Examples
from fedfault.text.responses import Responses
from fedfault.types.task import Step
from steps import EXTRA, extra_terms, make_task
from tiny import VOCAB, tiny_bert, tiny_llama
from twin import record_twin

STEPS = 9


@pytest.fixture(autouse=True)
def _few_steps_are_worth_it(monkeypatch):
    monkeypatch.setattr(trips, "WORTH", 2)


def labels_of(model, pooling: str) -> ClassificationTask:
    scorer = Scorer(pooling, model.config.hidden_size, 2)
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.1, scorer=scorer)
    rows = [EncodedText([1 + (k * i + i * i) % 9 for i in range(k)], max(2, k // 2)) for k in (3, 5, 9, 12, 12, 4, 7)]
    own = Examples.from_rows(rows, [0, 1, 1, 0, 1, 0, 0])
    return ClassificationTask(opened, [own, own[[0, 2, 4]], own[[1, 3, 5, 6]]], {})


def labels_of_an_encoder() -> ClassificationTask:
    return labels_of(tiny_bert(), MEAN)


def labels_of_a_decoder() -> ClassificationTask:
    return labels_of(tiny_llama(), LAST)


def make_rows(numbers) -> Responses:
    g = torch.Generator().manual_seed(5)
    every = [
        EncodedConversation(
            torch.randint(1, VOCAB, (n,), generator=g).tolist(), [False] * (n // 2) + [True] * (n - n // 2)
        )
        for n in (4, 9, 12, 5, 7, 12, 3, 6, 10, 11, 5, 8)
    ]
    return Responses.from_rows([every[n] for n in numbers], 16)


def responses() -> LanguageTask:
    model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.1)
    return LanguageTask(opened, [make_rows(range(7)), make_rows(range(3)), make_rows(range(2, 6))], {}, {})


def preferences() -> PreferenceTask:
    model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.1)
    clients = [make_rows(range(12)), make_rows(range(4)), make_rows(range(2, 8))]
    return PreferenceTask(opened, clients, {}, {}, Objective("dpo", 0.4))


def train(task, extra, record, optimizer="adamw", events=None, batch_size=2, parts=1, steps=STEPS):
    """Clients with 5, 3 and 4 examples, or about as many: two batches and one that is not full an epoch, or fewer."""
    size = {"batch_size": batch_size, "parts": parts}
    work = LocalWork(epochs=None, steps=steps, lr=0.01, optimizer=optimizer, **size)
    passes = Passes(3, [] if events is None else events)
    trainer = Trainer(task, work, seed=0, round=1, clients=[0, 1, 2], passes=passes, effort=[1, 0.4, 1], record=record)
    return trainer(task.init(0), extra, mean_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", EXTRA)
def test_a_recorded_pass_gives_what_its_steps_give(name, optimizer):
    """With dropout, short batches, and a client that ends early: then a second recording is made for the other two."""
    task, events, recorded = make_task(), [], []

    def record(step):
        recorded.append(step)
        return record_twin(step)

    plain = train(task, extra_terms(task)[name], None, optimizer)
    found = train(task, extra_terms(task)[name], record, optimizer, events)
    assert events == []
    assert len(recorded) == 2
    for one, other in zip(vars(found).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(getattr(one, "flat", one), getattr(other, "flat", other), rtol=1e-4, atol=1e-6)


UNEQUAL = [  # in parts, with terms, and with a contrast, which takes one group
    pytest.param(labels_of_an_encoder, "fedprox", 2, id="encoder"),
    pytest.param(labels_of_an_encoder, "moon", 1, marks=pytest.mark.long, id="encoder, contrast"),
    pytest.param(labels_of_a_decoder, "plain", 1, marks=pytest.mark.long, id="decoder"),
    pytest.param(responses, "plain", 2, marks=pytest.mark.long, id="responses, parts"),
    pytest.param(responses, "moon", 1, marks=pytest.mark.long, id="responses, contrast"),
    pytest.param(preferences, "plain", 1, marks=pytest.mark.long, id="preferences"),
    pytest.param(preferences, "fedprox", 2, marks=pytest.mark.long, id="preferences, parts"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name", "parts"), UNEQUAL)
def test_rows_of_unequal_length_are_recorded_in_groups_that_fit_every_step(make, name, parts, monkeypatch):
    """With dropout, batches that are not full, and a client that ends early."""
    monkeypatch.setattr(grouping, "PASS", 0)  # so that there is more than one group
    task, events, recorded = make(), [], []

    def record(step):
        recorded.append(step)
        return record_twin(step)

    plain = train(task, extra_terms(task)[name], None, batch_size=4, parts=parts, steps=5)
    found = train(task, extra_terms(task)[name], record, batch_size=4, parts=parts, steps=5, events=events)
    assert events == []
    assert recorded
    for one, other in zip(vars(found).values(), vars(plain).values(), strict=True):
        torch.testing.assert_close(getattr(one, "flat", one), getattr(other, "flat", other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_step_of_a_classifier_asks_the_device_nothing_once_its_groups_are_known():
    with torch.device("meta"):
        model = tiny_llama()
    task = labels_of(model, LAST)
    rows = torch.arange(4).expand(3, -1)
    step = Step(torch.arange(3), rows, torch.ones_like(rows, dtype=torch.bool), torch.arange(3))
    groups = task.plan_groups([step])
    assert sum(b for b, _ in groups) == 4
    assert max(T for _, T in groups) == int(task.lengths.max())
    there = replace(step.to(torch.device("meta")), host=None, groups=(groups,))
    loss, gradient, tokens = task.grad(torch.empty(3, task.layout.size, device="meta"), there)
    assert {x.device.type for x in (loss, gradient, tokens)} == {"meta"}


@pytest.mark.slow
def test_what_cannot_be_recorded_is_taken_step_by_step_and_the_round_says_why():
    def fail(step):
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    task, events = make_task(), []
    plain = train(task, extra_terms(task)["plain"], None)
    found = train(task, extra_terms(task)["plain"], fail, events=events)
    torch.testing.assert_close(found.adapter.flat, plain.adapter.flat, rtol=1e-4, atol=1e-6)
    assert events == ["steps are not replayed: operation not permitted when stream is capturing"]


@pytest.mark.slow
def test_what_is_refused_is_the_step_by_step_training_to_the_bit():
    task, events = make_task(), []
    plain = train(task, extra_terms(task)["scaffold"], None)
    found = train(task, extra_terms(task)["scaffold"], refuse_to_record("of a cache"), events=events)
    assert torch.equal(found.adapter.flat, plain.adapter.flat)
    assert events == ["steps are not replayed: of a cache"]
    assert refuse_to_record("of a cache") is refuse_to_record("of a cache")  # runs that share passes compare it


@pytest.mark.slow
def test_memory_that_runs_out_while_recording_halves_the_pass():
    calls = []

    def tight(step):
        calls.append(step)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return record_twin(step)

    events = []
    train(make_task(), extra_terms(make_task())["plain"], tight, events=events)
    assert events == ["out of memory: 1 clients in a pass from now on"]


def test_memory_that_runs_out_while_a_pass_is_set_up_halves_it_too(monkeypatch):
    plain, made, events = train(make_task(), extra_terms(make_task())["plain"], None), [], []

    class Tight(trips._Optimizer):
        def __init__(self, *given):
            made.append(given)
            if len(made) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().__init__(*given)

    monkeypatch.setattr(trips, "_Optimizer", Tight)
    found = train(make_task(), extra_terms(make_task())["plain"], None, events=events)
    assert events == ["out of memory: 1 clients in a pass from now on"]
    torch.testing.assert_close(found.adapter.flat, plain.adapter.flat)


@pytest.mark.cuda
@pytest.mark.parametrize("name", EXTRA)
def test_a_graph_gives_what_the_steps_give(name):
    task, events = make_task(device="cuda"), []
    plain = train(task, extra_terms(task)[name], None)
    found = train(task, extra_terms(task)[name], replay.record_graph, events=events)
    assert events == []
    torch.testing.assert_close(found.adapter.flat, plain.adapter.flat, rtol=1e-3, atol=1e-5)
    again = train(task, extra_terms(task)[name], replay.record_graph)
    assert torch.equal(again.adapter.flat, found.adapter.flat)
