"""The texts that forgetting of general English is measured on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone
from fedfault.backbones.sample import sample_texts
from fedfault.config.schema import Experiment
from fedfault.data.split import pack_and_draw
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.saying import Say
from fedfault.seeds import torch_rng
from fedfault.storage import cache_dir, expand_home, keep, recall
from fedfault.text.packing import Blocks


def load_general(exp: Experiment, backbone: Backbone, model: CohortModel, say: Say) -> Blocks | None:
    """The set that forgetting of general English is measured on; None when it is switched off.

    Raises `UserError` where `evaluation.general` names nothing that is there.
    """
    wanted, n, T = exp.evaluation.general, exp.evaluation.general_blocks, exp.model.max_length
    if wanted == "none":
        return None
    if wanted == "base_samples":
        ids = _sample_base(backbone, model, n, T, say)
        return Blocks(ids, torch.full((n,), T))
    if wanted == "wikitext":
        corpus = build("corpus", "wikitext")
    elif (path := expand_home(wanted, "evaluation.general")).exists():
        corpus = build("corpus", "wikitext" if _is_wikitext(path) else "text", path=wanted)
    else:
        raise UserError(
            f"evaluation.general={wanted!r}: give base_samples, wikitext, none, or a folder or file of text"
        )
    texts = [d.text for d in (*corpus.validation, *corpus.train)]
    return pack_and_draw(texts, backbone.tokenizer, T, backbone.separator, n, exp.seed)


def _is_wikitext(path: Path) -> bool:
    return path.is_dir() and ((path / "test.txt").is_file() or (path / "wiki.test.raw").is_file())


def _sample_base(backbone: Backbone, model: CohortModel, n: int, T: int, say: Say) -> torch.Tensor:
    """Samples of the base, drawn once for a model and size and then kept in the cache: the same for all runs."""
    key = f"{backbone.fingerprint}-{backbone.precision}-{n}x{T}-torch{torch.__version__}"
    file = cache_dir() / "samples" / f"{key}.safetensors"
    if (kept := recall(file)) is not None:
        return load_tensors(kept)["ids"]
    say(f"{n} samples of {T} tokens from the base model")
    with model.slots.bind(model.init(0).flat[None]):
        ids = sample_texts(backbone.model, n, T, backbone.separator, torch_rng(0, "base_samples"))
    keep(file, save({"ids": ids}))
    return ids
