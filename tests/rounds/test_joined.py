"""Jobs of several runs done as one give what each gives alone, and a fault stays with the run that has it."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.moon import contrastive_loss
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.scorer import MEAN, Scorer
from fedfault.backbones.sites import lora_targets
from fedfault.errors import UserError, is_out_of_memory
from fedfault.rounds import joined, passes
from fedfault.rounds.integrity import EntryCheck, IntegrityError
from fedfault.rounds.joined import JoinedJobs
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.passes import train_job
from fedfault.rounds.trainer import Trainer
from fedfault.tasks.base import CohortTask
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.preference import Objective, PreferenceTask
from fedfault.text.conversing import EncodedConversation
from fedfault.text.examples import EncodedText, Examples
from fedfault.text.responses import Responses
from fedfault.types.algorithm import PLAIN, ExtraTerms
from steps import make_task
from tiny import tiny_bert, tiny_llama
from twin import record_twin

WORK = LocalWork(epochs=1, batch_size=2, lr=0.01, max_grad_norm=0.5, weight_decay=0.1)


def make_labels(dropout: float = 0.0) -> ClassificationTask:
    model = tiny_bert()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=dropout, scorer=Scorer(MEAN, 24, 2))
    rows = [EncodedText([1 + k % 9] * k, k) for k in (3, 5, 9, 14)]
    own = Examples.from_rows(rows, [0, 1, 1, 0])
    return ClassificationTask(opened, [own] * 3, {})


def make_pairs(objective: Objective) -> PreferenceTask:
    """Two clients, of one pair and of two."""
    model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    rows = [
        EncodedConversation([1 + (k * i) % 9 for i in range(6)], [False, False, *[True] * 4])
        for k in (1, 2, 3, 5, 4, 7)
    ]
    return PreferenceTask(
        opened, [Responses.from_rows(rows[:2], 16), Responses.from_rows(rows[2:], 16)], {}, {}, objective
    )


def alike(task: CohortTask, count: int) -> list[CohortTask]:
    """Tasks of further runs on the same model, with the clients in another order."""
    rows = task.split_training_rows()
    return [task, *(task.make_like(rows[i:] + rows[:i]) for i in range(1, count))]


def make_jobs(tasks, *works: LocalWork, extra: ExtraTerms = PLAIN, clients=((0, 1, 2), (2, 0), (1,)), **more):
    jobs = []
    for seed, (task, work, own) in enumerate(zip(tasks, works, clients, strict=False)):
        trainer = Trainer(EntryCheck(task), work, seed=seed, round=1, clients=own, passes=Passes(3), **more)
        trainer.start = task.init(seed).flat.expand(len(own), -1)
        trainer.task.expect({"x": task.init(seed)}, own)
        jobs.append(trainer.make_job(extra, mean_grad=True))
    return jobs


@pytest.fixture
def sizes(monkeypatch):
    """How many clients each joint job has that was done as one."""
    seen, split = [], joined._split

    def note(done, jobs, seconds):
        seen.append(len(done.y))
        return split(done, jobs, seconds)

    monkeypatch.setattr(joined, "_split", note)
    return seen


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.y, other.y, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.sums, other.sums, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.gradients, other.gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_task, make_labels])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_jobs_done_as_one_give_what_each_gives_alone(make, optimizer, sizes):
    """With dropout, other seeds, lengths and rates; and with one rate for all."""
    tasks = alike(make(dropout=0.1), 3)
    same = replace(WORK, optimizer=optimizer, weight_decay=0.1 if optimizer == "adamw" else 0.0)
    for works in ([same, replace(same, lr=0.03), replace(same, epochs=3, lr=0.001)], [same] * 3):
        alone = [train_job(job) for job in make_jobs(tasks, *works)]
        found = JoinedJobs().train(make_jobs(tasks, *works))
        check_same(found, alone)
        assert all(done.seconds > 0 for done in found)
    assert sizes == [6, 6]


@pytest.mark.slow
def test_data_is_put_together_once_and_again_when_runs_come_or_go(sizes, monkeypatch):
    tasks, made, make_like = alike(make_task(), 3), [], type(make_task()).make_like
    monkeypatch.setattr(type(tasks[0]), "make_like", lambda self, rows: made.append(len(rows)) or make_like(self, rows))
    both, three = JoinedJobs(), [WORK] * 3
    check_same(both.train(make_jobs(tasks[:2], *three)), map(train_job, make_jobs(tasks[:2], *three)))
    for _ in range(2):
        check_same(both.train(make_jobs(tasks, *three)), map(train_job, make_jobs(tasks, *three)))
    check_same(both.train(make_jobs(tasks[1:], *three)), map(train_job, make_jobs(tasks[1:], *three)))
    both.forget(tasks[0])
    check_same(both.train(make_jobs(tasks[1:], *three)), map(train_job, make_jobs(tasks[1:], *three)))
    assert made == [6, 9, 6]
    assert sizes == [5, 6, 6, 5, 5]


def test_what_is_frozen_for_one_run_stays_and_moves_for_the_other(sizes):
    tasks = alike(make_task(), 2)
    mask = torch.rand(tasks[0].layout.size, generator=torch.Generator().manual_seed(0)) < 0.5
    jobs = lambda: [*make_jobs(tasks[:1], WORK, trainable=mask), *make_jobs(tasks[1:], WORK)]  # noqa: E731
    found = JoinedJobs().train(jobs())
    check_same(found, map(train_job, jobs()))
    assert torch.equal(found[0].y[:, ~mask], jobs()[0].start[:, ~mask])
    assert sizes == [6]


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["in the gradient", "after the step"])
def test_each_job_keeps_the_terms_of_its_own_algorithm(after, sizes, monkeypatch):
    """SCAFFOLD and FedDyn, with numbers of each client, a run without a term, and a penalty; alone, joined and recorded."""
    tasks = alike(make_task(dropout=0.0), 4)
    c, a = torch.randn(3, tasks[0].layout.size) * 0.01, torch.tensor([[0.5], [2.0], [0.1]])
    pulls = [lambda y, x, rows: c[rows], None, lambda y, x, rows: a[rows] * (y - x) - c[rows], None]
    extras = [ExtraTerms(**{"step" if after else "gradient": pull}) for pull in pulls]
    penalties = [None, None, None, lambda y, x, rows: 0.3 * y]
    kinds = list(zip(tasks, extras, penalties, ((0, 1, 2), (2, 0), (1, 2, 0), (0, 2)), strict=True))

    def jobs(record=None):
        return [
            replace(make_jobs([t], WORK, extra=extra, clients=[own])[0], penalty=penalty, record=record)
            for t, extra, penalty, own in kinds
        ]

    def record(step):
        recorded.append(step)
        return record_twin(step)

    recorded: list = []
    monkeypatch.setattr(passes, "WORTH", 1)
    alone = [train_job(job) for job in jobs()]
    check_same(JoinedJobs().train(jobs()), alone)
    check_same(JoinedJobs().train(replayed := jobs(record)), alone)
    assert sizes == [10, 10]
    assert recorded
    assert not any(job.passes.events for job in replayed)
    plain = train_job(make_jobs(tasks[2:3], WORK, clients=[(1, 2, 0)])[0])
    assert not torch.allclose(alone[2].y, plain.y, rtol=1e-4)  # the terms do count


@pytest.mark.slow
def test_gradients_at_a_mixture_are_those_of_the_job_that_asks_for_it(sizes):
    """APFL, with a share for each client, beside a run that takes gradients where its clients are; the order matters not."""
    tasks = alike(make_task(dropout=0.0), 2)
    share, other = torch.tensor([[0.2], [0.5], [0.9]]), 0.1 * torch.randn(3, tasks[0].layout.size)

    def mix(y, rows):
        return share[rows] * y + (1 - share[rows]) * other[rows], share[rows]

    def jobs(order=(0, 1)):
        kinds = [(tasks[0], ExtraTerms(mixture=mix), (0, 1, 2)), (tasks[1], PLAIN, (2, 0))]
        made = [make_jobs([t], WORK, extra=extra, clients=[own])[0] for t, extra, own in (kinds[i] for i in order)]
        return [replace(job, task=job.task.inner) for job in made]

    alone = [train_job(job) for job in jobs()]
    check_same(JoinedJobs().train(jobs()), alone)
    check_same(JoinedJobs().train(jobs((1, 0))), alone[::-1])
    assert sizes == [5, 5]
    plain = train_job(make_jobs(tasks[:1], WORK)[0])
    assert not torch.allclose(alone[0].y, plain.y, rtol=1e-4)


def test_a_job_that_goes_on_from_where_its_clients_stand_keeps_its_anchor(sizes):
    """Beside a run that begins: what the first adds pulls to where training started, not to where it goes on."""
    tasks = alike(make_task(dropout=0.0), 2)
    pull = ExtraTerms(gradient=lambda y, x, rows: 0.5 * (y - x))

    def jobs():
        first, second = make_jobs(tasks, WORK, WORK, extra=pull)
        return [replace(first, task=first.task.inner, begun=first.start + 0.01), second]

    found = JoinedJobs().train(jobs())
    check_same(found, [train_job(job) for job in jobs()])
    assert sizes == [5]
    assert not torch.allclose(found[0].y, train_job(make_jobs(tasks, WORK, extra=pull)[0]).y, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_task, make_labels])
def test_runs_with_a_contrast_share_passes_among_themselves(make, sizes):
    """Each with previous models and a strength of its own, beside a run without, which groups its rows by length."""
    tasks = alike(make(dropout=0.0), 3)
    g = torch.Generator().manual_seed(0)
    previous = torch.randn(3, tasks[0].layout.size, generator=g)

    def contrast(mu: float) -> ExtraTerms:
        return ExtraTerms(
            loss=lambda z, see, rows: mu * contrastive_loss(z, see(0 * previous[rows]), see(previous[rows]), 0.5)
        )

    kinds = list(zip(tasks, (contrast(1.0), contrast(5.0), PLAIN), ((0, 1, 2), (2, 0), (1, 0)), strict=True))
    jobs = lambda: [make_jobs([t], WORK, extra=extra, clients=[own])[0] for t, extra, own in kinds]  # noqa: E731
    alone = [train_job(job) for job in jobs()]
    check_same(JoinedJobs().train(jobs()), alone)
    assert sizes == [5]
    plain = train_job(make_jobs(tasks[1:2], WORK, clients=[(2, 0)])[0])
    assert not torch.allclose(alone[1].y, plain.y, rtol=1e-4)


def test_a_sum_of_gradients_goes_to_the_runs_that_ask_for_one(sizes):
    tasks = alike(make_task(), 2)
    one, other = make_jobs(tasks, WORK, WORK)
    found = JoinedJobs().train([one, replace(other, mean_grad=False)])
    assert sizes == [5]
    check_same(found[:1], [train_job(make_jobs(tasks, WORK)[0])])
    assert found[1].gradients is None


@pytest.mark.parametrize("what", ["a contrast", "another batch", "another model", "folded weights"])
def test_jobs_of_another_kind_are_done_alone(what, sizes):
    one, other = alike(make_task(), 2)
    work, extra = WORK, PLAIN
    if what == "a contrast":
        extra = ExtraTerms(loss=lambda z, see, rows: z.square().sum((1, 2)))
    elif what == "another batch":
        work = replace(WORK, batch_size=3)
    elif what == "another model":
        other = make_task()
    else:
        site = other.layout.lora[0]
        other.fold({site.name: torch.zeros(site.shape[2], site.shape[1])})
    jobs = [*make_jobs([one], WORK), *make_jobs([other], work, extra=extra)]
    found = JoinedJobs().train(jobs)
    assert sizes == []
    assert [len(done.y) for done in found] == [3, 3]


@pytest.mark.slow
def test_pairs_are_joined_with_those_of_the_same_objective(sizes):
    """Four runs on one model, two of each objective, their rounds one after another."""
    mild, strong = Objective(), Objective(beta=5.0, label_smoothing=0.2)
    first = make_pairs(mild)
    rows = first.split_training_rows()
    tasks = [PreferenceTask(first.model, rows, {}, {}, objective) for objective in (mild, strong, mild, strong)]
    work = replace(WORK, optimizer="sgd", weight_decay=0.0, lr=1.0, max_grad_norm=100.0)
    jobs, both = lambda: make_jobs(tasks, *[work] * 4, clients=[(0, 1)] * 4), JoinedJobs()
    for _ in range(2):
        check_same(both.train(jobs()), map(train_job, jobs()))
    assert sizes == [4, 4] * 2


def test_a_client_that_starts_elsewhere_fails_its_own_run_alone():
    tasks = alike(make_task(), 2)
    good, bad = make_jobs(tasks, WORK, WORK)
    bad = replace(bad, start=bad.start + 1)
    first, second = JoinedJobs().train([good, bad])
    check_same([first], [train_job(make_jobs(tasks, WORK)[0])])
    assert isinstance(second, IntegrityError)
    assert "client 2 does not start from what the server sent" in str(second)


@pytest.mark.slow
def test_memory_that_runs_out_is_told_in_the_round_of_every_run(monkeypatch):
    tasks, calls = alike(make_task(), 2), []
    grad = joined._JoinedTask.grad

    def tight(self, params, step):
        calls.append(len(params))
        if len(params) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return grad(self, params, step)

    monkeypatch.setattr(CohortTask, "clients_per_pass", lambda self, batch: 6)
    monkeypatch.setattr(joined._JoinedTask, "grad", tight)
    both, jobs = JoinedJobs(), make_jobs(tasks, WORK, WORK)
    check_same(both.train(jobs), map(train_job, make_jobs(tasks, WORK, WORK)))
    assert [job.passes.events for job in jobs] == [["out of memory: 3 clients in a pass from now on"]] * 2
    assert not any(job.passes.halved for job in jobs)  # their own passes have the size that they had
    both.train(jobs := make_jobs(tasks, WORK, WORK))
    assert calls[0] == 5
    assert max(calls[1:]) == 3
    assert [job.passes.events for job in jobs] == [[], []]


def test_what_a_failed_pass_held_is_let_go_before_the_next_job(monkeypatch):
    """An error holds the tensors of the functions that it ended: on a full device the next job would fail for them."""
    held, left = [], []

    def fail(job):
        left.append([x for x in held if x() is not None])
        memory = torch.ones(3)
        held.append(weakref.ref(memory))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except RuntimeError as e:
            raise UserError(f"out of memory with {len(memory)} clients in a pass") from e

    monkeypatch.setattr(joined, "train_job", fail)
    found = JoinedJobs().train(make_jobs(alike(make_task(), 2), WORK, WORK))
    assert [type(one) for one in found] == [UserError, UserError]
    assert left == [[], [], []]  # together, and each alone


@pytest.mark.parametrize(
    "text", ["CUDA out of memory.", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_what_a_library_says_without_memory_is_known(text):
    assert is_out_of_memory(RuntimeError(text))
