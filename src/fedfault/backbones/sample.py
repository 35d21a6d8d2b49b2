"""Text drawn from the frozen base itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sample(model: Any, n: int, length: int, separator: int, generator: torch.Generator) -> Tensor:
    """n samples of `length` tokens after a separator, at temperature 1: ids (n, length + 1).

    On these the mean loss of a fine-tuned model minus that of the base estimates KL(base || model) per token, because the
    text is drawn from the base: no data are needed, and an untrained adapter gives exactly zero.
    """
    ids = torch.full((n, 1), separator)
    past = None
    for _ in range(length):
        out = model(input_ids=ids[:, -1:].to(model.device), past_key_values=past, use_cache=True)
        past = out.past_key_values
        p = out.logits[:, -1].float().softmax(-1).cpu()
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids
