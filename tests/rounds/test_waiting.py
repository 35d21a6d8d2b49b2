"""A training step never waits for the device: nothing that it computes is looked at before the last step of its pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.replay import refuse_to_wait
from fedfault.backbones.scorer import LAST, Scorer
from fedfault.backbones.sites import lora_targets
from fedfault.backbones.unpacked import without_packed_rows
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.passes import Pass
from fedfault.rounds.trainer import Trainer
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask
from fedfault.text.conversing import EncodedConversation
from fedfault.text.examples import EncodedText, Examples
from fedfault.text.responses import Responses
from fedfault.types.algorithm import PLAIN, ExtraTerms
from fedfault.types.task import Step
from steps import EXTRA, extra_terms, make_task
from tiny import tiny_gpt2, tiny_llama

ASKS = ("local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")  # a number goes to Python


class NoWord(TorchDispatchMode):
    """Raises at an operation whose result, or the shape of it, is a question to the device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name, to = op.__name__.partition(".")[0], (kwargs or {}).get("device")
        assert not name.lstrip("_").startswith(ASKS), f"{op} asks the device"
        assert not (name == "_to_copy" and to is not None and torch.device(to).type == "cpu"), (
            f"{op} copies to the host"
        )
        if name in ("index", "index_put", "index_put_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), f"{op} by a mask asks how many"
        return op(*args, **(kwargs or {}))


def make_pass(task, extra: ExtraTerms, optimizer: str = "adamw") -> Pass:
    work = LocalWork(batch_size=2, lr=0.01, optimizer=optimizer)
    trainable = torch.ones(task.layout.size, dtype=torch.bool)
    trainer = Trainer(task, work, seed=0, round=1, clients=[0, 1, 2], passes=Passes(3), trainable=trainable)
    start = task.init(0).flat.expand(3, -1)
    trainer.start = start
    return Pass(trainer.make_job(extra, mean_grad=True), torch.tensor(trainer.longest_first))


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_no_operation_of_a_step_asks_the_device(make, name):
    one = make_pass(task := make_task(make), extra_terms(task)[name])
    with NoWord():
        one.run()
    assert one.tokens.tolist() == [35, 17, 32]
    assert bool(one.norm.all())


def test_who_asks_is_caught():
    x = torch.ones(1)
    for ask in (x.item, lambda: x[x > 0], x.nonzero, lambda: bool(x > 0), x.unique, lambda: x.equal(x)):
        with pytest.raises(AssertionError, match="ask"), NoWord():
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRA)
def test_a_pass_runs_where_there_are_no_numbers_to_look_at(name):
    """On the device `meta` tensors have shapes only: whoever looks at a number or mixes in a tensor of the CPU fails."""
    task = make_task(device="meta")
    y = make_pass(task, extra_terms(task)[name], optimizer="sgd").run()
    assert y.shape == (3, task.layout.size)
    assert y.device.type == "meta"


@pytest.mark.slow
def test_a_classifier_on_a_decoder_plans_its_groups_on_the_host():
    with torch.device("meta"):
        model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.1, scorer=Scorer(LAST, 24, 2))
    rows = [EncodedText([1 + k % 9] * k, k) for k in (3, 5, 9, 12)]
    own = Examples.from_rows(rows, [0, 1, 1, 0])
    task = ClassificationTask(opened, [own] * 3, {})
    y = make_pass(task, PLAIN, optimizer="sgd").run()
    assert y.device.type == "meta"


@pytest.mark.slow
def test_responses_are_grouped_and_their_targets_found_on_the_host():
    with torch.device("meta"):
        model = tiny_llama()
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.1)
    rows = [EncodedConversation([1 + k % 9] * k, [False] * 2 + [True] * (k - 2)) for k in (3, 5, 9, 12)]
    task = LanguageTask(opened, [Responses.from_rows(rows, 16)] * 3, {}, {})
    y = make_pass(task, PLAIN, optimizer="sgd").run()
    assert y.device.type == "meta"


def test_transformers_takes_a_row_for_one_document_only_while_it_is_told_to():
    looks = masking_utils.find_packed_sequence_indices
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    with without_packed_rows():
        assert masking_utils.find_packed_sequence_indices(packed) is None
    assert masking_utils.find_packed_sequence_indices is looks
    assert looks(packed).tolist() == [[0, 0, 0, 1, 1]]


def test_a_step_goes_to_the_device_once_and_knows_how_it_was_planned():
    planned = Step(torch.tensor([1]), torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([7]))
    assert planned.to(torch.device("cpu")) is planned
    there = planned.to(torch.device("meta"))
    assert {x.device.type for x in (there.clients, there.rows, there.real, there.key)} == {"meta"}
    assert there.on_host is planned
    assert there.to(torch.device("meta")) is there


@pytest.mark.cuda
@pytest.mark.parametrize("name", EXTRA)
def test_a_step_does_not_synchronise_with_a_gpu(name):
    task = make_task(device="cuda")
    one = make_pass(task, extra_terms(task)[name])
    make_pass(task, extra_terms(task)[name]).run()  # the first one loads libraries
    with refuse_to_wait():
        one.run()
