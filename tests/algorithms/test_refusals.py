"""Which aggregations SCAFFOLD, FedDyn, MOON and IFCA cannot be combined with: the configuration says so, with the reason."""

from __future__ import annotations

import pytest

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.setup.experiment import _check_pair
from toys import allowed

SOME = ["scaffold", "scaffold_update_space", "feddyn", "ifca", "clustered"]


@pytest.mark.parametrize("algorithm", SOME)
@pytest.mark.parametrize("aggregation", ["flora", "flexlora", "rolora", "fedsa_lora", "hetlora"])
def test_what_is_kept_in_factors_is_for_factors_that_all_train_and_share(algorithm, aggregation):
    assert not allowed(algorithm, aggregation)


@pytest.mark.parametrize("algorithm", [*SOME, "moon"])
@pytest.mark.parametrize("aggregation", ["fedit", "ffa_lora", "zero_pad", "blockwise"])
def test_plain_averages_go_with_all(algorithm, aggregation):
    assert allowed(algorithm, aggregation)


def test_contrast_is_about_functions_and_minds_only_a_changing_base():
    assert [
        a for a in ("flexlora", "rolora", "fedsa_lora", "hetlora", "flora", "fedex_lora") if not allowed("moon", a)
    ] == [
        "flora",
        "fedex_lora",
    ]


@pytest.mark.parametrize("algorithm", ["scaffold", "moon", "fedavg"])
def test_ranks_may_differ(algorithm):
    assert allowed(algorithm, "blockwise", [1, 2])


@pytest.mark.parametrize("algorithm", ["feddyn", "ifca", "clustered"])
def test_ranks_must_not_differ(algorithm):
    assert allowed(algorithm, "blockwise", [2, 2])
    assert not allowed(algorithm, "blockwise", [1, 2])


def refusal(algorithm: str, aggregation: str, ranks=None, **options) -> str:
    parts = {
        "algorithm": {"name": algorithm, **options},
        "aggregation": {"method": aggregation},
        "scheduler": {"type": "fixed", "ranks": ranks},
    }
    exp = Experiment.model_validate({"federation": parts})
    with pytest.raises(UserError) as e:
        _check_pair(exp, build("algorithm", algorithm, **options), build("aggregation", aggregation))
    return str(e.value)


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "ifca"])
def test_ranks_must_not_fall_either(algorithm):
    exp = Experiment.model_validate({"federation": {"algorithm": {"name": algorithm}}})
    pruning = build("aggregation", "hetlora", weighting="samples")
    with pytest.raises(UserError, match="lowers the ranks of clients while the run goes on, but"):
        _check_pair(exp, build("algorithm", algorithm), pruning)


def test_the_reason_is_given():
    told = refusal("feddyn", "fedit", [1, 2])
    assert told.startswith(
        "federation.algorithm=feddyn needs one LoRA rank for all clients, because h sums up the changes"
    )
    assert told.endswith("use federation.scheduler.type=fixed with one rank")


def test_a_scheduler_and_an_aggregation_cannot_both_set_the_ranks():
    chosen = {"aggregation": {"method": "hetlora"}, "scheduler": {"type": "lite", "r_bar": 4.0}}
    exp = Experiment.model_validate({"federation": chosen})
    with pytest.raises(UserError, match="lowers the ranks of its clients itself, so that federation"):
        _check_pair(exp, build("algorithm", "fedavg"), build("aggregation", "hetlora"))


def test_a_shortened_server_step_does_not_go_with_what_belongs_to_the_whole_one():
    assert allowed("scaffold", "fedex_lora")
    assert "server_lr takes another step" in refusal("scaffold", "fedex_lora", server_lr=0.5)
