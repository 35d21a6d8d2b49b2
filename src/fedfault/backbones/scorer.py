"""The head of a classifier or a regression: one linear layer, of which every client has its own, on one state a text.

    tokens (K, B, T) -> backbone -> states (K, B, T, d) -> pooled z (K, B, d) -> z W_k^T + b_k  (K, B, C)

One layer, and none of d x d numbers in front of it as BERT-like classifiers have: that would be most of what a client sends
(147,840 numbers beside the 73,728 of LoRA of rank 8 on the six layers of MiniLM). BERT's own stays as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedfault.backbones.checks import takes_token_types
from fedfault.seeds import torch_rng
from fedfault.types.adapter import Layout, Site

LAST = "last"  # the last real token, which alone has seen the whole text: decoders
MEAN = "mean"  # the mean over the real tokens: sentence encoders, which were trained that way
POOLER = "pooler"  # the backbone's own pooler, a layer on the first token: BERT
FIRST = "first"  # the first token: BERT-like models whose pooler is not in the checkpoint, such as RoBERTa
SPREAD = 0.02  # standard deviation of the fresh weights: initializer_range of BERT, GPT-2 and Llama in transformers
WEIGHT, BIAS = "score.weight", "score.bias"


class Texts(NamedTuple):
    """The texts of K clients in one pass."""

    ids: Tensor  # (K, B, T)
    lengths: Tensor  # (K, B), real tokens: the first ones, at least one
    second: Tensor  # (K, B), where the second sentence begins
    paired: bool  # whether any text that there may be has a second sentence

    @property
    def mask(self) -> Tensor:
        """(K, B, T) bool: which tokens are real."""
        return torch.arange(self.ids.shape[-1], device=self.ids.device) < self.lengths[..., None]


@dataclass(frozen=True)
class Scorer:
    """A linear head with an output for every class, or one for a score."""

    pooling: str
    width: int  # d
    outputs: int  # C

    @property
    def sites(self) -> tuple[Site, Site]:
        """The head's two trainable sites, which come after those of the backbone."""
        return Site(WEIGHT, "full", (self.outputs, self.width)), Site(BIAS, "full", (self.outputs,))

    def fill(self, layout: Layout, flat: Tensor, seed: int) -> None:
        """Write a fresh head into flat (P,), in place: weights normal of standard deviation 0.02, no bias."""
        for site in layout.sites:
            if site.name == WEIGHT:
                drawn = SPREAD * torch.randn(site.shape, generator=torch_rng(seed, "head"))
                layout.part(flat, site).copy_(drawn)
            if site.name == BIAS:
                layout.part(flat, site).zero_()


def model_inputs(body: Any, texts: Texts, pooling: str) -> Mapping[str, Any]:
    """The inputs besides ids of `body`, the backbone without its head: tensors of (K*B, T) each.

    A decoder needs no mask: its real tokens never see the padding on the right. Token types are given for pairs only, to a
    model that has two of them.
    """
    if pooling == LAST:
        return {"use_cache": False}
    found: dict[str, Any] = {"attention_mask": texts.mask.flatten(0, 1).long()}
    if texts.paired and takes_token_types(body):
        places = torch.arange(texts.ids.shape[-1], device=texts.ids.device)
        found["token_type_ids"] = (places >= texts.second[..., None]).flatten(0, 1).long()
    return found


def pool_states(found: Any, texts: Texts, pooling: str) -> Tensor:
    """Pool the backbone's output `found` to one state per text, z (K, B, d), in float32."""
    K, B, T = texts.ids.shape
    if pooling == POOLER:
        states: Tensor = found.pooler_output.float()
        return states.view(K, B, -1)
    states = found.last_hidden_state.view(K, B, T, -1)
    if pooling == FIRST:
        return states[:, :, 0].float()
    if pooling == LAST:
        last = (texts.lengths - 1)[..., None, None].expand(-1, -1, 1, states.shape[-1])
        return states.gather(2, last)[:, :, 0].float()
    real = texts.mask[..., None]
    return (states.float() * real).sum(2) / texts.lengths[..., None]
