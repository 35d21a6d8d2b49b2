"""Faster layers in the place of a model's own: `backbones.lean` on a CPU, `backbones.fused` on a GPU.

A module is replaced only if the replacement, tried on random numbers, gives what the original gives: architectures that
differ keep their own code. Names of sub-modules stay, so that sites and exports do not notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedfault.backbones import lean
from fedfault.backbones.fused import load_liger
from fedfault.errors import read_first_line

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


class Makers(Protocol):
    """A source of layers that could take the place of a model's own."""

    def list_norms(self, base: nn.Module) -> Sequence[nn.Module]:
        """List what could replace an RMSNorm."""

    def list_mlps(self, children: dict[str, nn.Module]) -> Sequence[nn.Module]:
        """List what could replace a gated MLP of these layers."""

    def make_attention(self, base: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
        """Make what could replace an attention layer."""


class Kernels(NamedTuple):
    """The layers that were replaced in a model, and where those that a GPU could have are missing, why."""

    source: str = ""  # of the layers: liger-kernel with its version; nothing for torch's own and the lean ones
    replaced: Mapping[str, int] = MappingProxyType({})  # class of the original -> how many
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, for the manifest."""
        return {**self._asdict(), "replaced": dict(self.replaced)}


def replace_layers(model: Any) -> Kernels:
    """Replace the modules of a model that have a faster equivalent on its device, in place."""
    device = next(model.parameters()).device.type
    if device == "cpu":
        return Kernels(replaced=_replace(model, LEAN, set(), gradients=False))
    return replace_by_liger(model) if device == "cuda" else Kernels()


def replace_by_liger(model: Any) -> Kernels:
    """Replace what liger-kernel has a kernel for, where the kernel gives the same outputs and gradients here.

    Whatever goes wrong, with the import of Triton or with a kernel and the driver, leaves the model as it is.
    """
    try:
        liger = load_liger()
    except ModuleNotFoundError as e:
        package = (e.name or "liger_kernel").partition(".")[0].replace("_", "-")
        return Kernels(notes=(f"{package} is not installed: `pip install 'fedfault[gpu]'` gives a GPU fused kernels",))
    except Exception as e:
        return Kernels(notes=(f"liger-kernel cannot be used here ({read_first_line(e)}): torch's own kernels train",))
    source, refused = f"liger-kernel {liger.version}", set[str]()
    replaced = _replace(model, liger, refused, gradients=True)
    return Kernels(source if replaced else "", replaced, tuple(f"{source}: {why}" for why in sorted(refused)))


class _Lean:
    """The lean layers as `Makers`."""

    list_norms = staticmethod(lean.list_norms)
    list_mlps = staticmethod(lean.list_mlps)
    make_attention = staticmethod(lean.LeanAttention)


LEAN: Makers = _Lean()


def _replace(model: Any, makers: Makers, refused: set[str], *, gradients: bool) -> dict[str, int]:
    """Replace what can be replaced; counts by class of the original, and adds a sentence for each kind that is refused."""
    found: Counter[str] = Counter()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            try:
                given = _make_inputs(child, model)
                candidates = _list_candidates(child, makers) if given is not None else []
                fits = (one for one in candidates if _agree(one, child, *given, gradients=gradients))  # type: ignore[misc]
                chosen = next(fits, None)
            except Exception as e:  # as of attention that takes more than others
                refused.add(f"{kind} stays as it is ({read_first_line(e)})")
                continue
            if chosen is not None:
                setattr(parent, name, chosen)
                found[kind] += 1
            elif candidates and gradients:
                refused.add(f"{kind} stays as it is, as its kernel gives something else")
    return dict(found)


def _list_candidates(module: nn.Module, makers: Makers) -> Sequence[nn.Module]:
    children = dict(module.named_children())
    if set(children) == GATED:
        return makers.list_mlps(children)
    return [makers.make_attention(module, children)] if children else makers.list_norms(module)


def _make_inputs(module: nn.Module, model: Any) -> tuple[Tensor, dict[str, Any]] | None:
    """Make inputs that a module can be tried on, the first one apart; None for one of no kind that could be replaced."""
    children, own = set(dict(module.named_children())), next(p for p in model.parameters() if p.is_floating_point())
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, model.config.hidden_size, generator=g).to(own.device, own.dtype)
    if type(module).__name__.endswith("RMSNorm") and (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        weight = getattr(module, "weight", None)
        return (x, {}) if weight is not None and len(weight) == x.shape[-1] else None
    if children == GATED:
        return x, {}
    if children != ATTENTION or not hasattr(module, "head_dim"):
        return None
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None or vars(module).get("attention_dropout", 0.0):
        return None
    around = rotary(x, torch.arange(5, device=x.device)[None])
    if around[0].shape[-1] != module.head_dim:  # only a part of each head is rotated
        return None
    return x, {"position_embeddings": around, "attention_mask": None}


def _agree(ours: nn.Module, theirs: nn.Module, x: Tensor, around: dict[str, Any], *, gradients: bool) -> bool:
    """Tell whether two modules give the same outputs and, if asked, gradients with respect to their input."""
    leaf = x.clone().requires_grad_(gradients)
    a, b = (out[0] if isinstance(out, tuple) else out for out in (ours(leaf, **around), theirs(leaf, **around)))
    if not lean.is_same(a, b) or not gradients:
        return lean.is_same(a, b)
    g = torch.randn(b.shape, generator=torch.Generator().manual_seed(1)).to(b)
    return lean.is_same(*(torch.autograd.grad(out, leaf, g)[0] for out in (a, b)))
