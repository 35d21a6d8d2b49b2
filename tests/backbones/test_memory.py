"""What a pass takes of a device's memory: the estimate against what torch keeps, and a device that runs out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cramped import Live
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.head import count_rows
from fedfault.backbones.memory import LOGITS, PassCost, count_stored_bytes, find_free_bytes
from fedfault.backbones.sites import lora_targets
from fedfault.tasks import fitting
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.task import Step
from tiny import VOCAB, tiny_gpt2, tiny_llama

T = 16


def make_task(model=None) -> LanguageTask:
    model = model or tiny_llama(blocks=3)
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    g = torch.Generator().manual_seed(0)
    blocks = lambda n: Blocks(torch.randint(VOCAB, (n, T + 1), generator=g), torch.full((n,), T))  # noqa: E731
    return LanguageTask(opened, [blocks(4) for _ in range(6)], {"topic/a": blocks(9)}, {"topic/a": 1.0})


def measure_peak(task, clients: int, batch: int) -> int:
    """The most bytes that one gradient of so many clients has at a time."""
    rows = torch.arange(batch).expand(clients, -1)
    step = Step(torch.arange(clients), rows, torch.ones_like(rows, dtype=torch.bool))
    flat = task.init(0).flat.expand(clients, -1).clone()
    with Live() as live:
        task.grad(flat, step)
    return live.peak


@pytest.mark.parametrize("eager", [False, True], ids=["sdpa", "whole attention matrices"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_estimate_of_a_step_is_at_least_what_it_holds(make, eager):
    """As on a GPU the model keeps its own layers. With whole matrices a row costs T^2 numbers a head and layer more."""
    model = make(blocks=3)
    if eager:
        model.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as m:
        m.setattr("fedfault.backbones.cohort.replace_layers", lambda model: None)
        task = make_task(model)
    for clients, batch in ((1, 1), (1, 4), (6, 4)):
        found, expected = measure_peak(task, clients, batch), task.estimate_pass(clients, batch)
        assert found <= expected
        assert expected - task.pass_cost.fixed <= 6 * found


def test_whole_attention_matrices_are_in_the_estimate():
    costs = []
    for name in ("sdpa", "eager"):
        with pytest.MonkeyPatch.context() as m:
            m.setattr("fedfault.backbones.cohort.replace_layers", lambda model: None)
            model = tiny_llama(blocks=3)
            model.set_attn_implementation(name)
            costs.append(make_task(model).pass_cost.row)
    assert costs[1] - costs[0] >= 3 * 4 * T * T * 4  # layers, heads, T x T, float32


def test_weights_are_no_part_of_what_a_step_stores():
    layer = torch.nn.Linear(100, 100, bias=False).requires_grad_(False)
    x = torch.ones(3, 100, requires_grad=True)
    assert count_stored_bytes(layer, lambda: layer(x)) == (0, 0)  # only the frozen weight is needed
    assert count_stored_bytes(layer, lambda: layer(x).exp()) == (1200, 1200)  # and exp's result


def test_a_pass_costs_what_its_parts_cost():
    cost = PassCost(fixed=100, row=7, client=3)
    assert cost.estimate(2, 5) == 100 + 2 * (3 + 5 * 7)
    for room in range(80, 400):
        clients = cost.count_clients(room, 5)
        assert clients == 0 or cost.estimate(clients, 5) <= room < cost.estimate(clients + 1, 5)


@pytest.mark.parametrize(("gigabytes", "rows", "share"), [(8, 910, 0.07), (24, 2730, 0.07), (141, 5461, 0.03)])
def test_the_logits_that_are_there_at_a_time_leave_a_small_card_its_memory(gigabytes, rows, share, monkeypatch):
    """Beside a head of SmolLM2's 49,152 tokens: on a card of 8 GB they took 3.2 GB, and no second client had room."""
    memory = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    W = SimpleNamespace(device=torch.device("cuda"), shape=(49_152, 576))
    assert count_rows(W) == rows
    assert rows * 49_152 * LOGITS <= share * memory.total_memory


def test_a_cpu_is_not_asked():
    assert find_free_bytes(torch.device("cpu")) is None
    task = make_task()
    assert (task.room, task.free) == (None, None)
    assert task.evaluation_tokens() == fitting.EVALUATION_TOKENS
    assert task.tokens_per_pass() == fitting.ACTIVATION_BYTES // task.held_bytes()


@pytest.mark.cuda
def test_what_is_free_on_a_gpu_shrinks_by_what_is_allocated():
    device = torch.device("cuda")
    before = find_free_bytes(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - find_free_bytes(device) == pytest.approx(held.nbytes, rel=0.05)
