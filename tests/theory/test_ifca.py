"""IFCA's invariants, through the real engine (Ghosh et al. 2020)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import comb

import pytest
import torch

from fedfault.algorithms.ifca import ifca, start_cluster
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, count_bytes, federation


class Swapped(LowRank):
    """Six clients on the same inputs' law: the even ones learn a map of rank 2, the odd ones its opposite."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(4)
        target = torch.randn(5, 2, generator=g) @ torch.randn(2, 4, generator=g)
        self.Y = [
            X @ (self.W0 + (-1) ** k * target).T + 0.05 * torch.randn(len(X), 5, generator=g)
            for k, X in enumerate(self.X)
        ]


def states(fed, state=None) -> list:
    return [state for state, _ in rounds(fed, state or begin(fed))]


def spied(fed) -> tuple:
    """The federation, and a list that gets the choices of every round."""
    choices: list[list[int]] = []

    def client(got, memory, train):
        up, home = fed.algorithm.client(got, memory, train)
        choices.append(up["choice"].tolist())
        return up, home

    return replace(fed, algorithm=replace(fed.algorithm, client=client)), choices


def adjusted_rand(a: list[int], b: list[int]) -> float:
    """1 for the same partition, 0 on average for random ones (Hubert & Arabie 1985)."""
    pairs = lambda counts: sum(comb(n, 2) for n in Counter(counts).values())  # noqa: E731
    both, one, other, all_ = pairs(zip(a, b, strict=True)), pairs(a), pairs(b), comb(len(a), 2)
    expected = one * other / all_
    return (both - expected) / ((one + other) / 2 - expected)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("cohort_size", [6, 3])
def test_one_cluster_is_fedavg_bit_for_bit(cohort_size, optimizer):
    """I-C1."""
    run = lambda a: states(  # noqa: E731
        federation(LowRank(), a, cohort_size=cohort_size, num_rounds=4, work={"lr": 0.03, "optimizer": optimizer})
    )[-1]
    mine, plain = run(("ifca", {"num_clusters": 1})), run("fedavg")
    assert torch.equal(mine.adapter.flat, plain.adapter.flat)
    assert torch.equal(mine.memory["cluster_0"].flat, plain.adapter.flat)


@pytest.mark.slow
def test_the_names_of_clusters_do_not_matter():
    """I-C2: clusters permuted at the start are permuted at the end, and clients have the same models."""
    fed = federation(Swapped(), ("ifca", {"num_clusters": 3}), cohort_size=4, num_rounds=4)
    start = begin(fed)
    names, order = ["cluster_0", "cluster_1", "cluster_2"], ["cluster_2", "cluster_0", "cluster_1"]
    renamed = replace(start, memory={a: start.memory[b] for a, b in zip(names, order, strict=True)})
    mine, theirs = states(fed, start)[-1], states(fed, renamed)[-1]
    for a, b in zip(names, order, strict=True):
        assert torch.equal(theirs.memory[a].flat, mine.memory[b].flat)
    models = [fed.algorithm.personal(s).flat[[k for k in range(6) if s.stored[k]]] for s in (mine, theirs)]
    assert torch.equal(*models)
    torch.testing.assert_close(mine.adapter.flat, theirs.adapter.flat, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_every_client_of_a_round_is_in_one_cluster_and_its_weight_counts_there_only():
    """I-C3."""
    fed, choices = spied(federation(Swapped(), ("ifca", {"num_clusters": 3}), cohort_size=4, num_rounds=5))
    pooled: list[torch.Tensor] = []
    server = fed.algorithm.server

    def counting(state, got, average):
        pooled.append(torch.zeros(4, dtype=torch.float64))

        def counted(x, weight):
            pooled[-1] += weight
            return average(x, weight)

        return server(state, got, counted)

    states(replace(fed, algorithm=replace(fed.algorithm, server=counting)))
    for t, (choice, weight) in enumerate(zip(choices, pooled, strict=True), 1):
        assert len(choice) == 4
        assert set(choice) <= {0, 1, 2}
        assert weight.tolist() == [5.0 * (10 + 3 * k) for k in fed.cohort(t)]


def test_a_cluster_that_nobody_chooses_stays():
    """I-C3: bit for bit."""
    fed, choices = spied(federation(LowRank(), "ifca", num_rounds=3))
    start = begin(fed)
    far = replace(start.adapter, flat=start.adapter.flat + 30.0)
    after = states(fed, replace(start, memory={**start.memory, "cluster_1": far}))[-1]
    assert choices == [[0] * 6] * 3
    assert torch.equal(after.memory["cluster_1"].flat, far.flat)
    assert torch.equal(after.adapter.flat, after.memory["cluster_0"].flat)


def test_of_equal_models_the_first_is_chosen():
    fed, choices = spied(federation(LowRank(), ("ifca", {"num_clusters": 3}), num_rounds=1))
    start = begin(fed)
    states(fed, replace(start, memory=dict.fromkeys(start.memory, start.adapter)))
    assert choices == [[0] * 6]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_groups_that_learn_opposites_are_found(seed):
    """I-C4: adjusted Rand index 1, and each client's own model serves it far better than one model for all."""
    fed, choices = spied(federation(Swapped(), "ifca", num_rounds=15, seed=seed, work={"lr": 0.05}))
    *_, (state, record) = rounds(fed, begin(fed))
    assert adjusted_rand(choices[-1], [0, 1] * 3) == 1
    assert state.clients["choice"].flat[:, 0].tolist() == choices[-1]
    together = list(rounds(plain := federation(Swapped(), num_rounds=15, seed=seed), begin(plain)))[-1][1]
    assert record.scores["personal"].loss < 0.1 * together.scores["validation"].loss


@pytest.mark.slow
def test_models_trained_in_full_find_their_groups_too():
    """I-C4 without a LoRA pair: optima -5 and 8, start near 3."""
    task = Quadratic([[1.0, 2.0]] * 4, [[-5.0, -5.0], [8.0, 8.0], [-5.0, -5.0], [8.0, 8.0]], [1, 2, 3, 4])
    fed, choices = spied(federation(task, "ifca", num_rounds=15, work={"steps": 9}))
    state = states(fed)[-1]
    assert adjusted_rand(choices[-1], [0, 1, 0, 1]) == 1
    own = fed.algorithm.personal(state).flat
    torch.testing.assert_close(own, task.bt, rtol=0, atol=1e-4)


def test_one_round_by_hand():
    """Models 0 and 10 on optima 1, 9, 11 with one exact step: they move to 1 and to the weighted mean (9 + 3 * 11) / 4."""
    task = Quadratic([[1.0]] * 3, [[1.0], [9.0], [11.0]], [2, 1, 3])
    fed = federation(task, "ifca", num_rounds=1, work={"steps": 1, "lr": 1.0, "weighting": "samples"})
    start = begin(fed)
    at = lambda value: replace(start.adapter, flat=torch.tensor([value], dtype=torch.float64))  # noqa: E731
    state = states(fed, replace(start, memory={"cluster_0": at(0.0), "cluster_1": at(10.0)}))[-1]
    assert state.memory["cluster_0"].flat.item() == pytest.approx(1.0)
    assert state.memory["cluster_1"].flat.item() == pytest.approx(10.5)
    assert state.adapter.flat.item() == pytest.approx((2 * 1.0 + 4 * 10.5) / 6)
    assert fed.algorithm.personal(state).flat.flatten().tolist() == pytest.approx([1.0, 10.5, 10.5])


def test_a_client_that_never_took_part_has_the_servers_model():
    fed = federation(Swapped(), "ifca", cohort_size=2, num_rounds=1)
    state = states(fed)[-1]
    own = fed.algorithm.personal(state).flat
    clusters = [a.flat for a in state.memory.values()]
    for k in range(6):
        if k in fed.cohort(1):
            assert any(torch.equal(own[k], c) for c in clusters)
        else:
            assert torch.equal(own[k], state.adapter.flat)


def test_clusters_start_with_the_same_a_and_another_small_b():
    task = LowRank()
    x, site = task.init(0), task.layout.sites[0]
    start = ifca(num_clusters=3).init(x)
    assert torch.equal(start["cluster_0"].flat, x.flat)
    for j in (1, 2):
        pair = task.layout.pair(start[f"cluster_{j}"].flat, site)
        assert torch.equal(pair.A, task.layout.pair(x.flat, site).A)
        assert 0 < float(pair.B.abs().max()) < 0.05
        assert torch.equal(start[f"cluster_{j}"].flat, start_cluster(x, j).flat)
    assert not torch.equal(start["cluster_1"].flat, start["cluster_2"].flat)
    other = task.layout.pair(start_cluster(task.init(1), 1).flat, site).B
    assert not torch.equal(other, task.layout.pair(start["cluster_1"].flat, site).B)


def test_all_models_go_down_and_one_comes_up_with_the_choice():
    fed = federation(LowRank(), ("ifca", {"num_clusters": 3}), cohort_size=2, num_rounds=2)
    *_, (_, record) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in record.clients} == {(4 * 23 + 8, 3 * 4 * 23)}


def test_a_round_moves_all_models_down_and_one_with_its_number_up():
    last = count_bytes(("ifca", {"num_clusters": 3}), cohort_size=2)[-1]
    assert {(up, down) for _, up, down in last} == {(65_536 + 8, 3 * 65_536)}
