"""Aggregations that give the mean of the clients' models do so with LoRA's variants too, or are refused with them."""

import pytest

from fedfault.config.loading import load
from fedfault.rounds.engine import begin, rounds
from fedfault.setup.experiment import prepare

EXACT = ("fedex_lora", "flora", "ffa_lora", "rolora", "fedsvd")
SMALL = (
    "federation.total_clients=3", "federation.num_rounds=2", "training.local_steps=2", "training.batch_size=2",
    "training.lr=2e-3", "model.max_length=16", "data.max_samples=60", "evaluation.max_blocks=1", "evaluation.general=none",
    "evaluation.every=2", "metrics={gradients: false, representation: false, attention: false}",
)  # fmt: skip
VARIANTS = {
    "rsLoRA and LoRA+": ("model.lora.scaling=alpha/sqrt(r)", "training.lr_ratio=8"),
    "PiSSA": ("model.lora.init=pissa",),
    "OLoRA": ("model.lora.init=olora",),
    "patterns": ("model.lora.rank_pattern={q_proj: 4, 'layers.0.*': 2}", "model.lora.alpha_pattern={v_proj: 5}"),
    "all-linear": ("model.lora.target_modules=all-linear",),
    "a regular expression": (r"model.lora.target_modules='model\.layers\.[0-2]\..*_proj'",),
}
REFUSED = {("PiSSA", "flora"), ("OLoRA", "flora")}  # tests/setup/test_experiment.py has the reason


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mean_of_models_is_exact_with_every_variant(variant):
    like = None
    for aggregation in EXACT:
        if (variant, aggregation) in REFUSED:
            continue
        told = [*SMALL, *VARIANTS[variant], f"federation.aggregation={aggregation}"]
        like = prepare(load(None, told).experiment, like=like)
        try:
            found = [
                r.probes["aggregation_error"] for _, r in rounds(like.federation, begin(like.federation)) if r.round
            ]
        finally:
            like.model.fold({})
        assert len(found) == 2
        assert max(found) < 1e-5, aggregation  # of float32, where the start is as long as the weight; FedIT has 1e-2
