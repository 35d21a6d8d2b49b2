"""What algorithms cannot be combined with: the configuration says so, with the reason, and nothing is allowed by silence."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from allowed import allowed
from fedfault.aggregations.flexlora import flexlora
from fedfault.aggregations.flora import flora
from fedfault.algorithms.fedavg import fedavg
from fedfault.config import load
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.setup.combinations import check_pair, check_parts
from fedfault.types.algorithm import TRAITS, Aggregation, stands

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


def test_a_correction_for_who_is_drawn_is_for_equal_ranks():
    """A slice that half of the clients have moved by half of what all clients would move it by."""
    assert "a slice is trained by some" in refusal("fedavg", "blockwise", [1, 2], unbiased=True)


def refusal(algorithm: str, aggregation: str, ranks=None, **options) -> str:
    parts = {
        "algorithm": {"name": algorithm, **options},
        "aggregation": {"name": aggregation},
        "scheduler": {"name": "fixed", "ranks": ranks},
    }
    exp = Experiment.model_validate({"federation": parts})
    with pytest.raises(UserError) as e:
        check_pair(exp, build("algorithm", algorithm, **options), build("aggregation", aggregation))
    return str(e.value)


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn", "ifca"])
def test_ranks_must_not_fall_either(algorithm):
    exp = Experiment.model_validate({"federation": {"algorithm": {"name": algorithm}}})
    pruning = build("aggregation", "hetlora", weighting="samples")
    with pytest.raises(UserError, match="lowers the ranks of clients while the run goes on, but"):
        check_pair(exp, build("algorithm", algorithm), pruning)


def test_the_reason_is_given():
    told = refusal("feddyn", "fedit", [1, 2])
    assert told.startswith(
        "federation.algorithm=feddyn needs one LoRA rank for all clients, because h sums up the changes"
    )
    assert told.endswith("use federation.scheduler=fixed with one rank")


def test_a_scheduler_and_an_aggregation_cannot_both_set_the_ranks():
    chosen = {"aggregation": {"name": "hetlora"}, "scheduler": {"name": "lite", "r_bar": 4.0}}
    exp = Experiment.model_validate({"federation": chosen})
    with pytest.raises(UserError, match="lowers the ranks of its clients itself, so that federation"):
        check_pair(exp, build("algorithm", "fedavg"), build("aggregation", "hetlora"))


def test_ranks_are_not_pruned_below_what_hardware_trains():
    for r_min, fits in ((1, False), (2, True)):
        chosen = {"aggregation": {"name": "hetlora", "r_min": r_min}, "total_clients": 2}
        exp = Experiment.model_validate(
            {"federation": chosen, "model": {"lora": {"r_min": 2}}, "tiers": {"all": {"count": 2}}}
        )
        check = partial(check_pair, exp, build("algorithm", "fedavg"), build("aggregation", "hetlora", r_min=r_min))
        if fits:
            check()
        else:
            with pytest.raises(UserError, match=r"below model\.lora\.r_min=2 never take part again; give it r_min: 2"):
                check()


def test_a_shortened_server_step_does_not_go_with_what_belongs_to_the_whole_one():
    assert allowed("scaffold", "fedex_lora")
    assert "server_lr takes another step" in refusal("scaffold", "fedex_lora", server_lr=0.5)


def half(state, got, average):
    x = state.adapter
    return replace(state, adapter=x + 0.5 * (average(got["x"], got["n"]) - x))


def test_a_new_server_stands_nothing_until_it_says_so():
    silent = replace(fedavg(), server=half)
    assert all(silent.refusal(trait) for trait in TRAITS)
    spoken = replace(fedavg(), server=stands("private")(half))
    assert [trait for trait in TRAITS if not spoken.refusal(trait)] == ["private"]


def test_a_new_client_keeps_what_the_server_stands():
    other = replace(fedavg(), client=lambda got, memory, train: ({}, memory), broadcast=lambda state: {})
    assert not any(other.refusal(trait) for trait in TRAITS)


@pytest.mark.parametrize("aggregation", [flora(), flexlora()], ids=["flora", "flexlora"])
def test_silence_is_told_with_the_way_out(aggregation: Aggregation):
    exp = Experiment()
    with pytest.raises(UserError, match=r"the algorithm does not say that it stands this; .* needs @stands\('re|fo"):
        check_pair(exp, replace(fedavg(), server=half), aggregation)


def test_a_reason_stands_above_what_the_server_stands():
    why = "its memory of last round's model is no longer one"
    assert replace(fedavg(), refuses={"folds": why}).refusal("folds") == why


def test_a_trait_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no trait folding; the traits are refactors, folds"):
        stands("folding")


@pytest.mark.parametrize(
    ("algorithm", "changes", "says"),
    [
        ("scaffold_update_space", ["training.lr_ratio=4.0"], "steps in units of one learning rate"),
        ("{name: fednova, mu: 0.1}", ["training.lr_ratio=4.0"], "reckons with one learning rate"),
        ("moon", ["training.gradient_accumulation=2"], "its contrast is a mean over examples"),
        ("fednova", ["training.lr_ratio=4.0"], None),
        ("scaffold", ["training.lr_ratio=4.0", "training.gradient_accumulation=2"], None),
        ("{name: fedprox, mode: decoupled}", ["training.lr_ratio=4.0"], None),
    ],
)
def test_recipes_that_an_algorithm_cannot_stand_are_refused(algorithm, changes, says):
    exp = load("quickstart", [f"federation.algorithm={algorithm}", *changes]).experiment
    if says is None:
        check_parts(exp)
        return
    with pytest.raises(UserError, match=says):
        check_parts(exp)


def test_two_rates_need_two_factors():
    with pytest.raises(UserError, match=r"training\.lr_ratio=4 is about LoRA's factors"):
        load("quickstart", ["training.lr_ratio=4.0", "model.trainable=partial"])
