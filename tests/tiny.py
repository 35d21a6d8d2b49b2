"""Tiny models with real architectures: the same weights at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # three seconds, for those who build one
    from transformers import BertModel, GPT2LMHeadModel, LlamaForCausalLM

VOCAB = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SHAPE = {**SIZES, **SPECIAL, "max_position_embeddings": 64}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FEW = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL}
BIDIRECTIONAL = {**GROUPED, "head_dim": 8, "use_bidirectional_attention": True}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, **SPECIAL}
OPT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 16,
    "do_layer_norm_before": False, "max_position_embeddings": 64, **SPECIAL,
}  # fmt: skip
NEO = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 10,
    "max_position_embeddings": 64, **SPECIAL,
}  # fmt: skip
CAUSAL = {
    "gpt2": ("GPT2Config", FEW),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "mistral with a longer window": ("MistralConfig", {**GROUPED, "sliding_window": 12}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 12}),
    "qwen2": ("Qwen2Config", GROUPED),
    "opt with a projection": ("OPTConfig", OPT),
    "gpt_neo": ("GPTNeoConfig", NEO),
    "gptj": ("GPTJConfig", {**FEW, "rotary_dim": 4}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, **SPECIAL}),
    "mpt": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, **SPECIAL}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **SPECIAL}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "xlm with a causal mask": ("XLMConfig", {**XLM, "causal": True}),
}
OTHERS = {
    "gemma3": ("Gemma3TextConfig", BIDIRECTIONAL),
    "gemma3 with a window of three": ("Gemma3TextConfig", {**BIDIRECTIONAL, "sliding_window": 3}),
    "xlm": ("XLMConfig", XLM),
    "xlnet": ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, **SPECIAL}),
    "bert": ("BertConfig", SHAPE),
    "roberta": ("RobertaConfig", SHAPE),
    "electra": ("ElectraConfig", {**SHAPE, "embedding_size": 32}),
}


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


def make(kind: str, options: dict, auto: str = "AutoModelForCausalLM"):
    """A model of a configuration class and its options: weights big enough for layers to matter."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, kind)(**options)
    if hasattr(config, "initializer_range"):
        config.initializer_range = 0.2
    return getattr(transformers, auto).from_config(config).eval()


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
