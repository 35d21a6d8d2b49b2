"""Local training: unequal lengths, the optimiser, clipping, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedfault.algebra import mask_factor
from fedfault.errors import UserError
from fedfault.rounds.local import LocalWork, Passes, plan_batches
from fedfault.rounds.trainer import Trainer
from fedfault.seeds import rng
from fedfault.testing.toys import LowRank, Quadratic


def run(task, clients, passes=None, **work):
    train = Trainer(task, LocalWork(**work), seed=0, round=1, clients=clients, passes=passes or Passes(len(clients)))
    return train(task.init(0))


def test_clients_that_get_half_way_stand_where_the_others_passed():
    """Curvature 1 and 2 from 3 to 0, lr 0.1: (1 - 0.1 H)^K * 3 after K of 8 steps."""
    task = Quadratic([[1.0], [2.0]], [[0.0], [0.0]], [4, 4])
    work = LocalWork(epochs=None, steps=8, lr=0.1, optimizer="sgd", batch_size=4)
    train = Trainer(task, work, seed=0, round=1, clients=[0, 1], passes=Passes(2), effort=[0.5, 0.3])
    trained = train(task.init(0), mean_grad=True)
    assert trained.num_steps.tolist() == [4, 3]
    assert trained.num_tokens.tolist() == [160, 120]
    assert trained.weight.tolist() == [40, 40]  # weights count the data that a client has
    ends = [3 * 0.9**4, 3 * 0.8**3]
    assert trained.adapter.flat[:, 0].tolist() == pytest.approx(ends)
    assert trained.mean_grad[:, 0].tolist() == pytest.approx([(3 - ends[0]) / 0.4, (3 - ends[1]) / 0.3])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_clients_with_unequal_numbers_of_steps_train_as_if_alone(optimizer):
    task = LowRank()
    options = {"epochs": 2, "batch_size": 4, "lr": 0.05, "optimizer": optimizer, "max_grad_norm": 0.5}
    clients = [0, 5, 2, 3]  # 10, 25, 16 and 19 examples: 6, 14, 8 and 10 steps
    together = run(task, clients, **options)
    assert together.num_steps.tolist() == [6, 14, 8, 10]
    for i, k in enumerate(clients):
        alone = run(task, [k], **options)
        torch.testing.assert_close(together.adapter.flat[i], alone.adapter.flat[0], rtol=1e-5, atol=1e-7)
        assert together.loss[i] == pytest.approx(float(alone.loss[0]), rel=1e-5)
        assert together.num_tokens[i] == 2 * task.tokens(k)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_client_optimiser_is_torch_optim_on_each_row(optimizer):
    task = LowRank()
    options = {"epochs": 1, "batch_size": 4, "lr": 0.05, "optimizer": optimizer, "max_grad_norm": 0.3}
    trained = run(task, [1, 4], **options)
    for i, k in enumerate([1, 4]):
        leaf = task.init(0).flat.clone().requires_grad_()
        make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        reference = make([leaf], lr=0.05, weight_decay=0.0)
        for rows in plan_batches(task.examples(k), LocalWork(batch_size=4), rng(0, "batches", 1, k)):
            loss = task._loss(leaf, task.X[k][rows[rows >= 0]], task.Y[k][rows[rows >= 0]])
            leaf.grad = torch.autograd.grad(loss, leaf)[0]
            torch.nn.utils.clip_grad_norm_([leaf], 0.3)
            reference.step()
        torch.testing.assert_close(trained.adapter.flat[i], leaf.detach(), rtol=1e-5, atol=1e-7)


def test_weight_decay_and_betas_are_those_of_torch_and_what_is_frozen_does_not_decay():
    task = Quadratic([[1.0, 1.0]], [[0.0, 0.0]], [4])
    work = LocalWork(epochs=None, steps=6, batch_size=4, lr=0.1, weight_decay=0.3, betas=(0.8, 0.95))
    free = torch.tensor([True, False])
    train = Trainer(task, work, seed=0, round=1, clients=[0], passes=Passes(1), trainable=free)
    start = task.init(0)
    found = train(start).adapter.flat[0]
    y = start.flat[:1].clone().requires_grad_()
    optimiser = torch.optim.AdamW([y], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3)
    for _ in range(6):
        optimiser.zero_grad()
        (0.5 * y.square()).sum().backward()
        optimiser.step()
    assert float(found[0]) == pytest.approx(y.item(), rel=1e-6)
    assert found[1] == start.flat[1]


def test_each_client_is_clipped_by_its_own_norm():
    task = Quadratic([[1.0], [1.0]], [[2.9], [-1000.0]], [1, 1])  # gradients 0.1 and 1003 at 3
    trained = run(task, [0, 1], epochs=1, lr=0.1, optimizer="sgd", max_grad_norm=1.0, batch_size=1)
    assert trained.adapter.flat[0].item() == pytest.approx(3 - 0.1 * 0.1)
    assert trained.adapter.flat[1].item() == pytest.approx(3 - 0.1, abs=1e-6)
    assert trained.grad_norm.tolist() == pytest.approx([0.1, 1003.0])


def test_training_leaves_its_start_untouched():
    task = LowRank()
    start = task.init(0)
    before = start.flat.clone()
    Trainer(task, LocalWork(), seed=0, round=1, clients=[0, 1], passes=Passes(2))(start)
    assert torch.equal(start.flat, before)


class Cramped(Quadratic):
    """Two clients at once are too many."""

    def grad(self, params, step):
        if len(params) > self.room:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
            )
        return super().grad(params, step)


def test_when_memory_runs_out_fewer_clients_go_at_once_and_the_result_is_the_same():
    make = lambda: Cramped([[1.0], [2.0], [3.0]], [[0.0], [1.0], [2.0]], [8, 4, 6])  # noqa: E731
    task = make()
    task.room = 1
    passes = Passes(3)
    cramped = run(task, [0, 1, 2], passes=passes, epochs=2, optimizer="sgd", batch_size=2)
    task.room = 3
    roomy = run(task, [0, 1, 2], epochs=2, optimizer="sgd", batch_size=2)
    assert torch.equal(cramped.adapter.flat, roomy.adapter.flat)
    assert passes.size == 1
    assert passes.events == ["out of memory: 1 clients in a pass from now on"]


def test_out_of_memory_with_one_client_is_the_users_to_mend():
    task = Cramped([[1.0]], [[0.0]], [4])
    task.room = 0
    with pytest.raises(UserError, match=r"lower training\.batch_size"):
        run(task, [0])


def test_other_errors_are_not_taken_for_memory():
    class Broken(Quadratic):
        def grad(self, *args):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run(Broken([[1.0]], [[0.0]], [4]), [0])


def test_batches_differ_between_rounds_and_clients():
    drawn = {tuple(rng(0, "batches", t, k).permutation(20)) for t in (1, 2) for k in (0, 1)}
    assert len(drawn) == 4
    assert isinstance(next(iter(drawn))[0], np.integer)


@pytest.mark.parametrize(("rule", "expected"), [("tokens", [30, 80]), ("samples", [3, 8]), ("uniform", [1, 1])])
def test_one_rule_weighs_clients(rule, expected):
    task = Quadratic([[1.0]] * 2, [[0.0]] * 2, [3, 8])
    assert run(task, [0, 1], weighting=rule).weight.tolist() == expected


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_b_learns_at_its_own_rate_as_in_parameter_groups_of_torch(optimizer):
    """LoRA+ as PEFT makes it: one optimiser with two groups."""
    task = LowRank()
    options = {"epochs": 1, "batch_size": 4, "lr": 0.01, "optimizer": optimizer, "max_grad_norm": 0.3}
    decay = 0.1 if optimizer == "adamw" else 0.0
    trained = run(task, [1], **options, lr_ratio=4.0, weight_decay=decay)
    flat, is_b = task.init(0).flat, mask_factor(task.layout, "B")
    a, b = (flat[own].clone().requires_grad_() for own in (~is_b, is_b))
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    reference = make([{"params": [a], "lr": 0.01}, {"params": [b], "lr": 0.04}], weight_decay=decay)
    for rows in plan_batches(task.examples(1), LocalWork(batch_size=4), rng(0, "batches", 1, 1)):
        whole = torch.zeros_like(flat).masked_scatter(~is_b, a).masked_scatter(is_b, b)
        loss = task._loss(whole, task.X[1][rows[rows >= 0]], task.Y[1][rows[rows >= 0]])
        a.grad, b.grad = torch.autograd.grad(loss, [a, b])
        torch.nn.utils.clip_grad_norm_([a, b], 0.3)
        reference.step()
    torch.testing.assert_close(trained.adapter.flat[0][is_b], b.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained.adapter.flat[0][~is_b], a.detach(), rtol=1e-5, atol=1e-6)


def test_an_algorithm_that_asks_for_the_learning_rate_is_refused_where_there_are_two():
    train = Trainer(LowRank(), LocalWork(lr_ratio=2.0), seed=0, round=1, clients=[0], passes=Passes(1))
    with pytest.raises(UserError, match=r"training\.lr_ratio=2"):
        _ = train.lr


def test_a_step_in_parts_is_the_step_on_the_whole_batch():
    """Unequal clients, so that some parts of some batches are empty."""
    task, options = LowRank(), {"epochs": 2, "batch_size": 12, "lr": 0.05, "optimizer": "sgd", "max_grad_norm": 0.5}
    whole, parts = (run(task, [0, 5, 2], **options, parts=n) for n in (1, 3))
    torch.testing.assert_close(parts.adapter.flat, whole.adapter.flat, rtol=1e-5, atol=1e-6)
    assert parts.num_tokens.tolist() == whole.num_tokens.tolist()
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-6, atol=0.0)
