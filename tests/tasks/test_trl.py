"""Token ids, loss mask, loss and LoRA gradient of conversations are those of TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch

from chatting import ASKED, CHATS, bytes_tokenizer, chat_model, write_rows
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.reading import files
from fedfault.reading.tables import Columns, read_table
from fedfault.tasks.language import LanguageTask
from fedfault.text.conversing import choose_template, encode_conversations
from fedfault.text.responses import Responses
from fedfault.types.task import Step

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # TRL's own warnings

trl = pytest.importorskip("trl")
R, ALPHA = 3, 6.0


def as_messages(row: dict) -> dict:
    """A row of texts in the shape that TRL calls conversational; one that has it already is left as it is."""
    if isinstance(row["prompt"], list):
        return row
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def ask_trl(kind: str, tokenizer, rows: list[dict], folder, flat, layout, *, most: int, loss_on: str, marked: bool):
    """TRL's rows (ids and labels), loss and gradient (P,) at the LoRA factors flat (P,)."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model = chat_model(kind)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=len(rows), max_length=most, report_to="none", use_cpu=True,
        bf16=False, packing=False, activation_checkpointing=False, assistant_only_loss=marked,
        completion_only_loss=None if loss_on == "completion" else False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(r=R, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"),
    )  # fmt: skip
    named = dict(trainer.model.named_parameters())
    factors = {}
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
    found = {(*r["input_ids"][:most], *r["labels"][:most]) for r in trainer.train_dataset}
    return found, float(loss.detach()), gradient


TURNS = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS]  # only the last answer is learned
CASES = [
    ("llama", "chatml", "asked", "completion", 128),
    ("llama", "chatml", "asked", "completion", 24),  # some responses are cut
    ("llama", "chatml", "asked", "all", 128),
    ("llama", "marked", "chats", "completion", 128),
    ("llama", "chatml", "chats", "all", 128),
    ("gpt2", "alpaca", "asked", "completion", 200),
    ("llama", "chatml", "turns", "completion", 128),
    ("llama", "marked", "turns", "completion", 128),
]


@pytest.mark.parametrize(("kind", "template", "data", "loss_on", "most"), CASES)
def test_ids_mask_loss_and_gradient_are_those_of_trl(tmp_path, kind, template, data, loss_on, most):
    tokenizer = bytes_tokenizer(template)
    rows = {"asked": ASKED, "turns": TURNS, "chats": [{"messages": chat} for chat in CHATS]}[data]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    read = [r.conversation for r in read_table(file, files.list_numbered_rows(file), Columns()) if r.conversation]
    encoded = encode_conversations(choose_template("auto", tokenizer, kind), read, loss_on)
    own = Responses.from_rows(encoded, most)
    own = own[own.targets > 0]
    model = chat_model(kind)
    task = LanguageTask(CohortModel(model, lora_targets(model, None), r=R, alpha=ALPHA), [own], {}, {})
    flat = task.init(0).flat + 0.1 * torch.randn(task.layout.size, generator=torch.Generator().manual_seed(1))
    step = Step(torch.tensor([0]), torch.arange(len(own))[None], torch.ones(1, len(own), dtype=torch.bool))
    loss, gradient, tokens = task.grad(flat[None], step)

    given = rows if data == "chats" else [as_messages(row) for row in rows]
    marked = template == "marked" and loss_on == "completion"
    theirs = ask_trl(
        kind, tokenizer, given, tmp_path / "trl", flat, task.layout, most=most, loss_on=loss_on, marked=marked
    )
    mine = set()
    for ids, mask in ((e.ids[:most], e.mask[:most]) for e in encoded):
        if any(mask):  # TRL drops the others too
            mine.add((*ids, *(token if counts else -100 for token, counts in zip(ids, mask, strict=True))))
    assert len(mine) == len(own)
    assert (len(own) < len(rows)) == (most == 24)
    assert mine == theirs[0]
    assert int(tokens) == int(own.targets.sum())
    assert float(loss) == pytest.approx(theirs[1], rel=1e-5)
    torch.testing.assert_close(gradient[0], theirs[2], rtol=1e-5, atol=1e-5 * float(theirs[2].abs().max()))
