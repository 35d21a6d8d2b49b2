"""A device that is not there: its tensors hold real numbers, and refuse what a GPU or a Mac would refuse.

Its tensors say that they are on `meta`, which torch has without hardware. Inside `Elsewhere` they compute, on the CPU. What
mixes them with tensors of the CPU raises the error that CUDA raises, and float64 that of mps where the device has none. So
whatever only runs where all tensors lie on the CPU fails here, on any machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Operations whose second argument may lie on the CPU while the first does not: copies, and places in a tensor
MOVES = {aten._to_copy.default, aten.copy_.default}
PLACES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}


class There(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
            requires_grad=real.requires_grad,
        )
        made.held = real
        return made

    def __repr__(self) -> str:
        return f"There({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert meta device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside Elsewhere")


class Elsewhere(TorchDispatchMode):
    """While it is entered, factories and copies with `device=DEVICE` make tensors of the device.

    doubles: whether it has float64.
    """

    def __init__(self, doubles: bool = True) -> None:
        super().__init__()
        self.doubles = doubles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in leaves if isinstance(x, There)]
        wanted = kwargs.get("device")
        if not ours and (wanted is None or torch.device(wanted).type != "meta"):
            return func(*args, **kwargs)
        if ours and func not in MOVES:
            self._check_places(func, args, leaves)
        there = torch.device(wanted).type == "meta" if wanted is not None else bool(ours)
        if func is aten.copy_.default:
            there = isinstance(args[0], There)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        plain = {id(x): x.held for x in ours}
        strip = lambda x: plain[id(x)] if isinstance(x, There) else x  # noqa: E731
        out = func(*pytree.tree_map(strip, args), **pytree.tree_map(strip, kwargs))
        back = {id(x.held): x for x in ours}

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor) or not there:
                return x
            if id(x) in back:  # written in place
                return back[id(x)]
            if x.dtype == torch.float64 and not self.doubles:
                raise TypeError(f"{func}: the device has no float64")
            return There(x)

        return pytree.tree_map(wrap, out)

    def _check_places(self, func: Any, args: Any, leaves: list[Tensor]) -> None:
        if func in PLACES and isinstance(args[0], There):
            leaves = [x for x in (args[0], *args[2:]) if isinstance(x, Tensor)]
        if any(x.dim() and not isinstance(x, There) for x in leaves):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found meta and cpu")


class _Made(TorchFunctionMode):
    """`torch.tensor` makes nothing but shapes on `meta` by itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "meta":
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextlib.contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch, doubles: bool = True) -> Iterator[None]:
    """Runs that are started within train on the device, which says how much memory it has free if it is like CUDA."""
    monkeypatch.setattr("fedfault.backbones.load.choose_device", lambda _: DEVICE)
    if doubles:
        monkeypatch.setattr("fedfault.tasks.fitting.find_free_bytes", lambda _: 2**34)
    else:
        monkeypatch.setattr("fedfault.algebra.NO_FLOAT64", (DEVICE.type,))
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Made(), Elsewhere(doubles):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
