"""Text from models: samples of the frozen base, and what a fine-tuned model writes, likeliest or drawn."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedfault.algebra import widest
from fedfault.backbones.attention import CACHES
from fedfault.backbones.checks import BROKEN, SHORT
from fedfault.backbones.cohort import CohortModel
from fedfault.errors import is_out_of_memory
from fedfault.text.questions import Sampling

APART, ROUNDED = 1e-3, 3e-2  # of what a model gives by which its cache may differ: in float32, and in bfloat16


class _Reader:
    """Reads tokens one after the other: with what the model kept of earlier ones, where it can go on from that."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        """ids: (n, S) the first tokens, of which a few are for a trial."""
        self.model, self.cache = model, _find_cache(model, ids[:1, :SHORT])
        self.kept: Any = None
        self.ids = ids[:, :0]

    def read(self, new: Tensor) -> Any:
        """What the model gives for ids (n, T) that follow those before; of its states, or logits, the last is meant."""
        if self.cache is None:
            self.ids = torch.cat([self.ids, new], dim=1)
            return self.model(input_ids=self.ids, use_cache=False)
        out = self.model(input_ids=new, **{self.cache: self.kept}, use_cache=True)
        self.kept = getattr(out, self.cache)
        return out


@torch.no_grad()
def _find_cache(model: Any, ids: Tensor) -> str | None:
    """The keyword by which a model takes, and gives back, what it keeps of earlier tokens.

    None for one that has another, as Mamba and RWKV do, or that goes on otherwise from what it kept than from the tokens.
    """
    name = next((n for n in CACHES if n in inspect.signature(model.forward).parameters), None)
    if name is None:
        return None
    longer = torch.cat([ids, ids[:, -1:], ids[:, :1]], dim=1)
    try:
        out = model(input_ids=ids, use_cache=True)
        for at in range(ids.shape[1], longer.shape[1]):
            out = model(input_ids=longer[:, at : at + 1], **{name: getattr(out, name)}, use_cache=True)
        last, whole = out[0][:, -1], model(input_ids=longer, use_cache=False)[0][:, -1]
    except BROKEN as e:
        if is_out_of_memory(e):
            raise
        return None
    most = APART if whole.dtype == torch.float32 else ROUNDED
    return None if (last - whole).float().norm() > most * whole.float().norm() else name


@torch.no_grad()
def sample_texts(model: Any, n: int, length: int, separator: int, generator: torch.Generator) -> Tensor:
    """Sample n texts of `length` tokens after a separator, at temperature 1: ids (n, length + 1).

    On these the mean loss of a fine-tuned model minus that of the base estimates KL(base || model) per token, because the
    text is drawn from the base: no data are needed, and an untrained adapter gives exactly zero.
    """
    ids = torch.full((n, 1), separator)
    reader = _Reader(model, ids.to(model.device))
    for _ in range(length):
        out = reader.read(ids[:, -1:].to(model.device))
        p = out.logits[:, -1].float().softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids


@torch.no_grad()
def decode_greedily(model: CohortModel, flat: Tensor, prefix: Tensor, length: int) -> Tensor:
    """Take the likeliest next token `length` times under parameters flat (P,): prefix (n, S) -> ids (n, length)."""
    ids = new = prefix.to(flat.device)
    with model.slots.bind(flat[None]):
        head = _bound_head(model)
        reader = _Reader(model.model.base_model, ids)
        for _ in range(length):
            last = reader.read(new).last_hidden_state[:, -1]  # (n, d)
            new = head(last).argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
    return ids[:, prefix.shape[1] :]


def _bound_head(model: CohortModel) -> Callable[[Tensor], Tensor]:
    """What makes logits (n, V) of states (n, d), under the parameters of the one client that is bound."""
    W, b = model.bound_head()
    W, b = W if W.ndim == 2 else W[0], b if b is None or b.ndim == 1 else b[0]
    return lambda states: F.linear(states, W.to(states.dtype), None if b is None else b.to(states.dtype))


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
    new = given[:, : int(sizes.min())]
    with model.slots.bind(flat[None]):
        head = _bound_head(model)
        reader = _Reader(model.model.base_model, new)
        for place in range(int(sizes.min()), int(sizes.max()) + length):  # of the token that is chosen
            last = reader.read(new).last_hidden_state[:, -1]  # (n, d)
            logits = head(last)  # (n, V)
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
