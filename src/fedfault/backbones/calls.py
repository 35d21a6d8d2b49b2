"""How a model calls its linear layers: only what is called on a row for every text can tell clients apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedfault.backbones.checks import SHORT, compute_states, ordinary_tokens
from fedfault.seeds import torch_rng

TEXTS = 2


@torch.no_grad()
def find_misfits(model: Any, names: Sequence[str]) -> list[str]:
    """Find those of a model's linear layers that a client's own numbers would not reach, or not alone.

    Some are not called, as their weight is read: Mamba's dt_proj. Others are called on what all texts share, or with the
    texts on another axis than the first: Longformer's queries. Some give more than x W: PhiMoE's router, whose weights
    and experts it returns. Experts are never found, as a token sees few of them.
    """
    ids, calls = ordinary_tokens(model, SHORT)[None].expand(TEXTS, -1), dict[str, list[torch.Size]]()
    more = set[str]()

    def note(name: str) -> Callable[..., None]:
        def see(module: nn.Module, given: Any, y: Any) -> None:
            if isinstance(y, Tensor):
                calls.setdefault(name, []).append(y.shape)
            else:
                more.add(name)

        return see

    plain = _compute_hooked(model, ids, {n: note(n) for n in names})
    if plain.device.type == "meta":  # which has shapes and no numbers
        return [n for n in names if n in more or (n not in calls and not _is_expert(n))]
    strange = {n for n, shapes in calls.items() if any(s[0] != TEXTS for s in shapes if s[1:-1])}  # not experts' rows
    reaches = {n for n in strange if bool((_compute_hooked(model, ids, {n: _move_second})[0] != plain[0]).any())}
    return [n for n in names if n in more | reaches or (n not in calls and not _is_expert(n))]


def _compute_hooked(model: Any, ids: Tensor, hooks: dict[str, Callable[..., Any]]) -> Tensor:
    """The last hidden states of ids, with hooks on some modules."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        return compute_states(model, ids)
    finally:
        for handle in handles:
            handle.remove()


def _move_second(module: nn.Module, given: Any, y: Tensor) -> Tensor:
    """What a layer gives if the second text's half of its rows has other numbers; all rows if they have no halves."""
    rows = y.reshape(-1, y.shape[-1]).clone()
    first = len(rows) // TEXTS if len(rows) % TEXTS == 0 else 0
    rows[first:] += torch.randn(rows[first:].shape, generator=torch_rng(0, "beside")).to(rows)
    return rows.view(y.shape)


def _is_expert(name: str) -> bool:
    return ".experts." in name
