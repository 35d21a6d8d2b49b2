"""From a configuration to the simulated hardware."""

from __future__ import annotations

import math

import pytest

from chatting import write_rows
from fedfault.backbones.sites import find_blocks
from fedfault.config.loading import load
from fedfault.errors import UserError
from fedfault.rounds.dispatch import foresee_times
from fedfault.rounds.engine import begin
from fedfault.setup import equipment
from fedfault.setup.experiment import Prepared, prepare
from fedfault.tasks.mixed import MixedTask

SMALL = [
    "data.max_samples=120",
    "data.partition=iid",
    "model.lora.r_max=4",
    "evaluation.general=none",
    "evaluation.max_blocks=4",
    "federation.total_clients=4",
    "federation.participation_rate=1.0",
    "federation.num_rounds=2",
    "training.local_steps=2",
    "training.batch_size=4",
]
TIERS = "tiers={fast: {count: 2}, slow: {count: 2, compute_factor: 0.5, bandwidth_up_mbps: 1}}"


def experiment(*settings: str):
    return load("quickstart", [*SMALL, *settings]).experiment


def refused(*settings: str) -> str:
    with pytest.raises(UserError) as e:
        equipment.check_equipment(experiment(*settings))
    return str(e.value)


def test_nothing_is_simulated_unless_asked_for():
    assert not equipment.is_simulated(experiment())
    for setting in (TIERS, "deadline.seconds=9", "federation.scheduler=exact", "clock.trace=x.csv"):
        assert equipment.is_simulated(experiment(setting))
    assert not equipment.is_simulated(experiment("deadline.seconds=9", "deadline.enabled=false"))


def test_ranks_vary_with_a_budget_or_a_list():
    assert not equipment.has_unequal_ranks(experiment("federation.scheduler.rank=2"))
    assert not equipment.has_unequal_ranks(experiment("federation.scheduler.ranks=[2, 2]"))
    assert equipment.has_unequal_ranks(experiment("federation.scheduler.ranks=[2, 4]"))
    assert equipment.has_unequal_ranks(experiment("federation.scheduler=lite"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["tiers={a: {count: 3}}"], "tiers: 3 a make 3 clients, but federation.total_clients is 4"),
        (["federation.scheduler=lite"], "r_bar 8: the budget of a round, 32, is above 4 * r_max = 16"),
        (["federation.scheduler.ranks=[2, 5]"], "federation.scheduler.ranks has 5, but model.lora.r_max is 4"),
        (["clock.trace=nowhere.csv"], "nowhere.csv: no trace can be read from it"),
        (
            [
                "federation.scheduler=exact",
                "federation.scheduler.r_bar=2",
                "model.trainable=partial",
                "model.lora.r_max=8",
            ],
            "federation.scheduler=exact assigns LoRA ranks, but model.trainable=partial has none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(settings, told):
    assert told in refused(*settings)


def test_the_static_ranks_of_a_fixed_scheduler_are_the_limits_of_its_clients():
    assert equipment.find_rank_limits(experiment(), None) == ()
    assert equipment.find_rank_limits(experiment("federation.scheduler.rank=2"), None) == (2, 2, 2, 2)
    assert equipment.find_rank_limits(experiment("federation.scheduler.ranks=[1, 4]"), None) == (1, 4, 1, 4)
    assert equipment.find_rank_limits(experiment("federation.scheduler=exact"), None) == ()


@pytest.mark.slow
def test_hardware_knows_the_work_and_the_size_of_the_model():
    p = prepare(experiment(TIERS))
    hw, task = p.federation.hardware, p.federation.task
    assert hw.fleet.tier == ("fast", "fast", "slow", "slow")
    assert hw.steps.tolist() == [2, 2, 2, 2]
    epochs = [2 / -(-task.examples(k) // 4) for k in range(4)]
    assert hw.tokens.tolist() == pytest.approx([e * task.tokens(k) for k, e in enumerate(epochs)])
    linear = [m for m in p.model.model.modules() if hasattr(m, "in_features")]
    weights = sum(m.in_features * m.out_features for m in linear)
    assert weights > 1e6
    slices = sum(sum(site.shape[1:]) for site in task.layout.lora)
    assert hw.token_seconds == pytest.approx((4 * weights / 1e11, 6 * slices / 1e11))
    assert hw.memory_mb.per_rank == pytest.approx(16 * slices / 1e6)  # fp32: value, gradient, two moments
    assert bool((hw.memory_mb.fixed > 4 * p.parameters / 1e6).all())


def room_and_seconds(*words: str) -> tuple[float, tuple[float, float], Prepared]:
    """MB of a client beside the slices of its adapter, and the operations of a token: fixed and for a rank."""
    p = prepare(load("quickstart", [*(w for w in SMALL if "lora" not in w), TIERS, *words]).experiment)
    hw = p.federation.hardware
    return float(hw.memory_mb.fixed[0]), tuple(1e11 * part for part in hw.token_seconds), p


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "head"), [(1, False), (4, False), (2, True)])
def test_what_is_trained_in_full_costs_memory_and_seconds(blocks, head):
    """Three numbers of 4 bytes more for each trained one than for a frozen one, and 6 operations instead of 4."""
    lora_mb, (lora_work, _), _ = room_and_seconds()
    words = [
        "model.trainable=partial",
        f"model.partial.last_blocks={blocks}",
        *["model.partial.modules=[lm_head]"] * head,
    ]
    mb, work, p = room_and_seconds(*words)
    trained = sum(math.prod(site.shape) for site in p.task.layout.sites if len(site.shape) == 2)
    kept = p.model.head.weight.nbytes / 1e6 if head else 0.0  # the base's head is there beside the client's own
    assert work == (lora_work + 2 * trained, 0)
    assert mb == pytest.approx(lora_mb + 12 * p.task.layout.size / 1e6 + kept)


@pytest.mark.slow
def test_blocks_that_are_computed_again_cost_a_forward_pass_more():
    upper = "model.lora.target_modules=[layers.2.self_attn.q_proj, layers.3.self_attn.q_proj]"
    _, (fixed, per_rank), p = room_and_seconds(upper)
    _, again, _ = room_and_seconds(upper, "training.gradient_checkpointing=true")
    blocks = list(find_blocks(p.model.model)[1])[2:]
    weights = sum(
        m.in_features * m.out_features for block in blocks for m in block.modules() if hasattr(m, "in_features")
    )
    assert weights > 1e5
    assert again == pytest.approx((fixed + 2 * weights, per_rank * 8 / 6))


@pytest.mark.slow
def test_a_pair_is_two_rows_in_memory_and_three_passes_in_time(tmp_path):
    """The pass that weighs the rows is a forward pass more."""
    mb, (fixed, per_rank), p = room_and_seconds("model.max_length=64")
    rows = [{"prompt": f"which is {i}?", "chosen": f"it is {i}", "rejected": "who knows"} for i in range(24)]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    words = ["data.dataset=text", f"data.path={file}", "data.task_type=preference", "model.max_length=64"]
    pair_mb, work, _ = room_and_seconds(*words)
    batch = 4 * 64 * p.task.held_bytes() / 1e6
    assert pair_mb == pytest.approx(mb + batch)
    assert work == pytest.approx((fixed * 6 / 4, per_rank * 8 / 6))


@pytest.mark.slow
def test_a_tier_without_the_memory_limits_the_rank_and_one_without_any_is_refused():
    room = prepare(experiment(TIERS)).federation.hardware.memory_mb
    least = float(room.fixed[3])
    one_slice = f"tiers.slow.memory_mb={least + 1.5 * room.per_rank}"
    tiers = ["tiers.fast.count=2", "tiers.slow.count=2"]
    p = prepare(experiment(*tiers, one_slice))
    assert p.federation.ranks == (4, 4, 1, 1)
    for name in ("feddyn", "ditto"):
        with pytest.raises(UserError, match=rf"{name} needs one LoRA rank .* holds ranks up to 1 only: raise"):
            prepare(experiment(*tiers, one_slice, f"federation.algorithm={name}"))
    with pytest.raises(UserError, match=r"clustered needs one LoRA rank .* holds ranks up to 1 only: raise"):
        prepare(experiment(*tiers, one_slice, "federation.on_failure=cluster"))
    with pytest.raises(UserError, match=r"tiers: training with rank 1 takes .* MB, and the best tier, "):
        prepare(experiment(*tiers, "tiers.slow.memory_mb=1", "tiers.fast.memory_mb=1"))


@pytest.mark.slow
def test_a_deadline_is_judged_by_what_is_really_sent():
    """FFA-LoRA sends B alone: on a narrow link it meets a deadline that is too early for A and B."""
    narrow = ["tiers={a: {count: 4, bandwidth_up_mbps: 1e-3, bandwidth_down_mbps: 1e-3}}", "model.lora.r_min=4"]
    both = prepare(experiment(*narrow)).federation
    a, b = foresee_times(both, both.hardware, begin(both))
    early = f"deadline.seconds={0.8 * float((a + 4 * b).min())}"
    with pytest.raises(UserError, match=r"nobody can meet it; the fastest client"):
        prepare(experiment(*narrow, early))
    prepare(experiment(*narrow, early, "federation.aggregation=ffa_lora"))


@pytest.mark.slow
def test_tiers_train_on_copies_of_their_own_precision():
    pytest.importorskip("bitsandbytes")
    tiers = "tiers={fast: {count: 2}, slow: {count: 2, quantization: 4bit}}"
    p = prepare(experiment(tiers))
    task = p.federation.task
    assert isinstance(task, MixedTask)
    assert task.precisions == ("none", "none", "4bit", "4bit")
    small, large = p.federation.hardware.memory_mb.fixed[[3, 0]]
    assert small < large - 4  # MB of micro's layers


@pytest.mark.parametrize("start", ["model.lora.init=pissa", "model.lora.rank_pattern={q_proj: 2}"])
@pytest.mark.parametrize("scheduler", ["{name: fixed, rank: 2}", "{name: lite, r_bar: 2}"])
def test_clients_of_a_lower_rank_are_refused_where_every_slice_is_needed(start, scheduler):
    exp = experiment(start, f"federation.scheduler={scheduler}")
    with pytest.raises(
        UserError, match=r"gives clients other ranks than all of it: with model\.lora\.(init|rank_pattern)"
    ):
        equipment.check_equipment(exp)


def test_tiers_that_round_the_base_anew_or_count_slices_are_refused_with_such_starts():
    with pytest.raises(UserError, match=r"tiers: small trains on a quantised base, but model\.lora\.init=olora"):
        equipment.check_equipment(experiment("model.lora.init=olora", "tiers={small: {count: 4, quantization: 4bit}}"))
    with pytest.raises(UserError, match=r"rank_pattern gives modules ranks of their own, but tiers"):
        equipment.check_equipment(experiment("model.lora.rank_pattern={q_proj: 2}", TIERS))


@pytest.mark.slow
def test_memory_that_holds_a_part_of_the_slices_is_refused_with_a_start_from_the_base():
    """A client's memory for one slice and a half."""
    room = prepare(experiment(TIERS)).federation.hardware.memory_mb
    one_slice = f"tiers.slow.memory_mb={float(room.fixed[-1]) + 1.5 * room.per_rank}"
    with pytest.raises(UserError, match=r"holds ranks up to 1 only: with model\.lora\.init=pissa"):
        prepare(experiment("model.lora.init=pissa", TIERS, one_slice))
