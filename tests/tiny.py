"""Tiny models with real architectures: the same weights at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # three seconds, for those who build one
    from transformers import BertModel, GPT2LMHeadModel, LlamaForCausalLM

VOCAB = 61


def tiny_llama(tied: bool = True, blocks: int = 2) -> LlamaForCausalLM:
    """Grouped-query attention, d_in != d_out on v_proj, weights big enough for gradients to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(blocks: int = 2) -> GPT2LMHeadModel:
    """Conv1D layers, learned positions, LayerNorm with shift, dropout that must be off."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=blocks, n_head=4, n_positions=32, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def tiny_bert(blocks: int = 2, **changes) -> BertModel:
    """Attention to both sides, absolute positions, two kinds of tokens, a pooler; dropout that must be off."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=blocks, num_attention_heads=4,
        max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, **changes,
    )  # fmt: skip
    return BertModel(config).eval()


WORDS = ["good", "bad", "film", "plot", "it", "is", "a", "very", "dull", "bright", "he", "ran", "she", "slept"]


def tiny_bert_tokenizer():
    """Fourteen words, and pairs as BERT has them: [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
