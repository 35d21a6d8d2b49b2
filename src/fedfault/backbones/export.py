"""The trained adapter as a folder that PEFT, and everything that reads PEFT's format, can load.

The files are written here, without importing peft, which takes seconds.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone
from fedfault.backbones.scorer import BIAS, WEIGHT
from fedfault.backbones.sites import is_conv1d
from fedfault.storage import write_atomically
from fedfault.types.adapter import Adapter, Layout, Pair

HEAD = {WEIGHT: "weight", BIAS: "bias"}
# As names of modules PEFT moves these to the stacked experts that transformers 5 has in their place
OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
PATTERNED = """
Modules of this adapter differ in rank or alpha (`rank_pattern`, `alpha_pattern` in adapter_config.json), which PEFT reads.
vLLM takes `r` and `lora_alpha` for all of them, and llama.cpp's `convert_lora_to_gguf.py` this alpha, so that both scale
some wrongly without a word: give them `model.merge_and_unload()`, saved with `save_pretrained`.
"""


def export_adapter(
    folder: Path,
    backbone: Backbone,
    model: CohortModel,
    adapter: Adapter,
    card: str,
    base: Mapping[str, torch.Tensor] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write `folder`: adapter_config.json, adapter_model.safetensors and model card README.md.

    card: its text, to which is added what other programs than PEFT do not read, where that is so.
    base: the change of the frozen weights that the run made, `State.base`; it is merged into the adapter that is written.
    What is written changes the weights of the base as it is published: where training began with a part of these (see
    `starts.py`) the part is taken off, in as many slices again.
    A `partial` run has no adapter in PEFT's sense: its folder holds trained.safetensors, the trained parameters under
    their names in the backbone.

    A classifier's adapter is one of `AutoModel`, and its head is in head.safetensors beside it: `weight`, `bias`, and as
    metadata the names of the classes and which state the head reads. transformers' own classifiers have heads of other
    shapes and none on a mean of states, so that `modules_to_save` would load into nothing for the most of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if base:
        adapter = merge_base(adapter, base, model.start)
    elif model.start:
        adapter = subtract_start(adapter, model.start)
    layout, flat = adapter.layout, adapter.flat.detach().float().cpu()
    lora, prefix = layout.lora, _site_prefix(model)
    tensors: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for site in lora:
        A, B = layout.pair(flat, site)
        for factor, value in (("lora_A", A), ("lora_B", B)):
            name = f"base_model.model.{site.name.removeprefix(prefix)}.{factor}.weight"
            tensors[name] = value.contiguous().clone()
    for site in (s for s in layout.sites if s.kind == "full"):
        own, name = (head, HEAD[site.name]) if site.name in HEAD else (tensors, site.name.removeprefix(prefix))
        own[name] = layout.part(flat, site).contiguous().clone()
    write_atomically(
        folder / ("adapter_model.safetensors" if lora else "trained.safetensors"), save(tensors, {"format": "pt"})
    )
    if model.scorer is not None:
        about = json.dumps({"pooling": model.scorer.pooling, "labels": list(labels)})
        write_atomically(folder / "head.safetensors", save(head, {"about": about}))  # two keys come in random order
    if lora:
        config = _peft_config(backbone, model, layout, prefix)
        card += PATTERNED if config["rank_pattern"] or config["alpha_pattern"] else ""
        write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(folder / "README.md", card)


def export_tokenizer(folder: Path, tokenizer: Any, chat_template: str | None = None) -> None:
    """Write the tokenizer's files into `folder`, which must be there, with the chat template that it was trained with."""
    with tempfile.TemporaryDirectory() as scratch:  # the library writes its files plainly
        tokenizer.save_pretrained(Path(scratch))
        for file in (f for f in Path(scratch).rglob("*") if f.is_file()):
            target = folder / file.relative_to(scratch)
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, file.read_bytes())
    if chat_template is not None:
        write_atomically(folder / "chat_template.jinja", chat_template)  # where transformers looks first


def _site_prefix(model: CohortModel) -> str:
    """The prefix of a classifier's site names that the names of its `AutoModel` lack."""
    if model.scorer is None:
        return ""
    name = next(n for n, m in model.model.named_modules() if m is model.model.base_model)
    return f"{name}." if name else ""


def subtract_start(adapter: Adapter, start: Mapping[str, Pair]) -> Adapter:
    """The adapter (P,) of rank 2 r with B A - B0 A0 at every LoRA site, whose factors (A0, B0) `start` has by name."""
    old, flat = adapter.layout, adapter.flat.detach().cpu()
    sites = [
        replace(s, shape=(2 * s.shape[0], *s.shape[1:]), scaling=old.scale(s)) if s.kind == "lora" else s
        for s in old.sites
    ]
    new = Layout.of(sites, old.scaling)
    out = torch.zeros(new.size)
    for site, before in zip(new.sites, old.sites, strict=True):
        if site.kind == "full":
            new.part(out, site).copy_(old.part(flat, before))
            continue
        (A, B), (A0, B0) = old.pair(flat, before), (factor.cpu() for factor in start[site.name])
        written = new.pair(out, site)
        written.A.copy_(torch.cat([A, A0])), written.B.copy_(torch.cat([B, -B0], 1))
    return Adapter(new, out)


def merge_base(
    adapter: Adapter, base: Mapping[str, torch.Tensor], start: Mapping[str, Pair] = MappingProxyType({})
) -> Adapter:
    """Merge `base`, site -> (d_out, d_in), the change of the frozen weights, into `adapter` (P,), without its `start`.

    At every site the new factors are the singular value decomposition of base + s B A, with the roots of the singular
    values in both. The rank is the largest that a site needs, so that nothing is lost: after many rounds of changes it may
    be as large as that of a full matrix.
    """
    old, flat = adapter.layout, adapter.flat.detach().cpu().double()
    changes = {s.name: base[s.name].cpu().double() + Adapter(old, flat).delta(s) for s in old.lora}
    for site in (s for s in old.lora if s.name in start):
        A0, B0 = (factor.cpu().double() for factor in start[site.name])
        changes[site.name] -= old.scale(site) * B0 @ A0
    found = {s.name: torch.linalg.svd(changes[s.name] / old.scale(s), full_matrices=False) for s in old.lora}
    r = max(1, *(_numerical_rank(S, changes[name].shape) for name, (_, S, _) in found.items()))
    sites = [replace(s, shape=(r, *s.shape[1:])) if s.kind == "lora" else s for s in old.sites]
    new = Layout.of(sites, old.scaling)
    out = torch.zeros(new.size, dtype=torch.float64)
    for site, before in zip(new.sites, old.sites, strict=True):
        if site.kind == "full":
            new.part(out, site).copy_(old.part(flat, before))
            continue
        U, S, Vh = found[site.name]
        A, B = new.pair(out, site)
        n = min(r, len(S))
        A[:n] = S[:n].sqrt()[:, None] * Vh[:n]
        B[:, :n] = U[:, :n] * S[:n].sqrt()
    return Adapter(new, out)


def _numerical_rank(S: torch.Tensor, shape: torch.Size) -> int:
    """Count the singular values S that are larger than the rounding errors of float32."""
    return int((S.max() * max(shape) * torch.finfo(torch.float32).eps < S).sum())


def _peft_config(backbone: Backbone, model: CohortModel, layout: Layout, prefix: str) -> dict[str, Any]:
    """The fields that peft.LoraConfig.from_pretrained reads; others have peft's defaults. Target names are sorted.

    Sites of another rank or alpha than the most have them in rank_pattern and alpha_pattern, by their whole names. Beside
    stacked experts, dense layers that are called as experts were before are named by their weights.
    """
    base = model.model.get_submodule(model.targets.lora[0]).base
    stacked = any(n.endswith(".gate_up_proj") and p.ndim > 2 for n, p in model.model.named_parameters())
    names = {s.name: s.name.removeprefix(prefix) for s in layout.lora}
    weights = {n: f"{own}.weight" for n, own in names.items() if stacked and n.rpartition(".")[2] in OF_EXPERTS}
    ranks = {(names | weights)[s.name]: s.shape[0] for s in layout.lora}
    alphas = {(names | weights)[s.name]: layout.scale(s) * s.shape[0] for s in layout.lora}
    (r, _), *_ = Counter(ranks.values()).most_common(1)
    (alpha, _), *_ = Counter(alphas.values()).most_common(1)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.scorer is None else "FEATURE_EXTRACTION",
        "base_model_name_or_path": backbone.source,
        **({"revision": backbone.revision} if backbone.revision else {}),
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != r},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "lora_dropout": 0.0,
        "target_modules": sorted(own for n, own in names.items() if n not in weights),
        **({"target_parameters": sorted(weights.values())} if weights else {}),
        "fan_in_fan_out": is_conv1d(base) or getattr(base, "fan_in_fan_out", False),
        "bias": "none",
        "inference_mode": True,
    }
