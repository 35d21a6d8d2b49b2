"""Given clusters, through the real engine: one cluster is FedAvg, two are two federations, one a client is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation

OPTIONS = {"work": {"lr": 0.03}, "num_rounds": 4}


def states(fed, state=None) -> list:
    return [state for state, _ in rounds(fed, state or begin(fed))]


def clustered(clusters, task=None, **changes):
    shrinkage = changes.pop("shrinkage", 0.0)
    options = {"clusters": clusters, "shrinkage": shrinkage}
    return federation(task or LowRank(), ("clustered", options), **{**OPTIONS, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("cohort_size", [6, 3])
def test_one_cluster_is_fedavg_bit_for_bit(cohort_size):
    mine = states(clustered(None, cohort_size=cohort_size))[-1]
    plain = states(federation(LowRank(), cohort_size=cohort_size, **OPTIONS))[-1]
    assert torch.equal(mine.adapter.flat, plain.adapter.flat)
    assert torch.equal(mine.memory["cluster_0"].flat, plain.adapter.flat)


def test_each_cluster_ends_as_a_federation_of_its_clients_alone_would():
    """Optima of the clusters on a quadratic: weighted means 3 of (1, 4) and -7 of (-9, -5, -7), weights 1:2 and 1:1:1."""
    task = Quadratic([[1.0]] * 5, [[1.0], [-9.0], [4.0], [-5.0], [-7.0]], [1, 3, 2, 3, 3])
    work = {"steps": 1, "lr": 1.0, "weighting": "samples"}
    state = states(clustered([0, 1, 0, 1, 1], task, num_rounds=2, work=work))[-1]
    assert state.memory["cluster_0"].flat.item() == pytest.approx(3.0)
    assert state.memory["cluster_1"].flat.item() == pytest.approx(-7.0)
    own = clustered([0, 1, 0, 1, 1], task).algorithm.personal(state).flat.flatten().tolist()
    assert own == pytest.approx([3.0, -7.0, 3.0, -7.0, -7.0])
    assert state.adapter.flat.item() == pytest.approx((3 * 3.0 + 9 * -7.0) / 12)


@pytest.mark.slow
def test_the_names_of_clusters_do_not_matter():
    a, b = (states(clustered(c, cohort_size=4)) for c in ([0, 1, 2, 2, 1, 0], [2, 0, 1, 1, 0, 2]))
    for one, other in ((0, 2), (1, 0), (2, 1)):
        assert torch.equal(a[-1].memory[f"cluster_{one}"].flat, b[-1].memory[f"cluster_{other}"].flat)


def test_a_cluster_without_clients_in_a_round_stays():
    fed = clustered([0, 1, 0, 0, 0, 0], cohort_size=2)
    before, *after = states(fed)
    for t, state in enumerate(after, 1):
        if 1 not in fed.cohort(t):
            assert torch.equal(state.memory["cluster_1"].flat, before.memory["cluster_1"].flat)
        before = state


@pytest.mark.slow
def test_the_list_of_clusters_starts_again_when_it_ends():
    short, long = (states(clustered(c))[-1] for c in ([0, 1, 2], [0, 1, 2, 0, 1, 2]))
    assert all(torch.equal(short.memory[n].flat, long.memory[n].flat) for n in long.memory)


def test_a_cluster_a_client_is_local_training():
    """Nobody's data changes what another client gets."""
    task = Quadratic([[1.0]] * 3, [[1.0], [9.0], [11.0]], [2, 1, 3])
    state = states(clustered([0, 1, 2], task, num_rounds=1, work={"steps": 1, "lr": 1.0}))[-1]
    assert [state.memory[f"cluster_{j}"].flat.item() for j in range(3)] == pytest.approx([1.0, 9.0, 11.0])


@pytest.mark.slow
def test_full_shrinkage_is_fedavg_and_half_of_it_is_half_way():
    plain = states(federation(LowRank(), **OPTIONS))[-1]
    whole = states(clustered([0, 1], shrinkage=1.0))[-1]
    torch.testing.assert_close(whole.adapter.flat, plain.adapter.flat, rtol=1e-5, atol=1e-6)
    task = Quadratic([[1.0]] * 2, [[0.0], [8.0]], [1, 1])
    half = states(clustered([0, 1], task, num_rounds=1, shrinkage=0.5, work={"steps": 1, "lr": 1.0}))[-1]
    assert [half.memory[f"cluster_{j}"].flat.item() for j in range(2)] == pytest.approx([2.0, 6.0])


def test_the_servers_adapter_is_the_mean_over_all_clients_whoever_took_part():
    fed = clustered([0, 1, 2], cohort_size=2)
    state = states(fed)[-1]
    own, p = fed.algorithm.personal(state).flat.double(), torch.tensor(state.weights, dtype=torch.float64)
    torch.testing.assert_close(state.adapter.flat.double(), (p[:, None] * own).sum(0) / p.sum(), rtol=1e-6, atol=1e-7)


def test_a_client_that_sends_nothing_finite_leaves_its_cluster_alone():
    fed = clustered([0, 1, 2, 0, 0, 0])
    start = begin(fed)
    broken = replace(start.memory["cluster_1"], flat=start.adapter.flat * float("nan"))
    after = states(replace(fed, num_rounds=1), replace(start, memory={**start.memory, "cluster_1": broken}))[-1]
    assert after.memory["cluster_0"].flat.isfinite().all()
    assert after.memory["cluster_2"].flat.isfinite().all()


def test_a_round_moves_the_model_of_the_cluster_each_way():
    last = count_bytes(("clustered", {"clusters": [0, 1, 2]}), cohort_size=2)[-1]
    assert {(up, down) for _, up, down in last} == {(65_536, 65_536)}
