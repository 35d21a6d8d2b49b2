"""Gradient checkpointing: the same numbers from less memory."""

from __future__ import annotations

import pytest
import torch

from chatting import chat_model
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.memory import count_stored_bytes
from fedfault.backbones.sites import lora_targets
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.task import Step

STEP = Step(
    torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 2, dtype=torch.bool), torch.tensor([3, 4])
)


def make_task(kind: str, *, recompute: bool, targets: list[str] | None = None, cache_mb: int = 0) -> LanguageTask:
    model = chat_model(kind)
    opened = CohortModel(model, lora_targets(model, targets), r=2, alpha=4.0, dropout=0.2, recompute=recompute)
    blocks = [
        Blocks(torch.randint(9, 200, (2, 41), generator=torch.Generator().manual_seed(k)), torch.full((2,), 40))
        for k in (0, 1)
    ]
    return LanguageTask(opened, blocks, {}, {}, cache_mb=cache_mb)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_and_gradient_are_the_same_to_the_bit(kind):
    plain, less = (make_task(kind, recompute=wanted) for wanted in (False, True))
    flat = plain.init(0).flat + 0.1 * torch.randn(2, plain.layout.size, generator=torch.Generator().manual_seed(1))
    for own, other in zip(plain.grad(flat, STEP), less.grad(flat, STEP), strict=True):
        assert torch.equal(own, other)
    assert not any("forward" in vars(block) for block in less.model.recomputed)


def test_blocks_below_the_first_trained_one_still_come_from_the_cache():
    name = "model.layers.1.mlp.down_proj"
    plain, less = (make_task("llama", recompute=wanted, targets=[name], cache_mb=8) for wanted in (False, True))
    flat = torch.full((2, plain.layout.size), 0.05)
    assert len(less.model.recomputed) == 1
    for _ in range(2):  # computed, then looked up
        assert torch.equal(plain.grad(flat, STEP)[1], less.grad(flat, STEP)[1])
    assert int(less.cache.used) == 4


def test_what_a_step_stores_does_not_grow_with_what_a_block_holds():
    stored = [_count_stored(make_task("llama", recompute=wanted)) for wanted in (False, True)]
    assert stored[1] < stored[0] / 2


def _count_stored(task: LanguageTask) -> int:
    flat, ids = task.init(0).flat[None].expand(2, -1).clone().requires_grad_(), task.ids[:4].view(2, 2, -1)
    return count_stored_bytes(task.model.model, lambda: task.model.losses(flat, ids, torch.ones(2, 2, 40)))[0]
