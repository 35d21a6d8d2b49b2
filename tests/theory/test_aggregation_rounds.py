"""What aggregations promise over rounds, through the engine on a LoRA regression in float64 (d_in 4, d_out 5)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedfault.algebra import mask, mask_factor
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Adapter

UNEQUAL = (1, 2, 3, 2)


class Wide(LowRank):
    """LowRank in float64."""

    def __init__(self, clients: int = 4, r: int = 3) -> None:
        super().__init__(clients, r)
        self.W0, self.W = self.W0.double(), self.W.double()
        self.X, self.Y = [x.double() for x in self.X], [y.double() for y in self.Y]

    def init(self, seed: int) -> Adapter:
        return Adapter(self.layout, super().init(seed).flat.double())


def fed_of(aggregation, *, clients: int = 4, task=None, steps: int = 3, **changes):
    work = {"steps": steps, "weighting": "samples", **changes.pop("work", {})}
    return federation(task or Wide(clients), "fedavg", aggregation, work=work, **{"num_rounds": 3, **changes})


def states_of(fed, state=None) -> list:
    return [s for s, _ in rounds(fed, state or begin(fed))]


def pair_of(task, flat):
    return task.layout.pair(flat, task.layout.sites[0])


def whole(task, state) -> torch.Tensor:
    """The site's weight, frozen part included."""
    return task.W0 + state.base.get("w", 0) + state.adapter.delta(task.layout.sites[0])


def spied(name: str, **options):
    """The aggregation, and the list of what it will be given."""
    plain, seen = build("aggregation", name, **options), []
    return replace(plain, combine=lambda got: (seen.append(got), plain.combine(got))[1]), seen


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "flora", "fedex_lora"])
@pytest.mark.parametrize("ranks", [(), UNEQUAL])
def test_every_round_gives_the_exact_mean_of_what_clients_hold(name, ranks):
    """I-F2, I-R1, I-FL1, I-E1: W after = sum_k p_k W_k, in every round; FFA and RoLoRA with absent slices as zeros."""
    aggregation, seen = spied(name)
    fed = fed_of(aggregation, ranks=ranks, num_rounds=4)
    before, *later = states_of(fed)
    for after, got in zip(later, seen, strict=True):
        p = got.weight / got.weight.sum()
        frozen = fed.task.W0 + before.base.get("w", 0)
        expected = frozen + torch.einsum("k,kij->ij", p, got.sent.delta(fed.task.layout.sites[0]))
        torch.testing.assert_close(whole(fed.task, after), expected, rtol=0, atol=1e-10)
        before = after


def test_ffa_never_touches_a_and_averages_b_under_adam_too():
    """I-F1, bit for bit: nothing decays it, nothing of the optimiser moves it, on clients or server."""
    aggregation, seen = spied("ffa_lora")
    fed = fed_of(aggregation, ranks=UNEQUAL, work={"optimizer": "adamw", "lr": 0.05})
    A_0 = pair_of(fed.task, fed.task.init(0).flat).A
    for state in states_of(fed):
        assert torch.equal(pair_of(fed.task, state.adapter.flat).A, A_0)
    for got in seen:
        cut = A_0 * (torch.arange(3) < got.ranks[:, None])[..., None]
        assert torch.equal(pair_of(fed.task, got.sent.flat).A, cut)
        assert pair_of(fed.task, got.sent.flat).B.norm() > 0


def gradient_descent(task, trained, num_rounds: int, lr: float = 0.1) -> torch.Tensor:
    """Centralised full-batch steps on sum_k p_k f_k over what is trained in a round."""
    sizes = torch.tensor([len(x) for x in task.X], dtype=torch.float64)
    x = task.init(0).flat.clone()
    for t in range(1, num_rounds + 1):
        leaf = x.clone().requires_grad_()
        losses = [p * task._loss(leaf, X, Y) for p, X, Y in zip(sizes / sizes.sum(), task.X, task.Y, strict=True)]
        x = x - lr * torch.autograd.grad(sum(losses), leaf)[0] * trained(t)
    return x


@pytest.mark.parametrize("name", ["ffa_lora", "rolora"])
def test_one_full_batch_step_a_round_is_gradient_descent_on_what_is_trained(name):
    """I-F3, and alternating gradient descent for RoLoRA, B first; the bias is trained in every round."""
    task = Wide()
    fed = fed_of(name, task=task, steps=1, num_rounds=6, work={"batch_size": 99})
    state = states_of(fed)[-1]
    frozen = {"ffa_lora": lambda t: "A", "rolora": lambda t: "A" if t % 2 else "B"}[name]
    expected = gradient_descent(task, lambda t: ~mask_factor(task.layout, frozen(t)), 6)
    torch.testing.assert_close(state.adapter.flat, expected, rtol=0, atol=1e-10)
    assert (task.layout.part(state.adapter.flat, task.layout.sites[1]).abs() > 0).all()


def test_rolora_moves_one_factor_a_round_bit_for_bit():
    states = states_of(fed_of("rolora", num_rounds=4))
    for t, (before, after) in enumerate(pairwise(states), 1):
        (A, B), (A_next, B_next) = (pair_of(Wide(), s.adapter.flat) for s in (before, after))
        assert torch.equal(A, A_next) == (t % 2 == 1)
        assert torch.equal(B, B_next) == (t % 2 == 0)


def test_fedsa_of_one_client_is_plain_lora():
    """I-S1, bit for bit."""
    own = states_of(fed_of("fedsa_lora", clients=1))[-1].clients["own"].flat[0]
    assert torch.equal(own, states_of(fed_of("fedit", clients=1))[-1].adapter.flat)


def test_fedsa_s_server_never_sees_a_b():
    """What it is given of B is what it had: the mean, which only scores are about, stands in for it."""
    aggregation, seen = spied("fedsa_lora")
    fed = fed_of(aggregation, cohort_size=2, num_rounds=4)
    states = states_of(fed)
    for state, got in zip(states, seen, strict=False):
        theirs = pair_of(fed.task, got.sent.flat).B
        assert torch.equal(theirs, pair_of(fed.task, state.adapter.flat).B.expand_as(theirs))
    own = pair_of(fed.task, states[-1].clients["own"].flat).B
    p = torch.tensor(states[-1].weights) / sum(states[-1].weights)
    torch.testing.assert_close(pair_of(fed.task, states[-1].adapter.flat).B, torch.einsum("k,kij->ij", p.double(), own))


def test_fedsa_s_clients_keep_their_b_while_they_are_away():
    fed = fed_of("fedsa_lora", cohort_size=2, num_rounds=4)
    states = states_of(fed)
    assert not pair_of(fed.task, states[0].clients["own"].flat).B.any()
    for t, (before, after) in enumerate(pairwise(states), 1):
        B, B_next = (pair_of(fed.task, s.clients["own"].flat).B for s in (before, after))
        for k in range(4):
            assert torch.equal(B[k], B_next[k]) == (k not in fed.cohort(t))


def test_flora_s_new_adapter_does_nothing_yet():
    """I-FL2: after a round the model is the merged weights alone, and B = 0."""
    fed = fed_of("flora", ranks=UNEQUAL)
    states = states_of(fed)
    for state in states[1:]:
        assert not pair_of(fed.task, state.adapter.flat).B.any()
        assert (pair_of(fed.task, state.adapter.flat).A.norm(dim=1) > 0).all()
    x = torch.eye(4, dtype=torch.float64)
    bias = fed.task.layout.part(states[-1].adapter.flat, fed.task.layout.sites[1])
    merged = fed.task.W0 + states[-1].base["w"]
    torch.testing.assert_close(fed.task._out(states[-1].adapter.flat, x), x @ merged.T + bias)


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_the_frozen_weights_are_the_original_ones_and_all_folds_in_order(name):
    """I-E3: whoever adds up the factors that were sent, from any round on, has the server's weights to the last bit."""
    plain, sent = build("aggregation", name), []

    def combine(got):
        sent.append(plain.combine(got))
        return sent[-1]

    fed = fed_of(replace(plain, combine=combine), num_rounds=4, cohort_size=2)
    state = states_of(fed)[-1]
    base = torch.zeros(5, 4, dtype=torch.float64)
    for pooled in sent:
        base = base + pooled.fold["w"].B @ pooled.fold["w"].A
    assert torch.equal(state.base["w"], base)
    assert torch.equal(fed.task.W, fed.task.W0 + base)


@pytest.mark.parametrize("task", [LowRank(clients=4, r=3), Wide()], ids=["float32", "float64"])
def test_fedex_without_disagreement_leaves_the_frozen_weights_bit_for_bit(task):
    """I-E2: all clients hold the same, because none trains."""
    fed = fed_of("fedex_lora", task=task, work={"lr": 0.0})
    before = task.checksums()
    states_of(fed)
    assert task.checksums() == before


def anywhere(fed):
    """The first state with A and B away from zero, both signs."""
    state, g = begin(fed), torch.Generator().manual_seed(3)
    x = state.adapter
    return replace(state, adapter=replace(x, flat=torch.randn(x.flat.shape, generator=g).to(x.flat)))


def test_idle_rounds_shrink_padded_slices_by_the_weight_of_their_owners():
    """I-H1: 2 of 5 clients have slice 1, rho = 0.4: A and B shrink by 0.4 a round, the product to 0.0041 in three."""
    fed = fed_of("zero_pad", clients=5, ranks=(1, 2, 1, 2, 1), work={"lr": 0.0, "weighting": "uniform"})
    states = states_of(fed, anywhere(fed))
    (A0, B0), (A1, B1), _, (A3, B3) = (pair_of(fed.task, s.adapter.flat) for s in states)
    torch.testing.assert_close(A1[1], 0.4 * A0[1])
    torch.testing.assert_close(B1[:, 1], 0.4 * B0[:, 1])
    shrunk = B3[:, 1].outer(A3[1]) / B0[:, 1].outer(A0[1])
    torch.testing.assert_close(shrunk, torch.full_like(shrunk, 0.4**6))
    assert round(float(shrunk[0, 0]), 4) == 0.0041
    torch.testing.assert_close(A3[0], A0[0])


@pytest.mark.parametrize("name", ["blockwise", ("zero_pad", {"pad": "deltas"})])
def test_idle_rounds_change_no_bit(name):
    """I-B2, and what padding changes instead of parameters is for."""
    fed = fed_of(name, task=LowRank(clients=4, r=3), ranks=(1, 2, 2, 1), work={"lr": 0.0})
    start = anywhere(fed)
    after = states_of(fed, start)[-1].adapter.flat
    held = mask(fed.task.layout, torch.tensor([2]))[0] if name == "blockwise" else torch.ones_like(after) > 0
    assert torch.equal(after[held], start.adapter.flat[held])


@pytest.mark.parametrize("name", ["fedit", "zero_pad", "hetlora", "blockwise", "fedex_lora", "ffa_lora", "rolora"])
def test_a_slice_whose_owners_are_all_away_waits_for_them(name):
    """Zeros in A and B would never train again."""
    fed = fed_of(name, ranks=(1, 3, 1, 1), cohort_size=1, num_rounds=6)
    away = []
    for t, (before, after) in enumerate(pairwise(states_of(fed, anywhere(fed))), 1):
        (A, B), (A_next, B_next) = (pair_of(fed.task, s.adapter.flat) for s in (before, after))
        away.append(fed.cohort(t) != [1])
        still = torch.equal(A[1:], A_next[1:]) and torch.equal(B[:, 1:], B_next[:, 1:])
        assert still == away[-1]
    assert set(away) == {True, False}


def test_homogeneous_hetlora_with_the_clients_weights_is_fedit_bit_for_bit():
    """I-H2."""
    same = ("hetlora", {"weighting": "samples", "lam": 0.0, "gamma": 1.0})
    assert torch.equal(states_of(fed_of(same))[-1].adapter.flat, states_of(fed_of("fedit"))[-1].adapter.flat)


def test_ranks_of_hetlora_never_grow_and_stop_at_the_floor():
    """I-H3, with a penalty that prunes in almost every round."""
    fed = fed_of(
        ("hetlora", {"lam": 5.0, "gamma": 0.6, "r_min": 2}), num_rounds=8, work={"lr": 0.03}, ranks=(3, 3, 3, 1)
    )
    ranks = [s.ranks for s in states_of(fed)]
    for before, after in pairwise(ranks):
        assert all(a <= b for a, b in zip(after, before, strict=True))
    assert min(ranks[-1][:3]) == 2
    assert ranks[-1][3] == 1  # below the floor from the start: left alone


def test_rank_collapse_of_flexlora():
    """Spec B4: without training, what one client of weight q alone has decays by q a round in the mean of products."""
    fed = fed_of("flexlora", clients=2, ranks=(1, 2), num_rounds=4, work={"lr": 0.0, "weighting": "uniform"})
    start = begin(fed)
    flat = start.adapter.flat.clone()
    A, B = pair_of(fed.task, flat)
    A.copy_(torch.eye(3, 4)), B.copy_(torch.eye(5, 3) * torch.tensor([4.0, 1.0, 0.0]))
    states = states_of(fed, replace(start, adapter=replace(start.adapter, flat=flat)))
    sigma = torch.stack([torch.linalg.svdvals(s.adapter.delta(fed.task.layout.sites[0]))[:2] for s in states]) / 2
    expected = torch.tensor([[4.0, 0.5**t] for t in range(5)], dtype=torch.float64)
    torch.testing.assert_close(sigma, expected)
