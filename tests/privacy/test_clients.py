"""Hidden clients: what the server's model may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algebra import mask_factor
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Pulled, Quadratic, run_rounds, run_to_end
from hidden import hide_toy, make_budget

TINY = 1e-9  # noise: none to speak of
PULL = Quadratic([[1.0]] * 2, [[0.0], [4.0]], [4, 4])  # from 3: changes of -0.3 and 0.1 at a rate of 0.1


def step_of(budget, **changes) -> float:
    fed = hide_toy(PULL, budget=budget, work={"steps": 1, "lr": 0.1}, **changes)
    state, _ = run_to_end(fed)
    return float(state.adapter.flat) - 3


def test_a_step_is_the_sum_of_clipped_changes_over_the_expected_number():
    assert step_of(make_budget("client", 1, TINY, 2, 2)) == pytest.approx((-0.3 + 0.1) / 2, abs=1e-6)
    assert step_of(make_budget("client", 1, TINY, 2, 2, clip=0.2)) == pytest.approx((-0.2 + 0.1) / 2, abs=1e-6)


def test_the_denominator_does_not_tell_how_many_were_drawn():
    budget = make_budget("client", 1, TINY, 1, 2)
    drawn = budget.draw_clients(1)
    change = {0: -0.3, 1: 0.1}
    assert step_of(budget, cohort_size=1) == pytest.approx(sum(change[k] for k in drawn), abs=1e-6)


@pytest.mark.slow
def test_noise_has_the_standard_deviation_that_is_accounted_for():
    fed = hide_toy(
        Pulled(), budget=make_budget("client", 1, 2.0, 4, 4, clip=0.5), clients=4, work={"steps": 1, "lr": 1e-12}
    )
    states = [state.adapter.flat for state, _ in run_rounds(fed)]
    steps = torch.stack(states).double().diff(dim=0) * 4  # sums, of clients that do not move
    n = steps.numel()
    assert steps.std() == pytest.approx(2.0 * 0.5, rel=4 / (2 * n) ** 0.5)
    assert abs(steps.mean()) < 4 / n**0.5


@pytest.mark.slow
def test_a_round_that_nobody_was_drawn_for_has_noise_as_any_other():
    fed = hide_toy(LowRank(), budget=make_budget("client", 6, 1.0, 1, 6), cohort_size=1)
    empty = [t for t in range(1, 7) if not fed.cohort(t)]
    assert empty, "the secret of this test draws somebody in every round"
    states = [state.adapter.flat for state, _ in run_rounds(fed)]
    for t in empty:
        assert float((states[t] - states[t - 1]).norm()) > 0.1


def test_who_was_drawn_follows_from_the_secret_and_not_from_the_seed():
    fed = hide_toy(LowRank(), budget=make_budget("client", 8, 1.0, 3, 6), cohort_size=3)
    other = replace(fed, budget=replace(fed.budget, secret=8))
    cohorts, same, others = ([f.cohort(t) for t in range(1, 9)] for f in (fed, replace(fed, seed=1), other))
    assert cohorts == same != others
    assert len({len(c) for c in cohorts}) > 1
    fixed = replace(fed, budget=make_budget("client", 8, 1.0, 3, 6, "fixed"))
    assert {len(fixed.cohort(t)) for t in range(1, 9)} == {3}


@pytest.mark.slow
def test_a_frozen_factor_gets_no_noise():
    fed = hide_toy(LowRank(), "fedavg", "ffa_lora", budget=make_budget("client", 2, canaries=5))
    frozen = mask_factor(fed.task.layout, "A")
    first, *_, last = [state.adapter.flat for state, _ in run_rounds(fed)]
    assert torch.equal(first[frozen], last[frozen])
    assert not torch.equal(first[~frozen], last[~frozen])


@pytest.mark.parametrize("algorithm", ["fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "moon"])
def test_algorithms_that_use_the_average_alone_are_hidden_too(algorithm):
    state, records = run_to_end(hide_toy(LowRank(), algorithm, budget=make_budget("client", 3)))
    assert bool(state.adapter.flat.isfinite().all())
    assert [r.probes["epsilon"] for r in records] == sorted(r.probes["epsilon"] for r in records)


@pytest.mark.parametrize("algorithm", ["scaffold", "ifca", "feddyn", "fednova", "clustered", "scaffold_update_space"])
def test_algorithms_that_send_more_are_refused_with_a_reason(algorithm):
    assert build("algorithm", algorithm).refusal("hides clients")


def test_a_second_average_in_a_round_is_an_error():
    fed = hide_toy(LowRank(), budget=make_budget("client", 1))
    inner = build("algorithm", "fedavg")

    def greedy(state, got, average):
        average(got["x"], got["n"])
        return inner.server(state, got, average)

    from fedfault.privacy.clients import hide_clients

    twice = hide_clients(replace(inner, server=greedy), fed.aggregation, fed.budget)
    with pytest.raises(RuntimeError, match="second average"):
        run_rounds(replace(fed, algorithm=twice))


@pytest.mark.slow
def test_the_clip_follows_the_share_of_changes_that_are_within_it():
    small, large = (
        run_to_end(hide_toy(LowRank(), budget=make_budget("client", 12, TINY, clip=C, adapt_to=0.5)))[0].memory["clip"]
        for C in (1e-3, 1e3)
    )
    assert float(small.flat) > 1e-3 * 2
    assert float(large.flat) < 1e3 / 2


@pytest.mark.slow
def test_a_hidden_run_goes_on_from_a_checkpoint_to_the_same_numbers():
    fed = hide_toy(LowRank(), "fedadam", budget=make_budget("client", 4, canaries=8, adapt_to=0.5))
    whole = run_rounds(fed)
    rest = list(rounds(fed, whole[2][0]))
    assert torch.equal(rest[-1][0].adapter.flat, whole[-1][0].adapter.flat)
    assert rest[-1][1].probes == whole[-1][1].probes


@pytest.mark.slow
def test_an_update_that_is_not_finite_contributes_nothing():
    wild = Quadratic([[1.0], [1e250]], [[0.0], [1.0]], [4, 4])
    fed = hide_toy(wild, budget=make_budget("client", 2, 1.0, 2, 2))
    with_it = [state.adapter.flat for state, _ in run_rounds(fed)]
    still = hide_toy(Quadratic([[1.0], [0.0]], [[0.0], [1.0]], [4, 4]), budget=make_budget("client", 2, 1.0, 2, 2))
    assert torch.equal(torch.stack(with_it), torch.stack([state.adapter.flat for state, _ in run_rounds(still)]))


@pytest.mark.slow
def test_a_round_of_which_no_update_is_finite_has_noise_as_any_other():
    fed = hide_toy(Quadratic([[1e250]], [[0.0]], [4]), budget=make_budget("client", 2, 1.0, 1, 1))
    states = [float(state.adapter.flat) for state, _ in run_rounds(fed)]
    assert len(set(states)) == 3
    assert all(abs(x) < 20 for x in states)


@pytest.mark.slow
def test_records_tell_nothing_exact_of_clients():
    fed = hide_toy(LowRank(), budget=make_budget("client", 2, 1.0, 3, 6, canaries=4), cohort_size=3)
    for _, r in rounds(fed, begin(fed)):
        assert (r.clients, r.events, r.matrices, r.bytes_up, r.bytes_down) == ((), (), {}, 0, 0)
        assert set(r.probes) <= {"epsilon", "epsilon_audited", "epsilon_small", "epsilon_small_audited"}
        assert set(r.seconds) <= {"evaluate"}
        assert set(r.scores) == {"validation"}
