"""The packaged micro model and its tokenizer without transformers, whose import takes two to three seconds.

A plain Llama (Touvron et al., arXiv 2302.13971): grouped-query attention, rotary positions, SwiGLU, RMSNorm, no biases.
Its modules have the names and arguments that they have in transformers' LlamaForCausalLM, and model and tokenizer have the
part of the interface that fedfault uses: whoever is handed one need not know which of the two it is.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

Past = dict[nn.Module, tuple[Tensor, Tensor]]  # attention -> its keys and values so far, (N, G, T, head_dim) each


class Hidden(NamedTuple):
    """The output of the model without its head."""

    last_hidden_state: Tensor  # (N, T, d)
    past_key_values: Past | None


class Logits(NamedTuple):
    """The output of the model."""

    logits: Tensor  # (N, T, V)
    past_key_values: Past | None


class Llama(nn.Module):
    """A causal language model of the sizes in `config`, the fields of a config.json."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.set_attn_implementation("sdpa")
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @classmethod
    def from_folder(cls, folder: Path) -> Llama:
        """Load config.json and model.safetensors of a folder, in float32."""
        config = SimpleNamespace(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        weights = load_file(folder / "model.safetensors")
        made = cls(config)
        made.load_state_dict({"lm_head.weight": weights["model.embed_tokens.weight"], **weights})
        return made

    @property
    def base_model(self) -> LlamaModel:
        """The model without its head."""
        return self.model

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.lm_head.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def set_attn_implementation(self, name: str) -> None:
        """Use `sdpa`, which is faster, or `eager`, which returns attention weights, from now on."""
        self.config._attn_implementation = name

    def forward(self, input_ids: Tensor, past_key_values: Past | None = None, use_cache: bool = False) -> Logits:
        """input_ids (N, T); with `use_cache` the result has a past, and a call with a past takes one more token."""
        found = self.model(input_ids, past_key_values, use_cache)
        return Logits(self.lm_head(found.last_hidden_state), found.past_key_values)


class LlamaModel(nn.Module):
    """The embedding, the blocks and the last norm."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        self.rotary_emb = Rotary(config)

    def forward(self, input_ids: Tensor, past_key_values: Past | None = None, use_cache: bool = False) -> Hidden:
        """See `Llama.forward`."""
        past: Past | None = {} if use_cache and past_key_values is None else past_key_values
        seen = next((k.shape[2] for k, _ in past.values()), 0) if past else 0
        x = self.embed_tokens(input_ids)
        around = self.rotary_emb(x, torch.arange(seen, seen + input_ids.shape[1], device=x.device)[None])
        for block in self.layers:
            x = block(x, around, past)
        return Hidden(self.norm(x), past)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def forward(self, hidden_states: Tensor, around: tuple[Tensor, Tensor], past: Past | None) -> Tensor:
        """(N, T, d) -> (N, T, d)."""
        x = hidden_states
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings=around, past_key_values=past)[0]
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Attention(nn.Module):
    """Causal attention of H heads, H / G of which share a key and a value (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        d, self.head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(d, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, d, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: None = None,
        past_key_values: Past | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, T, d) -> (N, T, d), and the attention weights (N, H, T, keys) if the implementation gives them."""
        N, T, _ = hidden_states.shape
        q, k, v = (
            m(hidden_states).view(N, T, -1, self.head_dim).transpose(1, 2)
            for m in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (_rotate(x, *position_embeddings) for x in (q, k))
        if past_key_values is not None:
            if self in past_key_values:
                k, v = (torch.cat(pair, dim=2) for pair in zip(past_key_values[self], (k, v), strict=True))
            past_key_values[self] = (k, v)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # (N, H, T, head_dim)
        weights = self._weights(q, k) if self.config._attn_implementation == "eager" else None
        out = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1) if weights is None else weights @ v
        return self.o_proj(out.transpose(1, 2).reshape(N, T, -1)), weights

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """(N, H, T, head_dim), (N, H, S, head_dim) -> (N, H, T, S); the queries are the last of the keys' positions."""
        scores = q @ k.mT / math.sqrt(self.head_dim)
        T, S = scores.shape[-2:]
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
        return scores.masked_fill(future, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)


class Rotary(nn.Module):
    """Cosines and sines of the angles position / theta^(2 i / head_dim) (Su et al., arXiv 2104.09864)."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_parameters["rope_theta"]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids (1, T) -> (1, T, head_dim) each, in the type of x."""
        even = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device)
        angles = position_ids[..., None].float() * (1.0 / self.theta ** (even / self.head_dim))
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate(x) sin with rotate((a, b)) = (-b, a) on the two halves."""
    a, b = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


class RMSNorm(nn.Module):
    """x / rms(x) * weight with the statistics in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.variance_epsilon = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * unit.to(x.dtype)


class FileTokenizer:
    """A tokenizer.json with the part of the interface of transformers' tokenizers that fedfault uses."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
        self.backend_tokenizer = Tokenizer.from_file(str(self.files[0]))
        special = json.loads(self.files[1].read_text(encoding="utf-8"))
        self.special_tokens_map = {name: special[name] for name in ("bos_token", "eos_token")}
        self.bos_token_id = self.backend_tokenizer.token_to_id(special["bos_token"])
        self.eos_token_id = self.backend_tokenizer.token_to_id(special["eos_token"])

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        """Encode every text in full, without special tokens; other arguments are ignored."""
        encoded = self.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return {"input_ids": [e.ids for e in encoded]}

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        chat_template: str,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **_: Any,
    ) -> Any:
        """Write messages as text by a template; with `tokenize` return ids and `assistant_masks`, as transformers does."""
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), spans = render_jinja_template(
            [messages],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=tokenize,
            **self.special_tokens_map,
        )
        if not tokenize:
            return text
        found = self.backend_tokenizer.encode(text, add_special_tokens=False)
        mask = [int(any(a < end and start < b for a, b in spans[0])) for start, end in found.offsets]
        return {"input_ids": found.ids, "assistant_masks": mask}

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocabulary

    def save_pretrained(self, folder: Path) -> None:
        """Copy the files, which transformers reads too."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
