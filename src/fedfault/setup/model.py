"""The backbone that a configuration names, opened up for a cohort."""

from __future__ import annotations

import math

from fedfault.backbones.checks import state_width
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.load import Backbone, load_backbone
from fedfault.backbones.scorer import Scorer
from fedfault.backbones.sites import Targets, check_rank, lora_targets, match_patterns, partial_targets
from fedfault.config.schema import Experiment
from fedfault.saying import Say


def load_configured_backbone(exp: Experiment, quantization: str, say: Say, *, headless: bool) -> Backbone:
    """Load the backbone that a configuration names, in this quantisation."""
    place = {"precision": exp.model.precision, "device": exp.device, "quantization": quantization}
    return load_backbone(exp.model.name, **place, say=say, headless=headless, length=exp.model.max_length)


def open_model(exp: Experiment, backbone: Backbone, outputs: int | None = None) -> CohortModel:
    """The backbone with the configured sites made trainable for K clients, and with a head of so many outputs."""
    m, scorer = exp.model, None
    if outputs is not None and backbone.pooling is not None:
        scorer = Scorer(backbone.pooling, state_width(backbone.model), outputs)
    if m.trainable == "lora":
        targets = lora_targets(backbone.model, m.lora.target_modules)
        own = _read_patterns(exp, targets)
        check_rank(backbone.model, targets, max([m.lora.r_max, *(rank for rank, _ in own.values())]))
    else:
        targets, own = partial_targets(backbone.model, m.partial.last_blocks, m.partial.modules), {}
    r, dropout = m.lora.r_max, m.lora.dropout
    alpha = _stabilise(exp, m.lora.alpha, r)
    return CohortModel(
        backbone.model,
        targets,
        r=r,
        alpha=alpha,
        dropout=dropout,
        scorer=scorer,
        recompute=exp.training.gradient_checkpointing,
        own=own,
        start=m.lora.init,
    )


def _read_patterns(exp: Experiment, targets: Targets) -> dict[str, tuple[int, float]]:
    """Rank and alpha of the LoRA sites that have others than the rest, by name."""
    lora = exp.model.lora
    ranks = match_patterns(targets, lora.rank_pattern, "rank_pattern")
    alphas = match_patterns(targets, lora.alpha_pattern, "alpha_pattern")
    pairs = {
        n: (ranks.get(n, lora.r_max), alphas.get(n, lora.alpha)) for n in targets.lora if n in ranks or n in alphas
    }
    return {name: (r, _stabilise(exp, alpha, r)) for name, (r, alpha) in pairs.items()}


def _stabilise(exp: Experiment, alpha: float, r: int) -> float:
    """The alpha that over r is the configured scaling."""
    return alpha if exp.model.lora.scaling == "alpha/r" else alpha * math.sqrt(r)
