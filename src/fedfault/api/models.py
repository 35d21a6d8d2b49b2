"""The trained model of a run folder as transformers and PEFT have it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedfault.arguments import take_whole
from fedfault.backbones.load import choose_device, load_backbone, locate_model
from fedfault.errors import UserError, is_out_of_memory, quote, read_first_line
from fedfault.reading.hub import split_revision
from fedfault.runs.recorded import RunData


def load_adapter(run: RunData, folder: Path) -> Any:
    """Load an adapter of a run as a PEFT model on its base.

    Raises `UserError` without PEFT, for a `partial` run, where PEFT would leave a part of the adapter out, and for files
    that are damaged or lack a part of it.
    """
    if run.setting("model", "trainable") == "partial":
        raise UserError(
            f"{run.folder} has trained layers and no adapter (model.trainable={run.setting('model', 'trainable')}); "
            "Run.model() is the model with them"
        )
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as e:
        raise UserError("peft is not installed; pip install peft") from e
    with explain_damage(run, folder):
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        there = {*_list_tensors(folder / "adapter_model.safetensors")}
    base = load_base(run)
    with explain_damage(run, folder):
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        known = {*get_peft_model_state_dict(model)}
        if missing := sorted(name for name in known - there if ".lora_" in name):
            raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    if lost := sorted(there - known):  # of mixtures of experts PEFT takes dense layers for experts
        raise UserError(
            f"{folder}: PEFT leaves out {len(lost)} of the adapter's tensors, such as {lost[0]}, so that its model is "
            "not the one that was trained; add B A times alpha / r to the base's weights yourself, or train other modules"
        )
    return model


def load_trained(run: RunData, folder: Path) -> Any:
    """Load the base of a run with the layers that it has trained in full.

    Raises `UserError` where the folder holds layers that the base has not.
    """
    from safetensors.torch import load_file

    with explain_damage(run, folder):
        trained = load_file(folder / "trained.safetensors")
    base = load_base(run)
    _, unknown = base.load_state_dict(trained, strict=False)
    if unknown:
        raise UserError(
            f"{folder} holds layers that {run.setting('model', 'name')} does not have: {', '.join(unknown)}"
        )
    return base


def load_head(run: RunData, folder: Path) -> dict[str, Any]:
    """Load the head of a run that learns labels: `weight` (C, d), `bias` (C,), `pooling` and `labels`.

    Raises `UserError` for a run without one.
    """
    file = folder / "head.safetensors"
    if not file.is_file():
        raise UserError(f"{run.folder} has no head of its own: its model predicts tokens, and Run.model() is all of it")
    from safetensors import safe_open

    with explain_damage(run, folder), safe_open(file, framework="pt") as f:
        about = json.loads(f.metadata()["about"])
        return {**{name: f.get_tensor(name) for name in ("weight", "bias")}, **about}


@contextlib.contextmanager
def explain_damage(run: RunData, folder: Path) -> Iterator[None]:
    """Raise `UserError`, which says how it is made again, where what a run has exported cannot be read within the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # safetensors, tokenizers and PEFT have errors of many kinds
        if is_out_of_memory(e):
            raise
        again = f"; `fedfault resume {quote(run.folder)}` writes it again" if run.status == "finished" else ""
        raise UserError(f"{folder} is damaged: {read_first_line(e)}{again}") from e


def _list_tensors(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as f:
        return list(f.keys())


def load_base(run: RunData) -> Any:
    """Load the frozen model that a run began with, as transformers has it."""
    name, headless = str(run.setting("model", "name")), run.headless
    quantization = str(run.setting("model", "quantization") or "none")
    precision = str(run.manifest.get("model", {}).get("precision", "fp32"))  # as it was trained
    if quantization != "none":
        return load_backbone(name, precision=precision, quantization=quantization, headless=headless).model
    import torch
    import transformers

    made = transformers.AutoModel if headless else transformers.AutoModelForCausalLM
    source, revision = split_revision(locate_model(name), "model.name")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return made.from_pretrained(source, revision=revision, dtype=dtype).eval().to(choose_device("auto"))


def locate_personal(run: RunData, client: int) -> str:
    """Return the place of a client's own model in the run's folder; that of the server's where no client has one.

    Raises `UserError` for a client that the run has not.
    """
    from fedfault.session.results import name_folders

    if not 0 <= (client := take_whole(client, "client")) < run.num_clients:
        raise UserError(f"{run.folder} has no client {client}; they are 0 to {run.num_clients - 1}")
    if not run.personal and not (run.folder / "adapter" / "clients").is_dir():
        return "adapter"
    return f"adapter/clients/{name_folders(run.client_names, run.num_clients)[client]}"
