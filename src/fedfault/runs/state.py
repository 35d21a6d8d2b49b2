"""The State after a round as files: its tensors in safetensors, the rest in JSON, see `runs/checkpoint.py`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedfault.algebra import place
from fedfault.errors import UserError
from fedfault.runs.checkpoint import PLAIN, About, locate, write_about
from fedfault.storage import write_atomically
from fedfault.types.adapter import Adapter, Layout
from fedfault.types.algorithm import Room, State


def write_state(folder: Path, state: State, config: str | None, records: str) -> None:
    """Write the checkpoint of a state: tensors first, then the JSON that makes them count. For the hashes see `About`."""
    groups = {"memory": state.memory, "clients": state.clients}
    tensors = {"x": state.adapter.flat}
    tensors |= {f"{group}/{name}": a.flat for group, items in groups.items() for name, a in items.items()}
    tensors |= {f"base/{name}": change for name, change in state.base.items()}
    tensors |= {} if state.last is None else {"last": state.last.flat}
    tensors |= {} if state.versions is None else {"versions": state.versions.flat}
    data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    write_atomically(locate(folder, state.round, "safetensors"), data)
    plain: Any = {name: getattr(state, name) for name in PLAIN}
    write_about(
        folder, About(plain, state.adapter.layout.fingerprint, hashlib.sha256(data).hexdigest(), config, records)
    )


def read_state(folder: Path, about: About, layout: Layout, device: Any) -> State:
    """Read the tensors of a checkpoint and return its state. Raises one of `DAMAGE` if they are not what was written."""
    data = locate(folder, about.state["round"], "safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != about.sha256:
        raise ValueError("the checksum of its tensors does not match")
    if about.layout != layout.fingerprint:
        raise UserError(
            f"the checkpoint in {folder} belongs to another model or other trainable sites than config.yaml"
        )
    try:
        found = {name: place(t, torch.device(device)) for name, t in load(data).items()}
    except SafetensorError as e:
        raise ValueError(str(e)) from e
    groups: dict[str, dict[str, Any]] = {"memory": {}, "clients": {}, "base": {}}
    for name in set(found) - {"x", "last", "versions"}:
        group, _, key = name.partition("/")
        groups[group][key] = found[name] if group == "base" else Adapter(layout, found[name])
    last = Adapter(layout, found["last"]) if "last" in found else None
    versions = Adapter(layout, found["versions"]) if "versions" in found else None
    fields: dict[str, Any] = {"adapter": Adapter(layout, found["x"]), "last": last, "versions": versions}
    fields |= {**groups, **about.state}
    fields["room"] = None if fields.get("room") is None else Room(*fields["room"])
    return State(**fields)
