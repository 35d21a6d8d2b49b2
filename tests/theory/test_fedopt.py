"""The server optimisers of FedOpt through the real engine: equations, limits, what they must leave alone."""

from __future__ import annotations

import pytest
import torch

from fedfault.algebra import mask_factor, mean
from fedfault.rounds.engine import begin, rounds, run_round
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation
from fedfault.types.algorithm import Aggregation, Pooled

H = [[1.0, 0.5, 2.0], [4.0, 3.0, 0.7], [0.3, 2.5, 1.0], [2.0, 1.0, 3.5], [1.5, 0.2, 0.9]]
B = [[0.0, -1.0, 2.0], [1.0, 3.0, -2.0], [-4.0, 0.5, 1.0], [2.0, -2.0, 0.0], [5.0, 1.0, -3.0]]
SIZES = [3, 1, 4, 2, 5]
ADAPTIVE = ["fedadagrad", "fedadam", "fedyogi"]
FAMILY = ["fedavgm", *ADAPTIVE]


def run(fed):
    *_, (state, record) = rounds(fed, begin(fed))
    return state, record


def quadratics(algorithm, **changes):
    """Five clients, two of them in a round, unequal steps, sizes and noise."""
    work = {"steps": None, "epochs": 1, "batch_size": 2, "lr": 0.05, "weighting": "samples"}
    return federation(Quadratic(H, B, SIZES, noise=0.3), algorithm, cohort_size=2, num_rounds=8, work=work, **changes)


def history(algorithm):
    """[(state before, Delta, state after)] of every round, Delta being what FedAvg does to the same state."""
    fed, plain = quadratics(algorithm), quadratics("fedavg")
    state, found = begin(fed), []
    while state.round < fed.num_rounds:
        after, _ = run_round(fed, state)
        found.append((state, run_round(plain, state)[0].adapter.flat - state.adapter.flat, after))
        state = after
    return found


def flat(state, name: str) -> torch.Tensor:
    return state.memory[name].flat


@pytest.mark.slow
def test_fedavgm_adds_up_what_rounds_changed():
    """x_t = x_0 + server_lr sum over s < t of m_s with m_s = sum over u <= s of beta^(s - u) Delta_u."""
    rounds_ = history(("fedavgm", {"beta": 0.7, "server_lr": 0.5}))
    deltas = [delta for _, delta, _ in rounds_]
    m = [sum(0.7 ** (s - u) * deltas[u] for u in range(s + 1)) for s in range(8)]
    torch.testing.assert_close(rounds_[-1][2].adapter.flat, 3 + 0.5 * sum(m), rtol=0, atol=1e-10)


SECOND = {
    "fedadagrad": lambda v, delta: v + delta**2,
    "fedadam": lambda v, delta: 0.8 * v + 0.2 * delta**2,
    "fedyogi": lambda v, delta: torch.where(v > delta**2, v - 0.2 * delta**2, v + 0.2 * delta**2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_are_those_of_the_paper(name):
    """Two of five clients a round; v starts at tau^2 and takes the square of Delta, not of m."""
    options = {"server_lr": 0.3, "beta1": 0.6, "tau": 0.05}
    if name != "fedadagrad":
        options["beta2"] = 0.8
    x, m, v = (torch.full((3,), c, dtype=torch.float64) for c in (3.0, 0.0, 0.05**2))
    for before, delta, after in history((name, options)):
        torch.testing.assert_close(before.adapter.flat, x, rtol=0, atol=1e-10)
        m = 0.6 * m + 0.4 * delta
        v = SECOND[name](v, delta)
        x = x + 0.3 * m / (v**0.5 + 0.05)
        torch.testing.assert_close(flat(after, "v"), v, rtol=0, atol=1e-10)
        torch.testing.assert_close(flat(after, "m"), m, rtol=0, atol=1e-10)
    torch.testing.assert_close(after.adapter.flat, x, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fedavgm_without_momentum_is_fedavg(optimizer):
    """I-O1."""
    work = {"steps": None, "epochs": 1, "lr": 0.05, "optimizer": optimizer}
    momentum, plain = (
        run(federation(LowRank(), algorithm, cohort_size=3, work=dict(work)))[0].adapter.flat
        for algorithm in (("fedavgm", {"beta": 0.0, "server_lr": 1.0}), "fedavg")
    )
    torch.testing.assert_close(momentum, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_constant_v_without_momentum_is_fedavg(name):
    """I-O2: v stays tau^2 with beta2 = 1, and sqrt(v) + tau = 1 for tau = 1/2."""
    options = {"server_lr": 1.0, "beta1": 0.0, "beta2": 1.0, "tau": 0.5}
    adaptive, plain = (run(quadratics(a))[0].adapter.flat for a in ((name, options), "fedavg"))
    torch.testing.assert_close(adaptive, plain, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_fedadagrads_v_never_falls():
    """I-O3, every coordinate."""
    steps = [flat(after, "v") - flat(before, "v") for before, _, after in history("fedadagrad")]
    assert all((step > 0).all() for step in steps)


@pytest.mark.slow
def test_fedyogis_v_moves_by_the_same_amount_up_and_down():
    """I-O4: |v_t - v_(t-1)| = (1 - beta2) Delta^2; both directions occur."""
    signs = set()
    for before, delta, after in history(("fedyogi", {"beta2": 0.5})):
        step = flat(after, "v") - flat(before, "v")
        torch.testing.assert_close(step.abs(), 0.5 * delta**2, rtol=0, atol=1e-10)
        signs |= set(step.sign().tolist())
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("name", FAMILY)
def test_nothing_to_learn_and_no_momentum_change_nothing(name):
    """I-O5 and I-G3: all clients have their optimum where they start; no coordinate is divided by zero."""
    task = Quadratic(H, [[3.0, 3.0, 3.0]] * 5, [4] * 5)
    state, _ = run(federation(task, name, cohort_size=2, work={"steps": 3}))
    assert torch.equal(state.adapter.flat, torch.full((3,), 3.0, dtype=torch.float64))


def test_momentum_goes_on_when_there_is_nothing_to_learn():
    """m = beta m + 0: the server still moves, which is why an idle round is exempt then."""
    x = Quadratic([[1.0]], [[0.0]], [4])
    fed = federation(x, ("fedavgm", {"server_lr": 1.0}), num_rounds=2, work={"steps": 1, "lr": 1.0})
    state, _ = run(fed)
    assert state.adapter.flat.item() == pytest.approx(3 - 3 - 0.9 * 3, abs=1e-12)  # the optimum is reached in round 1


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_first_bias_corrected_step_is_the_sign_of_the_change(name):
    """I-O6: for tau -> 0 the scale of Delta cancels, whatever the betas."""
    options = {"server_lr": 0.25, "beta1": 0.9, "beta2": 0.99, "tau": 1e-30, "bias_correction": True}
    task = Quadratic([[1.0, 2.0, 0.1]] * 2, [[50.0, 1.0, -1.0], [5.0, 2.0, 1.0]], [3, 1])
    state, _ = run(federation(task, (name, options), num_rounds=1))
    expected = 3 + 0.25 * torch.tensor([1, -1, -1], dtype=torch.float64)
    torch.testing.assert_close(state.adapter.flat, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_factor_that_is_frozen_in_a_round_keeps_its_mean_square(name):
    """It decayed as if a change of zero had been measured, so that steps with RoLoRA were 1.4 times too long."""
    fed = federation(LowRank(), (name, {"beta1": 0.0, "server_lr": 1e-3}), "rolora", num_rounds=4)
    states = [state for state, _ in rounds(fed, begin(fed))]
    in_A, in_B = (mask_factor(states[0].adapter.layout, factor) for factor in "AB")
    for t in range(1, 5):
        frozen, trained = (in_A, in_B) if t % 2 else (in_B, in_A)
        before, after = (state.memory["v"].flat for state in states[t - 1 : t + 1])
        assert torch.equal(after[frozen], before[frozen])
        assert not torch.equal(after[trained], before[trained])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_the_fixed_point_is_fedavgs(name):
    """0.6925023465 on TC1 with K = 5: where rounds change nothing on average, no server optimiser moves."""
    x = (1 - 0.6**5) / (1 - 0.9**5 + 1 - 0.6**5)
    task = Quadratic([[1.0], [4.0]], [[0.0], [1.0]], [1, 1], start=x)
    state, _ = run(federation(task, name, num_rounds=20, work={"steps": 5}))
    assert state.adapter.flat.item() == pytest.approx(x, abs=1e-10)
    assert x == pytest.approx(0.6925023465, abs=1e-10)


@pytest.mark.parametrize("name", FAMILY)
def test_clients_with_the_same_data_are_one_client(name):
    """I-G7: the same changes, and their mean is any one of them."""
    many, record = run(federation(Quadratic(H[:1] * 3, B[:1] * 3, [4, 4, 4]), name))
    alone, _ = run(federation(Quadratic(H[:1], B[:1], [4]), name))
    torch.testing.assert_close(many.adapter.flat, alone.adapter.flat, rtol=1e-5, atol=0)
    assert len({c.update_norm for c in record.clients}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_a_factor_that_is_never_trained_never_moves(name):
    """A frozen, as in FFA-LoRA."""
    task = LowRank()
    A = mask_factor(task.layout, "A")
    only_b = Aggregation(lambda got: Pooled(mean(got.sent, got.weight)), trained=lambda layout, round: ~A)
    state, _ = run(federation(task, name, only_b, cohort_size=3))
    assert torch.equal(state.adapter.flat[A], task.init(0).flat[A])
    assert not torch.equal(state.adapter.flat[~A], task.init(0).flat[~A])
    assert not flat(state, "m")[A].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_only_what_is_shared_is_optimised_on_the_server(name):
    """B private, as in FedSA-LoRA: no momentum of it, although the clients train it."""
    task = LowRank()
    B = mask_factor(task.layout, "B")
    share_a = Aggregation(lambda got: Pooled(mean(got.sent, got.weight)), private=lambda layout: B)
    state, _ = run(federation(task, name, share_a, cohort_size=3))
    assert not flat(state, "m")[B].any()
    assert flat(state, "m")[~B].all()
    assert state.clients["own"].flat[:, B].any()


@pytest.mark.parametrize("name", FAMILY)
def test_it_sends_what_fedavg_sends(name):
    plain, own = (run(federation(LowRank(), a, cohort_size=3, num_rounds=2))[1] for a in ("fedavg", name))
    assert (own.bytes_up, own.bytes_down) == (plain.bytes_up, plain.bytes_down)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_round_moves_what_fedavg_moves(name):
    assert {(up, down) for _, up, down in count_bytes(name, cohort_size=2)[-1]} == {(65_536, 65_536)}
