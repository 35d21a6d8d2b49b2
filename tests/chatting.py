"""Small tokenizers and models that hold conversations, and conversations for them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from fedfault.text.conversing import SHIPPED

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
WORDS = "Add the numbers and say what they make: one two three four five six. Thanks! You are terse, please sort a list\n###"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def bytes_tokenizer(template: str | None = None) -> Any:
    """A byte-level BPE tokenizer of transformers that knows ChatML's tokens; template: its own chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[STOP, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([WORDS], trainer)
    own = {"bos_token": STOP, "eos_token": STOP, "pad_token": STOP, "additional_special_tokens": [START, END]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **own)
    if template is not None:
        tokenizer.chat_template = MARKED if template == "marked" else (SHIPPED / f"{template}.jinja").read_text()
    return tokenizer


def chat_model(kind: str) -> Any:
    """A tiny Llama or GPT-2 for `bytes_tokenizer`, with weights that are large enough for layers to matter."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": len(bytes_tokenizer().get_vocab()), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        shape = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**size, **shape, attn_pdrop=0.0, initializer_range=0.3)).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True, **size,
        )
    ).eval()  # fmt: skip


def say(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Messages of user and assistant in turn, after a system's if there is one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


CHATS = [
    say("Add one and two.", "three", "And four?", "seven, which is more"),
    say("Sort a list", "a b c", system="You are terse."),
    say("Thanks!", "You\n\nare", "one", "two", "three four five six", "Thanks!"),
]
ASKED = [
    {"prompt": "Add the numbers: one two", "completion": "three"},
    {"prompt": "Say what they make.\n", "completion": "one two three four five six, and a list of numbers"},
    {"prompt": "Thanks!", "completion": "please"},
    {"prompt": "Sort a list", "completion": " a b c\n"},
]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows to a .jsonl file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
