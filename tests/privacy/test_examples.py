"""Hidden examples: gradients of single ones, clipped, and noise on their sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.privacy import examples
from fedfault.privacy.examples import ExampleTask, check_examples
from fedfault.seeds import rng
from fedfault.tasks.language import LanguageTask
from fedfault.testing.toys import LowRank, Quadratic, run_rounds, run_to_end
from fedfault.text.packing import Blocks
from fedfault.types.task import Step
from hidden import hide_toy, make_budget
from tiny import tiny_llama

TINY = 1e-9
PAIR = torch.tensor([0, 1])


def around(task, scale: float = 0.1) -> torch.Tensor:
    x = task.init(0).flat
    return x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def make_step(real: list[list[bool]], clients: list[int]) -> Step:
    mask = torch.tensor(real)
    return Step(torch.tensor(clients), torch.arange(mask.shape[1]).expand_as(mask), mask, torch.tensor(clients) + 100)


def make_language_task() -> LanguageTask:
    model = tiny_llama()
    g = torch.Generator().manual_seed(0)
    own = [Blocks(torch.randint(1, 61, (n, 9), generator=g), torch.tensor([8, 5, 3, 8][:n])) for n in (4, 3)]
    cohort = CohortModel(model, lora_targets(model, ["q_proj", "v_proj"]), r=2, alpha=4.0)
    return LanguageTask(cohort, own, {"topic/a": own[0]}, {"topic/a": 1.0})


@pytest.mark.parametrize("make", [LowRank, make_language_task], ids=["low rank", "llama"])
def test_a_step_is_the_sum_of_clipped_gradients_of_single_examples(make):
    task = make()
    params = around(task).expand(2, -1).contiguous()
    step = make_step([[True, True, False], [True, True, True]], [1, 0])
    alone = [
        [
            task.grad(params[:1], Step(torch.tensor([k]), torch.tensor([[b]]), torch.ones(1, 1, dtype=torch.bool)))[1][
                0
            ]
            for b in range(n)
        ]
        for k, n in ((1, 2), (0, 3))
    ]
    C = float(torch.stack(alone[0]).norm(dim=1).mean())  # some are clipped and some are not
    wrapped = ExampleTask(task, make_budget("example", 1, TINY, clip=C), 4, None, step.clients)
    _, gradient, _ = wrapped.grad(params, step)
    for k, found, own in zip((1, 0), gradient, alone, strict=True):
        hand = sum(g * min(1.0, C / float(g.norm())) for g in own) / min(4, task.examples(k))
        assert torch.allclose(found, hand, atol=1e-5 * C)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_client_of_fewer_examples_than_a_batch_has_steps_as_long_as_the_others(sampling):
    """At 3 with the optimum at 0 every example has gradient 3, and so has a client's step on average."""
    task, batch = Quadratic([[1.0]] * 2, [[0.0]] * 2, [4, 64]), 16
    wrapped = ExampleTask(
        task, budget := make_budget("example", 1, TINY, clip=1e6, sampling=sampling), batch, None, PAIR
    )
    for k in (0, 1):
        drawn = torch.from_numpy(budget.draw_batches(batch, task.examples(k), 400, rng(0, "test")))
        steps = Step(torch.full((400,), k), drawn.clamp(min=0), drawn >= 0, torch.arange(400))
        _, gradient, _ = wrapped.grad(torch.full((400, 1), 3.0, dtype=torch.float64), steps)
        assert float(gradient.mean()) == pytest.approx(3.0, rel=0.04)


def test_one_example_moves_a_step_by_no_more_than_the_clip():
    task, C = LowRank(), 0.7
    wrapped = ExampleTask(task, make_budget("example", 1, clip=C), 4, None, torch.tensor([2]))
    params = 30 * around(task)[None]
    # The same noise: it follows from the step
    with_it, without = (wrapped.grad(params, make_step([[True, True, last]], [2]))[1] for last in (True, False))
    assert float((with_it - without).norm()) == pytest.approx(C / 4, rel=1e-4)


@pytest.mark.slow
def test_a_step_without_examples_is_noise_of_the_stated_size():
    task = LowRank()
    noise = []
    for key in range(200):
        wrapped = ExampleTask(task, make_budget("example", 1, 2.0, clip=0.5), 4, None, torch.tensor([0]))
        step = replace(make_step([[False]], [0]), key=torch.tensor([key]))
        noise.append(wrapped.grad(around(task)[None], step)[1])
    noise = torch.cat(noise) * 4
    assert noise.std() == pytest.approx(2.0 * 0.5, rel=4 / (2 * noise.numel()) ** 0.5)


def test_numbers_that_are_not_trained_take_no_part_in_the_norm():
    task = LowRank()
    trainable = torch.zeros(1, task.layout.size, dtype=torch.bool)
    trainable[:, -5:] = True  # the bias
    wrapped = ExampleTask(task, make_budget("example", 1, TINY, clip=0.01), 1, trainable, torch.tensor([0]))
    _, gradient, _ = wrapped.grad(around(task)[None], make_step([[True]], [0]))
    assert float(gradient[:, -5:].norm()) == pytest.approx(0.01, rel=1e-4)


def test_batches_are_drawn_example_by_example_or_always_as_many():
    poisson = make_budget("example", 1).draw_batches(3, 30, 400, rng(0, "test"))
    counts = (poisson >= 0).sum(1)
    assert counts.mean() == pytest.approx(3, abs=4 * (3 * 0.9 / 400) ** 0.5)
    assert counts.min() < 2
    assert counts.max() > 4
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in poisson)
    fixed = make_budget("example", 1, sampling="fixed").draw_batches(3, 30, 50, rng(0, "test"))
    assert fixed.shape == (50, 3)
    assert make_budget("example", 1).draw_batches(8, 5, 4, rng(0, "test")).shape == (4, 5)  # all of a small client


@pytest.mark.long
def test_a_federation_learns_and_resumes_with_hidden_examples():
    budget = make_budget("example", 4, 0.3, clip=5.0)
    fed = hide_toy(LowRank(), budget=budget, work={"steps": 5, "lr": 0.05})
    whole = run_rounds(fed)
    assert whole[-1][1].scores["validation"].loss < 0.9 * whole[0][1].scores["validation"].loss
    again, _ = run_to_end(fed, whole[1][0])
    assert torch.equal(again.adapter.flat, whole[-1][0].adapter.flat)


@pytest.mark.slow
def test_other_clients_of_a_pass_change_nothing():
    budget = make_budget("example", 1, 0.5)
    one, two = (run_to_end(hide_toy(LowRank(), budget=budget, clients_per_pass=n))[0] for n in (6, 2))
    assert torch.allclose(one.adapter.flat, two.adapter.flat, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["scaffold", "moon", "ifca"])
def test_what_would_see_examples_without_noise_is_an_error(algorithm):
    fed = hide_toy(
        LowRank(),
        (algorithm, {"option": "I"}) if algorithm == "scaffold" else algorithm,
        budget=make_budget("example", 2),
    )
    assert fed.algorithm.refusal("hides examples")
    with pytest.raises(RuntimeError, match="more than noisy gradients"):
        run_rounds(fed)


def test_training_twice_in_a_round_is_an_error_for_it_is_counted_once():
    fed = hide_toy(LowRank(), budget=make_budget("example", 2))

    def client(got, memory, train):
        train(got["x"])
        local = train(got["x"])
        return {"x": local.adapter, "n": local.weight}, memory

    with pytest.raises(RuntimeError, match="trains its clients twice"):
        run_rounds(replace(fed, algorithm=replace(fed.algorithm, client=client)))


@pytest.mark.parametrize("make", [LowRank, make_language_task], ids=["low rank", "llama"])
def test_right_gradients_pass_the_check(make):
    assert check_examples(make(), around(make()), 0, [0, 1, 2]) is None


class Mixed(LowRank):
    """Gives every row of a pass the mean of all gradients, as a hook that misses the client axis would."""

    def grad(self, params, step):
        loss, gradient, tokens = super().grad(params, step)
        return loss, gradient.mean(0, keepdim=True).expand_as(gradient), tokens


class Summed(LowRank):
    """Gives gradients twice as long where a pass has one client, as a sum in the place of a mean would."""

    def grad(self, params, step):
        loss, gradient, tokens = super().grad(params, step)
        return loss, gradient * step.real.sum(1, keepdim=True), tokens


class Still(LowRank):
    """Gives gradients of zero, as a layer does that is frozen by accident."""

    def grad(self, params, step):
        loss, gradient, tokens = super().grad(params, step)
        return loss, torch.zeros_like(gradient), tokens


@pytest.mark.parametrize(
    ("broken", "said"),
    [(Mixed, "away from each alone"), (Summed, "away from their batch"), (Still, "all examples are zero")],
)
def test_gradients_that_are_broken_on_purpose_are_found_before_training(broken, said):
    assert said in (check_examples(broken(), around(broken()), 0, [0, 1, 2]) or "")


def test_a_pass_has_as_many_rows_as_memory_holds(monkeypatch):
    task = LowRank()
    step, params = make_step([[True] * 3] * 2, [1, 0]), around(task).expand(2, -1).contiguous()
    whole = ExampleTask(task, make_budget("example", 1), 4, None, step.clients).grad(params, step)[1]
    monkeypatch.setattr(examples, "ROWS", 2)
    parts = ExampleTask(task, make_budget("example", 1), 4, None, step.clients).grad(params, step)[1]
    assert torch.allclose(whole, parts, atol=1e-6)
