"""SCAFFOLD's invariants and reference numbers, through the real engine (Karimireddy et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.scaffold import scaffold
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import IntegrityError
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation
from fedfault.types.adapter import Adapter

OPTIONS = pytest.mark.parametrize("option", ["I", "II"])


def states(fed) -> list:
    return [state for state, _ in rounds(fed, begin(fed))]


def case_1(sizes=(1, 1)) -> Quadratic:
    """TC1: optima 0 and 1, curvatures 1 and 4; the optimum of the mean is 0.8."""
    return Quadratic([[1.0], [4.0]], [[0.0], [1.0]], list(sizes))


def random_case(seed: int = 0) -> Quadratic:
    """Five clients that differ in curvature, optimum, size and, with batches of one, number of steps."""
    g = torch.Generator().manual_seed(seed)
    H = 0.5 + 1.5 * torch.rand(5, 3, generator=g, dtype=torch.float64)
    b = 3 * torch.randn(5, 3, generator=g, dtype=torch.float64)
    return Quadratic(H.tolist(), b.tolist(), [2, 5, 3, 1, 4])


def optimum(task: Quadratic, weights) -> torch.Tensor:
    """Of sum_i p_i f_i: (sum_i p_i H_i)^-1 sum_i p_i H_i b_i."""
    p = torch.tensor(weights, dtype=torch.float64)[:, None]
    return (p * task.Ht * task.bt).sum(0) / (p * task.Ht).sum(0)


def spied(algorithm) -> tuple:
    """The algorithm, and a list that gets what every round's clients received, had, sent and kept."""
    seen = []

    def client(got, memory, train):
        up, home = algorithm.client(got, memory, train)
        seen.append((got, memory, up, home))
        return up, home

    return replace(algorithm, client=client), seen


class Recording(Quadratic):
    """Keeps every raw gradient of each client."""

    def grad(self, params, step):
        out = super().grad(params, step)
        for k, g in zip(step.clients.tolist(), out[1], strict=True):
            self.raw.setdefault(k, []).append(g.clone())
        return out


@pytest.mark.slow
@OPTIONS
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_round_is_fedavg_bit_for_bit(option, optimizer):
    """I-SC1: c = c_i = 0."""
    work = {"lr": 0.05, "optimizer": optimizer, "max_grad_norm": 1.0, "steps": None, "epochs": 2}
    fed = lambda name: federation(LowRank(), name, num_rounds=2, cohort_size=4, work=work)  # noqa: E731
    mine, plain = states(fed(("scaffold", {"option": option}))), states(fed("fedavg"))
    assert torch.equal(mine[1].adapter.flat, plain[1].adapter.flat)
    assert not torch.allclose(mine[2].adapter.flat, plain[2].adapter.flat)


@OPTIONS
@pytest.mark.parametrize("cohort_size", [5, 2])
def test_c_is_the_weighted_mean_of_all_clients_control_variates(option, cohort_size):
    """I-SC2, with full and with partial participation."""
    fed = federation(
        random_case(),
        ("scaffold", {"option": option}),
        cohort_size=cohort_size,
        num_rounds=8,
        work={"steps": None, "epochs": 1, "batch_size": 1, "lr": 0.2, "weighting": "samples"},
    )
    for state in states(fed):
        mean = (torch.tensor([2, 5, 3, 1, 4.0], dtype=torch.float64) / 15) @ state.clients["c"].flat
        torch.testing.assert_close(state.memory["c"].flat, mean, rtol=0, atol=1e-10)
    assert float(state.clients["c"].flat.norm(dim=1).min()) > 0.1 or cohort_size == 2


def noisy(algorithm, **work) -> tuple:
    """Two rounds of stochastic steps of unequal number on all clients, and what was recorded in the second."""
    task = Recording([[1.0, 2.0], [4.0, 0.5], [2.0, 1.0]], [[0.0, -2.0], [1.0, 5.0], [-9.0, 1.0]], [3, 8, 5], noise=0.7)
    task.raw = {}
    algorithm, seen = spied(algorithm)
    fed = federation(
        task, algorithm, num_rounds=2, work={"steps": None, "epochs": 2, "batch_size": 2, "lr": 0.07, **work}
    )
    iterator = rounds(fed, begin(fed))
    next(iterator), next(iterator)
    task.raw = {}
    next(iterator)
    return task.raw, seen[1]


def from_the_path(seen, steps: list[int]) -> torch.Tensor:
    """The paper's option II: c_i - c + (x - y_i) / (K_i lr)."""
    got, memory, up, _ = seen
    length = 0.07 * torch.tensor(steps, dtype=torch.float64)[:, None]
    return memory["c"].flat - got["c"].flat + (got["x"].flat - up["x"].flat) / length


def test_option_ii_is_the_mean_of_the_raw_gradients_along_the_path():
    """I-SC3: and with SGD the paper's formula gives the same."""
    raw, seen = noisy(scaffold())
    mean = torch.stack([torch.stack(raw[k]).mean(0) for k in range(3)])
    torch.testing.assert_close(seen[3]["c"].flat, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(from_the_path(seen, [4, 8, 6]), mean, rtol=0, atol=1e-10)


def test_control_variates_are_made_of_clipped_gradients():
    """I-SC3: those are what the correction is added to."""
    raw, seen = noisy(scaffold(), max_grad_norm=1.5)
    assert {len(g) for g in raw.values()} == {4, 6, 8}
    clip = lambda g: g * min(1.0, 1.5 / (float(g.norm()) + 1e-6))  # noqa: E731
    mean = torch.stack([torch.stack([clip(g) for g in raw[k]]).mean(0) for k in range(3)])
    torch.testing.assert_close(seen[3]["c"].flat, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(from_the_path(seen, [4, 8, 6]), mean, rtol=0, atol=1e-10)


def test_with_adamw_control_variates_are_still_gradients():
    """I-SC3 and B-8: the path divided by K lr is of the order of one per number, whatever the gradients are."""
    raw, seen = noisy(scaffold(), optimizer="adamw")
    mean = torch.stack([torch.stack(raw[k]).mean(0) for k in range(3)])
    torch.testing.assert_close(seen[3]["c"].flat, mean, rtol=0, atol=1e-10)
    assert float((from_the_path(seen, [4, 8, 6]) - mean).abs().max()) > 1


def test_option_i_is_the_clipped_gradient_at_the_servers_point():
    algorithm, seen = spied(scaffold(option="I"))
    task = case_1(sizes=(1, 1))
    fed = federation(task, algorithm, num_rounds=1, work={"max_grad_norm": 5.0})
    states(fed)
    assert seen[0][3]["c"].flat.flatten().tolist() == pytest.approx([3.0, 5.0])  # 1 (3 - 0), and 4 (3 - 1) clipped


@pytest.mark.parametrize(
    ("option", "first", "within"),
    [("I", [1.463495, 0.726423, 0.686367], 15), ("II", [1.463495, 0.894998, 0.755702], 14)],
)
def test_reference_case_takes_the_known_iterates_and_rounds(option, first, within):
    """I-SC4 on TC1: K = 5, lr = 0.1, from 3."""
    fed = federation(case_1(), ("scaffold", {"option": option}), num_rounds=within, work={"steps": 5, "lr": 0.1})
    xs = [s.adapter.flat.item() for s in states(fed)]
    assert xs[1:4] == pytest.approx(first, abs=5e-7)
    assert [abs(x - 0.8) < 1e-6 for x in xs] == [False] * within + [True]


@pytest.mark.slow
@OPTIONS
@pytest.mark.parametrize(("cohort_size", "num_rounds"), [(5, 60), (2, 160)])
def test_unequal_clients_reach_the_optimum_of_their_weighted_mean(option, cohort_size, num_rounds):
    """I-SC4: x -> x°, c_i -> the gradient of f_i there, c -> 0."""
    task = random_case()
    fed = federation(
        task,
        ("scaffold", {"option": option}),
        cohort_size=cohort_size,
        num_rounds=num_rounds,
        evaluate_every=1000,
        work={"steps": None, "epochs": 1, "batch_size": 1, "lr": 0.1, "weighting": "samples"},
    )
    state = states(fed)[-1]
    best = optimum(task, [2, 5, 3, 1, 4])
    torch.testing.assert_close(state.adapter.flat, best, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.clients["c"].flat, task.Ht * (best - task.bt), rtol=0, atol=1e-11)
    assert float(state.memory["c"].flat.abs().max()) < 1e-11


UNEVEN = {"steps": 5, "lr": 0.1, "weighting": "samples"}  # 9 examples and 1


@pytest.mark.slow
@OPTIONS
def test_one_weighting_rule_for_models_and_control_variates_reaches_the_weighted_optimum(option):
    """I-SC5: p = (0.9, 0.1), optimum 4/13."""
    fed = federation(case_1((9, 1)), ("scaffold", {"option": option}), num_rounds=60, work=UNEVEN)
    assert states(fed)[-1].adapter.flat.item() == pytest.approx(4 / 13, abs=1e-10)


def uniform_c(fed) -> object:
    """Public code's mismatch: models are weighed by p_i, control variates by 1/N."""

    def server(state, got, average):
        after = fed.algorithm.server(state, got, average)
        c = Adapter(state.adapter.layout, state.memory["c"].flat + got["dc"].flat.sum(0) / len(state.weights))
        return replace(after, memory={"c": c})

    return replace(fed, algorithm=replace(fed.algorithm, server=server))


@pytest.mark.slow
def test_control_variates_weighed_otherwise_than_models_end_at_another_optimum():
    """I-SC5 and B-7: at the uniform one, 0.8, and the run is stopped before that."""
    fed = uniform_c(federation(case_1((9, 1)), "scaffold", num_rounds=60, work=UNEVEN))
    with pytest.raises(
        IntegrityError, match=r"the server's c is off the weighted mean of all clients' c by a norm of "
    ):
        states(fed)
    unwatched = replace(fed, algorithm=replace(fed.algorithm, wrong=lambda state: None))
    assert states(unwatched)[-1].adapter.flat.item() == pytest.approx(0.8, abs=1e-10)


def test_the_server_could_reconstruct_what_clients_send_about_c():
    """I-SC6: c_i+ - c_i = (x - y_i) / (K_i lr) - c with SGD."""
    _, (got, _, up, _) = noisy(scaffold())
    length = 0.07 * torch.tensor([4, 8, 6], dtype=torch.float64)[:, None]
    told = (got["x"].flat - up["x"].flat) / length - got["c"].flat
    assert float(got["c"].flat.abs().max()) > 0.1
    torch.testing.assert_close(up["dc"].flat, told, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_control_variates_of_absent_clients_stay():
    """I-SC7 (T0)."""
    fed = federation(LowRank(), "scaffold", cohort_size=2, num_rounds=6)
    before, *later = states(fed)
    for t, after in enumerate(later, 1):
        changed = (after.clients["c"].flat != before.clients["c"].flat).any(1)
        assert changed.nonzero().flatten().tolist() == fed.cohort(t)
        before = after


def wrongly(change: str, algorithm):
    """Public code's mistakes with c."""
    if change == "starts anywhere":
        return replace(algorithm, init=lambda x: {"c": Adapter(x.layout, torch.ones_like(x.flat))})
    if change == "is divided by the cohort":

        def server(state, got, average):
            alone = replace(state, weights=tuple(got["n"].tolist()))
            return replace(algorithm.server(alone, got, average), weights=state.weights)

        return replace(algorithm, server=server)

    def client(got, memory, train):
        up, home = algorithm.client(got, memory, train)
        dc: Mapping[str, Adapter] = {"gets c_i whole": home["c"], "gets nothing": home["c"] - home["c"]}
        return {**up, "dc": dc[change]}, home

    return replace(algorithm, client=client)


@pytest.mark.parametrize("change", ["starts anywhere", "is divided by the cohort", "gets c_i whole", "gets nothing"])
def test_a_c_that_is_not_the_mean_stops_the_run(change):
    """B-6."""
    fed = federation(LowRank(), wrongly(change, scaffold()), cohort_size=4, num_rounds=4)
    with pytest.raises(IntegrityError, match=r"norm of the server's: .*, of the largest client's: "):
        states(fed)


@pytest.mark.slow
def test_rounding_does_not_stop_a_run():
    """In float32 over many rounds, and where control variates end at zero."""
    states(federation(LowRank(), "scaffold", cohort_size=2, num_rounds=100, evaluate_every=1000, work={"lr": 0.05}))
    (*_, last) = states(federation(Quadratic([[1.0], [3.0]], [[2.0], [2.0]], [3, 7]), "scaffold", num_rounds=80))
    assert float(last.clients["c"].flat.abs().max()) < 1e-12


def test_c_counts_for_each_slice_the_clients_whose_rank_reaches_it():
    fed = federation(LowRank(), "scaffold", ranks=(1, 2, 1, 2, 2, 1), num_rounds=2, work={"weighting": "samples"})
    state = states(fed)[-1]
    sent, c_i = fed.algorithm.broadcast(state)["c"], state.clients["c"].flat.double()
    n = torch.tensor([10.0, 13, 16, 19, 22, 25], dtype=torch.float64)
    everybody, owners = n / n.sum(), torch.tensor([0, 13.0, 0, 19, 22, 0], dtype=torch.float64) / 54
    pair = lambda flat: fed.task.layout.pair(flat, fed.task.layout.sites[0])  # noqa: E731
    all_of_it, owned = pair(everybody @ c_i), pair(owners @ c_i)
    torch.testing.assert_close(pair(sent.flat).A[0].double(), all_of_it.A[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(pair(sent.flat).A[1].double(), owned.A[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(pair(sent.flat).B[:, 1].double(), owned.B[:, 1], rtol=1e-5, atol=1e-7)
    assert float(owned.B[:, 1].abs().max()) > 1e-3


THREE = [[-1.0], [0.0], [10.0]]  # optima; their mean is 3, their median 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "optimizer", "lr", "start", "ends"),
    [
        (("scaffold", {"option": "I"}), "sgd", 0.1, 1.0, 3.0),  # S0
        ("scaffold", "sgd", 0.1, 1.0, 3.0),
        (("scaffold", {"option": "I"}), "adamw", 2e-3, 2.5, 3.0),  # S1
        ("scaffold", "adamw", 2e-3, 2.5, 3.0),
        ("scaffold_update_space", "adamw", 2e-3, 0.2, 0.0),  # S2
        ("scaffold_update_space", "sgd", 0.1, 1.0, 3.0),
    ],
)
def test_with_adamw_only_corrected_gradients_reach_the_mean_of_the_optima(algorithm, optimizer, lr, start, ends):
    """The table of variants: S0 and S1 end at 3.000, S2 at the median 0.000, up to the length of Adam's steps."""
    task = Quadratic([[1.0]] * 3, THREE, [1, 1, 1], start=start)
    work = {"steps": 10, "lr": lr, "optimizer": optimizer}
    fed = federation(task, algorithm, num_rounds=60, evaluate_every=1000, work=work)
    xs = [s.adapter.flat.item() for s in states(fed)]
    tolerance = 1e-9 if optimizer == "sgd" else lr / 2
    assert xs[-3:] == pytest.approx([ends] * 3, abs=tolerance)


@pytest.mark.slow
def test_updates_as_control_variates_leave_the_optimum():
    """S2 started at the mean of the optima moves away towards the median, at lr a step."""
    task = Quadratic([[1.0]] * 3, THREE, [1, 1, 1], start=3.0)
    fed = federation(task, "scaffold_update_space", num_rounds=40, work={"steps": 10, "lr": 1e-2, "optimizer": "adamw"})
    assert states(fed)[-1].adapter.flat.item() < 2.0


def test_control_variates_cross_the_network_both_ways():
    fed = federation(LowRank(), "scaffold", cohort_size=3, num_rounds=2)
    *_, (_, record) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in record.clients} == {(2 * 4 * 23, 2 * 4 * 23)}


def test_a_server_step_goes_that_share_of_the_way():
    half, whole = (
        states(federation(random_case(), ("scaffold", {"server_lr": lr}), num_rounds=1))[-1].adapter.flat
        for lr in (0.5, 1.0)
    )
    torch.testing.assert_close(half, (3.0 + whole) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["scaffold", "scaffold_update_space"])
def test_a_round_moves_model_and_control_variate_each_way(name):
    assert {(up, down) for _, up, down in count_bytes(name, cohort_size=2)[-1]} == {(2 * 65_536, 2 * 65_536)}
