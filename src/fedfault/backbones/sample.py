"""Text from models: samples of the frozen base, and what a fine-tuned model writes, likeliest or drawn."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedfault.algebra import widest
from fedfault.backbones.attention import CACHES
from fedfault.backbones.cohort import CohortModel
from fedfault.text.questions import Sampling


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
        W = _read_head(model)
        for _ in range(length):
            new = ids if past is None else ids[:, -1:]
            out = body(input_ids=new, **{cache: past}, use_cache=True)
            past = getattr(out, cache)
            last = out.last_hidden_state[:, -1]  # (n, d)
            ids = torch.cat([ids, F.linear(last, W.to(last.dtype), model.head.bias).argmax(-1, keepdim=True)], dim=1)
    return ids[:, prefix.shape[1] :]


def _read_head(model: CohortModel) -> Tensor:
    """The head's weight (V, d) under the one row of parameters that is bound."""
    W = model.head_weight()
    return W if W.ndim == 2 else W[0]


def draw_tokens(logits: Tensor, draws: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw a token of each row of logits (n, V) by the inverse of its distribution function at draws (n,): ids (n,).

    Only the likeliest tokens are drawn that together have a probability of `top_p`, the last of which passes it (Holtzman et
    al., ICLR 2020); 1 is all of them.

    >>> logits = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(4, 3)
    >>> draws = torch.tensor([0.0, 0.69, 0.71, 0.91])
    >>> draw_tokens(logits, draws, 1.0, 1.0).tolist(), draw_tokens(logits, draws, 1.0, 0.8).tolist()
    ([2, 2, 1, 0], [2, 2, 2, 1])
    """
    p, order = (logits.to(widest(logits.device)) / temperature).softmax(-1).sort(descending=True, stable=True)
    up_to = p.cumsum(-1)
    kept = up_to - p < top_p  # the likeliest always is
    mass = (p * kept).sum(-1)
    place = (up_to <= (draws.to(p) * mass)[:, None]).sum(-1).clamp(max=kept.sum(-1) - 1)
    return order.gather(-1, place[:, None])[:, 0]


@torch.no_grad()
def answer_prompts(
    model: CohortModel,
    flat: Tensor,
    prompts: Sequence[Sequence[int]],
    length: int,
    stops: Collection[int],
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Answer prompts under parameters flat (P,), up to a stop token or `length` tokens: the tokens of each answer.

    Without `sampling` each token is the likeliest. Prompts of any lengths go through the model side by side without padding:
    all begin with as many tokens as the shortest has, and the others are given their own next token where the shorter ones
    go on.
    """
    sizes = torch.tensor([len(p) for p in prompts], device=flat.device)
    given = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(flat.device)
    made: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    new, past, body = given[:, : int(sizes.min())], None, model.model.base_model
    cache = _name_of_cache(body)
    with model.slots.bind(flat[None]):
        W = _read_head(model)
        for place in range(int(sizes.min()), int(sizes.max()) + length):  # of the token that is chosen
            out = body(input_ids=new, **{cache: past}, use_cache=True)
            past = getattr(out, cache)
            last = out.last_hidden_state[:, -1]  # (n, d)
            logits = F.linear(last, W.to(last.dtype), model.head.bias)  # (n, V)
            if sampling is None:
                chosen = logits.argmax(-1)
            else:
                token = (place - sizes.cpu()).clamp(0, length - 1)  # (n,) that each answer is at
                draws = sampling.draws.gather(1, token[:, None])[:, 0]
                chosen = draw_tokens(logits, draws.to(logits.device), sampling.temperature, sampling.top_p)
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
