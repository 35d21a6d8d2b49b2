"""Fixtures: tiny models with real architectures, and where the team's data files are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it: no test touches the network

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SHARED = Path(__file__).parents[2] / "shared" / "data"
VOCAB = 61


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def shared_data() -> Path:
    """The folder with real data sets; tests that ask for it are marked `shared`."""
    if not SHARED.is_dir():
        pytest.skip(f"no data files at {SHARED}")
    return SHARED


def tiny_llama(tied: bool = True, blocks: int = 2) -> LlamaForCausalLM:
    """Grouped-query attention, d_in != d_out on v_proj, weights big enough for gradients to matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(blocks: int = 2) -> GPT2LMHeadModel:
    """Conv1D layers, learned positions, LayerNorm with shift, dropout that must be off."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=blocks, n_head=4, n_positions=32, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest):
    """Builder of a tiny model: a fresh one with the same weights at every call."""
    return request.param
