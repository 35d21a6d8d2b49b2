"""HetLoRA's penalty and its pruning rule by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.aggregations.hetlora import hetlora, tail_product
from fedfault.algebra import mask
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Layout, Site

LAYOUT = Layout.of([Site("a", "lora", (4, 3, 5)), Site("n", "full", (2,)), Site("b", "lora", (4, 2, 6))], scaling=2.0)
RANKS = torch.tensor([4, 3, 1])
Y = torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.99, 0.5, 0.3])
def test_the_tail_starts_at_gamma_times_the_rank(gamma):
    """Rank 4: slice 3 at 0.99, slices 2 and 3 at 0.5, slices 1 to 3 at 0.3; rank 1: its only slice."""
    first = {0.99: (3, 2, 0), 0.5: (2, 1, 0), 0.3: (1, 0, 0)}[gamma]
    expected = []
    for y, start, r in zip(Y, first, RANKS.tolist(), strict=True):
        pairs = [LAYOUT.pair(y, site) for site in LAYOUT.lora]
        expected.append(sum(float(A[start:r].norm() * B[:, start:r].norm()) for A, B in pairs))
    assert tail_product(LAYOUT, Y, RANKS, gamma).tolist() == pytest.approx(expected)


def test_the_penalty_is_the_gradient_of_the_tail_s_product():
    y = Y.clone().requires_grad_()
    (expected,) = torch.autograd.grad(0.7 * tail_product(LAYOUT, y, RANKS, 0.5).sum(), y)
    torch.testing.assert_close(hetlora(gamma=0.5, lam=0.7).penalty(LAYOUT, Y, RANKS), expected)


def test_the_penalty_at_b_equal_zero_pulls_on_nothing_and_is_finite():
    y = Y.clone()
    for site in LAYOUT.lora:
        LAYOUT.pair(y, site).B.zero_()
    assert not hetlora().penalty(LAYOUT, y, RANKS).any()
    assert not hetlora().penalty(LAYOUT, torch.zeros_like(y), RANKS).any()


def test_a_client_prunes_only_if_its_tail_got_smaller():
    """gamma 0.5: 4 -> 2 where the tail shrank; what shrank outside of the tail does not count; floor at r_min."""
    trained = Y.clone()
    A = LAYOUT.pair(trained, LAYOUT.lora[0]).A
    A[0, 3] *= 0.9
    A[1, 0] *= 0.1
    A[2, 0] *= 0.9
    rule = hetlora(gamma=0.5).new_ranks
    assert rule(LAYOUT, Y, trained, RANKS).tolist() == [2, 3, 1]
    assert hetlora(gamma=0.5, r_min=3).new_ranks(LAYOUT, Y, trained, RANKS).tolist() == [3, 3, 1]
    assert rule(LAYOUT, Y, Y, RANKS).tolist() == [4, 3, 1]


def test_switching_the_parts_off():
    assert hetlora(gamma=1.0).new_ranks is None
    assert hetlora(lam=0.0).penalty is None
    assert hetlora().traits == {"reweighs", "prunes"}
    assert not hetlora(weighting="samples", gamma=1.0).traits


def test_records_show_the_weights_that_the_server_took():
    seen = []
    plain = build("aggregation", "hetlora")
    spied = replace(plain, combine=lambda got: seen.append(plain.combine(got)) or seen[-1])
    fed = federation(LowRank(clients=3), "fedavg", spied, num_rounds=1, work={"steps": 2})
    *_, (_, record) = rounds(fed, begin(fed))
    S = seen[0].weight
    assert [c.weight for c in record.clients] == pytest.approx((S / S.sum()).tolist())
    sizes = torch.tensor([10.0, 13.0, 16.0])
    assert [c.weight for c in record.clients] != pytest.approx((sizes / sizes.sum()).tolist(), rel=1e-3)


def test_what_a_client_pruned_does_not_reach_the_average():
    seen = []
    plain = build("aggregation", "hetlora", gamma=0.5, lam=5.0)
    spied = replace(plain, combine=lambda got: seen.append(got) or plain.combine(got))
    fed = federation(LowRank(clients=3, r=3), "fedavg", spied, num_rounds=4, work={"steps": 2, "lr": 0.03})
    states = [state for state, _ in rounds(fed, begin(fed))]
    assert states[-1].ranks < states[0].ranks
    for got, after in zip(seen, states[1:], strict=True):
        assert tuple(got.ranks.tolist()) == after.ranks
        assert not got.sent.flat[~mask(got.sent.layout, got.ranks)].any()
