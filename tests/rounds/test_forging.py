"""Hostile clients in rounds of the engine: who arrives with what, and who does not notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algebra import mask_factor
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import OWN
from fedfault.testing.toys import LowRank, federation, run_rounds
from fedfault.types.attack import Attack, Hostile


def attack(name, clients, from_round=1, **options):
    return Hostile(name, build("attack", name, **options), frozenset(clients), from_round)


def run(*attacks, algorithm="fedavg", aggregation="fedit", **changes):
    fed = federation(LowRank(clients=4), algorithm, aggregation, num_rounds=3, work={"steps": 2}, **changes)
    return run_rounds(replace(fed, attacks=attacks))


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fednova", "feddyn"])
def test_an_attack_that_changes_nothing_gives_the_run_without_it_to_the_bit(algorithm):
    same = Hostile("same", Attack(forge=lambda got: got.own), frozenset({1}))
    plain, mine = run(algorithm=algorithm), run(same, algorithm=algorithm)
    for (a, ra), (b, rb) in zip(plain[1:], mine[1:], strict=True):
        assert torch.allclose(a.adapter.flat, b.adapter.flat, atol=1e-6)  # x + (y - x) rounds
        assert rb.events == (("hostile clients: same by 1",) if rb.round == 1 else ())  # it is said once
        assert not ra.events


def test_free_riders_take_their_share_of_the_step_away():
    """Client 3 of 4 sends the model back: the step is that of the others, times their share of the weight."""
    start = run()[0][0].adapter.flat
    fed = federation(LowRank(clients=4), num_rounds=1, work={"steps": 2, "weighting": "uniform"})
    (_, _), (three, _) = run_rounds(replace(fed, attacks=(attack("free_rider", {3}),)))
    honest = [
        run_rounds(replace(fed, cohort_size=4, attacks=(attack("free_rider", {0, 1, 2, 3} - {k}),)))[-1][0]
        for k in range(3)
    ]
    alone = sum(a.adapter.flat - start for a in honest)  # each a quarter of one client's change
    torch.testing.assert_close(three.adapter.flat - start, alone, atol=1e-6, rtol=1e-4)


def test_an_attack_begins_in_its_round_and_is_of_the_clients_that_are_drawn():
    late = run(attack("scale", {0, 2}, from_round=3, factor=5.0), cohort_size=2)
    assert [r.events for _, r in late[:3]] == [(), (), ()]
    assert late[3][1].events == ("hostile clients: scale by 0, 2",)  # whoever of them was drawn
    for (a, _), (b, _) in zip(run(cohort_size=2)[:3], late[:3], strict=True):
        assert torch.equal(a.adapter.flat, b.adapter.flat)


def test_attacks_of_the_same_clients_follow_one_another():
    both = run(attack("scale", {1}, factor=4.0), attack("sign_flip", {1}, factor=0.5))
    once = run(attack("scale", {1}, factor=-2.0))
    assert torch.allclose(both[-1][0].adapter.flat, once[-1][0].adapter.flat, atol=1e-6)
    assert both[1][1].events == ("hostile clients: scale by 1; sign_flip by 1",)


def test_records_show_what_arrives():
    plain, scaled = run(), run(attack("scale", {1}, factor=3.0))
    one, other = (r[1][1].clients for r in (plain, scaled))
    assert other[0].update_norm == one[0].update_norm
    assert other[1].update_norm > 2 * one[1].update_norm


def test_what_an_adaptive_attacker_sees_is_what_honest_clients_send():
    seen = []
    spy = Attack(forge=lambda got: seen.append((got.honest.clone(), got.own.clone())) or got.own)
    (x, _), (_, record), *_ = run(Hostile("spy", spy, frozenset({2})))
    honest, own = seen[0]
    assert honest.shape == (3, x.adapter.layout.size)
    assert own.shape == (1, x.adapter.layout.size)
    assert [c.client for c in record.clients] == [0, 1, 2, 3]


@pytest.mark.parametrize(("aggregation", "frozen"), [("ffa_lora", "AAA"), ("rolora", "ABA")])
def test_noise_stays_out_of_what_is_frozen(aggregation, frozen):
    """By round: the factor that is frozen."""
    states = [s.adapter for s, _ in run(attack("gaussian_noise", {0}, factor=2.0), aggregation=aggregation)]
    for before, after, factor in zip(states, states[1:], frozen, strict=False):
        stays = mask_factor(after.layout, factor)
        assert torch.equal(after.flat[stays], before.flat[stays])
        assert not torch.equal(after.flat[~stays], before.flat[~stays])


def test_noise_stays_out_of_what_a_hostile_client_keeps_to_itself():
    plain, noisy = (run(*a, aggregation="fedsa_lora") for a in ((), (attack("gaussian_noise", {0}, factor=2.0),)))
    B = mask_factor(plain[0][0].adapter.layout, "B")
    mine, theirs = (pairs[1][0].clients[OWN].flat[0] for pairs in (noisy, plain))
    assert torch.equal(mine[B], theirs[B])


def test_a_robust_rule_names_a_round_with_too_few_updates():
    fed = federation(LowRank(clients=4), "fedavg", "krum", num_rounds=1, work={"steps": 2})
    *_, (_, record) = run_rounds(fed)
    assert record.events == ("4 updates are fewer than the 5 that the aggregation needs",)


@pytest.mark.parametrize(
    "rule", ["coordinate_median", "geometric_median", "centred_clipping", "norm_clipping", "trimmed_mean"]
)
def test_a_scaled_update_carries_the_mean_away_and_a_robust_rule_not(rule):
    losses = {}
    for name in ("fedit", rule):
        fed = federation(LowRank(clients=6), "fedavg", name, num_rounds=6, work={"steps": 2, "lr": 0.1})
        *_, (_, last) = rounds(replace(fed, attacks=(attack("scale", {5}, factor=-50.0),)), begin(fed))
        losses[name] = last.scores["validation"].loss
    assert losses[rule] < 0.1 * losses["fedit"]


@pytest.mark.parametrize("algorithm", ["feddyn", "scaffold"])
def test_the_invariant_between_clients_memory_and_the_server_s_is_not_asked_of_forged_updates(algorithm):
    pairs = run(attack("sign_flip", {1}, factor=2.0), algorithm=algorithm)
    assert all(bool(state.adapter.flat.isfinite().all()) for state, _ in pairs)
