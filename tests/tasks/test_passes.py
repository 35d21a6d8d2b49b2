"""Passes from the memory of a device: here one that is made up, with as much memory as a test says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cramped import Live
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.scorer import MEAN, Scorer
from fedfault.backbones.sites import lora_targets
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.rounds.carry import carry_over
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork
from fedfault.runs.folder import RunFolder
from fedfault.session.provenance import describe_passes
from fedfault.setup.federation import describe_need
from fedfault.setup.preview import _describe_pass
from fedfault.tasks import fitting
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask
from fedfault.text.examples import EncodedText, Examples
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Room
from fedfault.types.task import Step
from tiny import VOCAB, tiny_bert, tiny_llama

T, BATCH = 12, 2


@pytest.fixture
def device(monkeypatch):
    """Sets how many bytes the device has free; None is a device that nobody asks."""
    one = SimpleNamespace(free=None)
    monkeypatch.setattr(fitting, "find_free_bytes", lambda device: one.free)
    return one


def language(clients: int = 6) -> LanguageTask:
    model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    g = torch.Generator().manual_seed(0)
    blocks = lambda n: Blocks(torch.randint(VOCAB, (n, T + 1), generator=g), torch.full((n,), T))  # noqa: E731
    return LanguageTask(opened, [blocks(4) for _ in range(clients)], {"topic/a": blocks(40)}, {"topic/a": 1.0})


def labels() -> ClassificationTask:
    model = tiny_bert()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, scorer=Scorer(MEAN, 24, 2))
    rows = [EncodedText([1 + k % 9] * k, k) for k in (3, 5, 9, 14)]
    own = Examples.from_rows(rows, [0, 1, 1, 0])
    return ClassificationTask(opened, [own] * 5, {"topic/a": own})


def federation(task, **more) -> Federation:
    work = LocalWork(epochs=1, batch_size=BATCH, lr=0.01)
    parts = {"algorithm": build("algorithm", "fedavg"), "aggregation": build("aggregation", "fedit")}
    sizes = {"total_clients": len(task.counts), "cohort_size": len(task.counts), "num_rounds": 3}
    return Federation(task=task, **parts, work=work, **sizes, clients_per_pass=task.clients_per_pass(BATCH), **more)


def watch_passes(task) -> list[int]:
    """How many clients are in each gradient from now on."""
    seen, grad = [], task.grad
    task.grad = lambda params, step: (seen.append(len(params)), grad(params, step))[1]
    return seen


def room_for(make, clients: int) -> int:
    """Free bytes of which, less the margin, so many clients need all but a little."""
    task = make()
    return int(task.estimate_pass(clients, BATCH if make is language else 1) / fitting.MARGIN) + 100


@pytest.mark.parametrize("make", [language, labels])
@pytest.mark.parametrize("clients", [1, 3])
def test_as_many_clients_are_in_a_pass_as_fit_into_the_memory_that_is_free(make, clients, device):
    device.free = room_for(make, clients)
    assert make().clients_per_pass(BATCH) == clients


@pytest.mark.slow
def test_the_same_memory_holds_fewer_clients_with_larger_batches(device):
    device.free = room_for(language, 4)
    one, two, four = map(language().clients_per_pass, (1, 2, 4))
    assert one > two > four >= 1


@pytest.mark.slow
@pytest.mark.parametrize("make", [language, labels])
def test_numbers_do_not_depend_on_the_memory(make, device):
    ends = []
    for free in (None, room_for(make, 2), 10**12):
        device.free = free
        *_, (state, record) = rounds(fed := federation(make()), begin(fed))
        ends.append((state.adapter.flat, record.scores["validation"].loss))
    for flat, loss in ends[1:]:
        torch.testing.assert_close(flat, ends[0][0], rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(ends[0][1], rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_takes_the_passes_that_it_started_with(device, tmp_path):
    device.free = room_for(language, 2)
    task = language()
    seen, fed = watch_passes(task), federation(task)
    history = list(rounds(fed, begin(fed)))
    folder = RunFolder.create(tmp_path / "run")
    folder.save(history[1][0])
    device.free = 10**12
    later = language()
    again, fed = watch_passes(later), federation(later)
    assert fed.clients_per_pass > 6
    state, _ = folder.load(later.layout, "cpu")
    assert state.room == task.room
    *_, (end, _) = rounds(fed, state)
    assert later.room == task.room
    assert again == seen[len(seen) // 3 :]  # two of three rounds
    assert set(again) == {2}
    assert torch.equal(end.adapter.flat, history[-1][0].adapter.flat)


@pytest.mark.slow
def test_another_batch_size_gets_passes_of_its_own(device):
    device.free = room_for(language, 2)
    fed = federation(language())
    state = begin(fed)
    wider = replace(fed, clients_per_pass=5)
    assert carry_over(wider, state, {"training.batch_size"})[0].clients_per_pass == 5
    assert carry_over(wider, state, {"training.lr"})[0].clients_per_pass == 2


def cramp(task, name: str, most: float) -> None:
    """Let a method of the task run on a device with so many bytes."""
    method = getattr(task, name)

    def run(*given):
        with Live(most):
            return method(*given)

    setattr(task, name, run)


@pytest.mark.slow
def test_a_device_that_runs_out_in_training_gets_half_as_many_clients_and_that_is_kept(device):
    fed = federation(language())
    calm = list(rounds(fed, begin(fed)))[-1][0]
    with Live() as live:
        fed.task.grad(fed.task.init(0).flat.expand(3, -1), make_step(3))
    device.free = 10**12  # as if the estimate were far too low
    fed = federation(language())
    cramp(fed.task, "grad", 1.1 * live.peak)
    states = list(rounds(fed, begin(fed)))
    events = [e for _, record in states for e in record.events]
    assert events == ["out of memory: 3 clients in a pass from now on"]
    assert [state.clients_per_pass for state, _ in states[1:]] == [3, 3, 3]
    torch.testing.assert_close(states[-1][0].adapter.flat, calm.adapter.flat, rtol=1e-4, atol=1e-6)


def make_step(clients: int):
    rows = torch.arange(BATCH).expand(clients, -1)
    return Step(torch.arange(clients), rows, torch.ones_like(rows, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.parametrize("make", [language, labels])
def test_a_device_that_runs_out_in_an_evaluation_gets_smaller_passes_and_the_same_scores(make, device):
    task = make()
    expected = task.evaluate(task.init(0))
    device.free = 10**12
    task = make()
    room = task.room
    with Live() as live:
        task.compute_outputs(task.init(0).flat, torch.arange(sum(task.counts), len(task.ids))[-2:])
    cramp(task, "compute_outputs", 1.1 * live.peak)
    found = task.evaluate(task.init(0))
    assert task.room.training == room.training
    assert task.room.evaluation < room.evaluation
    assert found["validation"].loss == pytest.approx(expected["validation"].loss, rel=1e-6)


@pytest.mark.slow
def test_smaller_passes_of_an_evaluation_are_an_event_and_in_the_state(device):
    device.free = 10**12
    fed = federation(task := language())
    states = rounds(fed, begin(fed))
    next(states)
    task.room = Room(task.room.training, 1234)
    state, record = next(states)
    assert record.events == ("out of memory: 1,234 tokens in an evaluation pass from now on",)
    assert state.room.evaluation == 1234
    assert next(states)[1].events == ()


def test_one_row_that_cannot_be_evaluated_is_the_users_to_mend(device):
    device.free = 10**12
    task = language()
    cramp(task, "compute_outputs", 1000)
    with pytest.raises(UserError, match=r"one row of 12 tokens.*CUDA out of memory.*lower model\.max_length"):
        task.evaluate(task.init(0))


def test_a_pass_of_one_client_that_does_not_fit_names_estimate_memory_and_ways_out(device):
    device.free = 20_000
    task = language()
    with pytest.raises(
        UserError, match=r"2 x 12 tokens, takes about .* GB on cpu, where 0\.0 GB are free; lower training\."
    ):
        task.clients_per_pass(BATCH)


@pytest.mark.slow
def test_who_runs_out_with_one_client_is_told_what_was_expected(device):
    device.free = 10**12
    task = language()
    fed = federation(task, need=describe_need(task, BATCH))
    cramp(task, "grad", 10_000)
    with pytest.raises(
        UserError, match=r"one client in a pass, which takes about .* of the 1,000\.0 GB that were free"
    ):
        list(rounds(fed, begin(fed)))


@pytest.mark.slow
def test_check_and_manifest_say_what_was_chosen(device):
    device.free = room_for(language, 2)
    p = SimpleNamespace(federation=federation(language()), task=(task := language()))
    peak = f"{task.estimate_pass(2, BATCH) / 1e9:,.2f} GB"
    assert _describe_pass(p) == f"2 clients in a pass, for about {peak} of the 0.0 GB that are free beside the model"
    assert describe_passes(p) == {
        "clients": 2,
        "training_tokens": task.room.training,
        "evaluation_tokens": task.room.evaluation,
        "free_bytes": device.free,
    }
    device.free = None
    p = SimpleNamespace(federation=federation(language()), task=language())
    assert (
        _describe_pass(p)
        == f"6 clients in a pass, for about {task.estimate_pass(6, BATCH) / 1e9:,.2f} GB beside the model"
    )
    assert describe_passes(p) == {"clients": p.federation.clients_per_pass}


@pytest.mark.slow
def test_personal_models_are_scored_side_by_side_where_there_is_room(device):
    """Two to seven blocks a client, ten of the server. 20 blocks hold 10 and 7, then 6, 5 and 4, then 3 and 2."""
    g = torch.Generator().manual_seed(5)
    sets = {"topic/a": 10, **{f"client/{k}": 2 + k for k in range(6)}}

    def score(free: int | None, evaluation: int | None = None):
        device.free = free
        task = language()
        targets = lambda n: torch.full((n,), T).index_fill(0, torch.tensor([n - 1]), 5)  # noqa: E731
        ids = torch.Generator().manual_seed(1)
        rows = {name: Blocks(torch.randint(VOCAB, (n, T + 1), generator=ids), targets(n)) for name, n in sets.items()}
        task = LanguageTask(task.model, task.split_training_rows(), rows, {"topic/a": 1.0})
        if evaluation is not None:
            task.room = Room(task.room.training, evaluation)
        calls, losses = [], task.model.losses
        task.model.losses = lambda flat, *given, **more: (calls.append(len(flat)), losses(flat, *given, **more))[1]
        found = task.evaluate(Adapter(task.layout, personal[0]), Adapter(task.layout, personal))
        task.model.losses = losses
        return {name: one.loss for name, one in found.items()}, task.held_out(personal, torch.arange(6)), calls

    personal = 0.1 * torch.randn(6, language().layout.size, generator=g)
    expected, apart, calls = score(None)
    assert set(calls) == {1}
    for evaluation, passes in ((None, [7]), (12 * 20, [2, 3, 2])):
        found, held_out, calls = score(10**12, evaluation)
        assert [n for n in calls if n > 1] == passes
        assert found == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(held_out, apart, rtol=1e-6, atol=0)
