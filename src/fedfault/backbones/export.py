"""The trained adapter as a folder that PEFT, and everything that reads PEFT's format, can load.

The files are written here, without importing peft, which takes seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone
from fedfault.backbones.sites import is_conv1d
from fedfault.storage import write_atomically
from fedfault.types import Adapter


def export(folder: Path, backbone: Backbone, model: CohortModel, adapter: Adapter, card: str) -> None:
    """Write `folder`: adapter_config.json, adapter_model.safetensors, tokenizer and model card README.md.

    A `partial` run has no adapter in PEFT's sense: its folder holds trained.safetensors, the trained parameters under
    their names in the backbone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout, flat = adapter.layout, adapter.flat.detach().float().cpu()
    lora = [s for s in layout.sites if s.kind == "lora"]
    tensors: dict[str, torch.Tensor] = {}
    for site in lora:
        A, B = layout.pair(flat, site)
        for factor, value in (("lora_A", A), ("lora_B", B)):
            tensors[f"base_model.model.{site.name}.{factor}.weight"] = value.contiguous().clone()
    for site in (s for s in layout.sites if s.kind == "full"):
        tensors[site.name] = layout.part(flat, site).contiguous().clone()
    write_atomically(
        folder / ("adapter_model.safetensors" if lora else "trained.safetensors"), save(tensors, {"format": "pt"})
    )
    if lora:
        text = json.dumps(_peft_config(backbone, model, lora[0].shape[0]), indent=2) + "\n"
        write_atomically(folder / "adapter_config.json", text)
    backbone.tokenizer.save_pretrained(folder)
    write_atomically(folder / "README.md", card)


def _peft_config(backbone: Backbone, model: CohortModel, r: int) -> dict[str, Any]:
    """What peft.LoraConfig.from_pretrained reads; fields left out have peft's defaults. Target names are sorted."""
    names = sorted(model.targets.lora)
    base = model.model.get_submodule(names[0]).base
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": backbone.source,
        "r": r,
        "lora_alpha": model.layout.scaling * r,
        "lora_dropout": 0.0,
        "target_modules": names,
        "fan_in_fan_out": is_conv1d(base),
        "bias": "none",
        "inference_mode": True,
    }
