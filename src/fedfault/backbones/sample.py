"""Text from models: samples of the frozen base, and the likeliest continuation under a fine-tuned model."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedfault.backbones.attention import CACHES
from fedfault.backbones.cohort import CohortModel


def _name_of_cache(model: Any) -> str:
    """The keyword by which a model takes, and gives back, the keys and values of earlier tokens."""
    return next(name for name in CACHES if name in inspect.signature(model.forward).parameters)


@torch.no_grad()
def sample_texts(model: Any, n: int, length: int, separator: int, generator: torch.Generator) -> Tensor:
    """Sample n texts of `length` tokens after a separator, at temperature 1: ids (n, length + 1).

    On these the mean loss of a fine-tuned model minus that of the base estimates KL(base || model) per token, because the
    text is drawn from the base: no data are needed, and an untrained adapter gives exactly zero.
    """
    ids = torch.full((n, 1), separator)
    past, cache = None, _name_of_cache(model)
    for _ in range(length):
        out = model(input_ids=ids[:, -1:].to(model.device), **{cache: past}, use_cache=True)
        past = getattr(out, cache)
        p = out.logits[:, -1].float().softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids


@torch.no_grad()
def decode_greedily(model: CohortModel, flat: Tensor, prefix: Tensor, length: int) -> Tensor:
    """Take the likeliest next token `length` times under parameters flat (P,): prefix (n, S) -> ids (n, length)."""
    ids, past, body = prefix.to(flat.device), None, model.model.base_model
    cache = _name_of_cache(body)
    with model.slots.bind(flat[None]):
        W = model.head.weight
        W = W if model.head_site is None else model.slots.full_parameter(model.head_site, tuple(W.shape))[0]
        for _ in range(length):
            new = ids if past is None else ids[:, -1:]
            out = body(input_ids=new, **{cache: past}, use_cache=True)
            past = getattr(out, cache)
            last = out.last_hidden_state[:, -1]  # (n, d)
            ids = torch.cat([ids, F.linear(last, W.to(last.dtype), model.head.bias).argmax(-1, keepdim=True)], dim=1)
    return ids[:, prefix.shape[1] :]


@torch.no_grad()
def answer_greedily(
    model: CohortModel, flat: Tensor, prompts: Sequence[Sequence[int]], length: int, stops: Collection[int]
) -> list[list[int]]:
    """Answer prompts with the likeliest tokens under parameters flat (P,), up to a stop token or `length` tokens.

    Prompts of any lengths go through the model side by side without padding: all begin with as many tokens as the shortest
    has, and the others are given their own next token where the shorter ones take the likeliest.
    """
    sizes = torch.tensor([len(p) for p in prompts], device=flat.device)
    given = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(flat.device)
    made: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    new, past, body = given[:, : int(sizes.min())], None, model.model.base_model
    cache = _name_of_cache(body)
    with model.slots.bind(flat[None]):
        W = model.head.weight
        W = W if model.head_site is None else model.slots.full_parameter(model.head_site, tuple(W.shape))[0]
        for place in range(int(sizes.min()), int(sizes.max()) + length):  # of the token that is chosen
            out = body(input_ids=new, **{cache: past}, use_cache=True)
            past = getattr(out, cache)
            last = out.last_hidden_state[:, -1]  # (n, d)
            chosen = F.linear(last, W.to(last.dtype), model.head.bias).argmax(-1)
            if place < given.shape[1]:
                chosen = torch.where(sizes > place, given[:, place], chosen)
            for row, (token, size) in enumerate(zip(chosen.tolist(), sizes.tolist(), strict=True)):
                if place >= size and not done[row]:
                    made[row] += [token] if token not in stops else []
                    done[row] = token in stops or len(made[row]) == length
            if all(done):
                break
            new = chosen[:, None]
    return made
