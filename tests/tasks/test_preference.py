"""Preferences: loss and gradient by hand, and those of TRL's DPOTrainer."""

from __future__ import annotations

import math

import pytest
import torch

from chatting import bytes_tokenizer, chat_model, say, write_rows
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.reading import files
from fedfault.reading.tables import Columns, read_table
from fedfault.tasks.preference import Objective, PreferenceTask
from fedfault.text.conversing import choose_template
from fedfault.text.preferring import encode_preferences
from fedfault.text.responses import Responses
from fedfault.types.task import Step

R, ALPHA = 3, 6.0


def pair(prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    """A row as TRL calls it conversational."""
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()}}


PAIRS = [
    pair(say("Add one and two."), "three", "four five six"),
    pair(say("Sort a list", system="You are terse."), "a b c, and more", "no"),
    pair(say("Thanks!", "please", "And four?"), "seven", "six seven"),
]


def encode(folder, kind: str = "llama", template: str = "chatml"):
    file = write_rows(folder / "pairs.jsonl", PAIRS)
    read = [row.conversation for row in read_table(file, files.list_numbered_rows(file), Columns())]
    return encode_preferences(choose_template("auto", bytes_tokenizer(template), kind), read)


def make_task(encoded, objective: Objective, kind: str = "llama", most: int = 128, **options) -> PreferenceTask:
    model = chat_model(kind)
    opened = CohortModel(model, lora_targets(model, None), r=R, alpha=ALPHA, **options)
    rows = Responses.from_rows([row for pair in encoded for row in pair], most)
    return PreferenceTask(
        opened, [rows, rows[2:]], {"topic/a": rows, "client/0": rows[:2]}, {"topic/a": 1.0}, objective
    )


def step_on(clients: list[int], rows: list[list[int]], real: list[list[bool]], key: list[int] | None = None) -> Step:
    return Step(*map(torch.tensor, (clients, rows, real)), key=None if key is None else torch.tensor(key))


def adapt(task: PreferenceTask, seed: int = 1) -> torch.Tensor:
    return task.init(0).flat + 0.1 * torch.randn(task.layout.size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_pair_is_that_of_the_paper(smoothing):
    ratios, tokens = torch.tensor([[0.5, -1.0], [-2.0, 0.3]]), torch.tensor([[2, 4], [1, 3]])
    for (better, worse), found in zip(
        ratios.tolist(), Objective("dpo", 0.4, smoothing).losses(ratios, tokens), strict=True
    ):
        right, wrong = (math.log(1 + math.exp(-sign * 0.4 * (better - worse))) for sign in (1, -1))
        assert float(found) == pytest.approx((1 - smoothing) * right + smoothing * wrong)
    ipo = Objective("ipo", 0.4).losses(ratios, tokens)
    assert ipo.tolist() == pytest.approx([(0.25 + 0.25 - 1.25) ** 2, (-2.0 - 0.1 - 1.25) ** 2])


@pytest.mark.parametrize("objective", [Objective("dpo", 0.4, 0.1), Objective("ipo", 0.4)])
def test_slopes_are_the_derivatives_of_losses(objective):
    ratios, tokens = torch.tensor([[0.5, -1.0], [-2.0, 0.3]]).double().requires_grad_(), torch.tensor([[2, 4], [1, 3]])
    (expected,) = torch.autograd.grad(objective.losses(ratios, tokens).sum(), ratios)
    torch.testing.assert_close(objective.slopes(ratios.detach(), tokens), expected)


@pytest.mark.slow
def test_before_training_every_pair_costs_log_2(tmp_path):
    task = make_task(encode(tmp_path), Objective())
    loss, _, pairs = task.grad(task.init(0).flat[None], step_on([0], [[0, 1, 2]], [[True] * 3]))
    assert (float(loss), int(pairs)) == (pytest.approx(math.log(2)), 3)
    scores = task.evaluate(task.init(3))
    assert scores["validation"].loss == pytest.approx(math.log(2))
    assert scores["validation"].metrics == {"reward_accuracy": 0.0, "reward_margin": 0.0}
    assert (scores["topic/a"].tokens, scores["client/0"].tokens, task.examples(1), task.tokens(1)) == (3, 1, 2, 2)


@pytest.mark.slow
def test_clients_of_unequal_batches_get_what_they_get_alone_with_dropout(tmp_path):
    task = make_task(encode(tmp_path), Objective("dpo", 0.4), dropout=0.3)
    flat = torch.stack([adapt(task, 1), adapt(task, 2)])
    both = task.grad(flat, step_on([0, 1], [[2, 0], [1, 0]], [[True, True], [True, False]], [5, 6]))
    for i, (client, rows) in enumerate([(0, [2, 0]), (1, [1])]):
        alone = task.grad(flat[i : i + 1], step_on([client], [rows], [[True] * len(rows)], [5 + i]))
        for own, other in zip(both, alone, strict=True):
            torch.testing.assert_close(own[i], other[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scores_and_held_out_losses_are_those_of_a_step(tmp_path):
    task = make_task(encode(tmp_path), Objective("ipo", 0.4))
    flat = adapt(task)
    loss = float(task.grad(flat[None], step_on([0], [[0, 1, 2]], [[True] * 3]))[0])
    score = task.evaluate(type(task.init(0))(task.layout, flat))["validation"]
    assert (score.loss, score.blocks) == (pytest.approx(loss, rel=1e-5), 3)
    first = float(task.grad(flat[None], step_on([0], [[0]], [[True]]))[0])
    assert float(task.held_out(flat[None], torch.tensor([0]))) == pytest.approx(first, rel=1e-5)


def ask_trl(kind: str, tokenizer, folder, flat, layout, objective: Objective, most: int):
    """TRL's loss and gradient (P,) of all pairs at the LoRA factors flat (P,), and its rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(PAIRS), max_length=most, report_to="none", use_cpu=True,
        bf16=False, beta=objective.beta,
        loss_type=["sigmoid" if objective.kind == "dpo" else "ipo"], gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        chat_model(kind), args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer,
        peft_config=LoraConfig(
            r=R, lora_alpha=ALPHA, target_modules=["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    named, factors = dict(trainer.model.named_parameters()), {}
    for site in layout.lora:
        for own, part in zip(layout.pair(flat, site), "AB", strict=True):
            factors[site.name, part] = named[f"base_model.model.{site.name}.lora_{part}.default.weight"]
            factors[site.name, part].data.copy_(own)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    gradient = torch.zeros_like(flat)
    for site in layout.lora:
        for own, part in zip(layout.pair(gradient, site), "AB", strict=True):
            own.copy_(factors[site.name, part].grad)
    rows = {
        (*row["prompt_ids"], *row[side], -len(row[side]))
        for row in trainer.train_dataset
        for side in ("chosen_ids", "rejected_ids")
    }
    return rows, float(loss.detach()), gradient


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # TRL's own
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("objective", "most"),
    [
        (Objective("dpo", 0.1), 128),
        (Objective("ipo", 0.3), 128),
        (Objective("dpo", 0.1), 48),  # the longest of 53 tokens are cut
    ],
)
def test_rows_loss_and_gradient_are_those_of_trl(tmp_path, kind, objective, most):
    pytest.importorskip("trl")
    encoded = encode(tmp_path, kind)
    assert max(len(row.ids) for both in encoded for row in both) > 48
    task = make_task(encoded, objective, kind, most)
    flat = adapt(task)
    loss, gradient, _ = task.grad(flat[None], step_on([0], [[0, 1, 2]], [[True] * 3]))
    rows, their_loss, theirs = ask_trl(
        kind, bytes_tokenizer("chatml"), tmp_path / "trl", flat, task.layout, objective, most
    )
    assert {(*row.ids, -sum(row.mask)) for both in encoded for row in both} == rows
    assert float(loss) == pytest.approx(their_loss, rel=1e-5)
    torch.testing.assert_close(gradient[0], theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
