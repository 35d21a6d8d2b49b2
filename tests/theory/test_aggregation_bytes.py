"""What aggregations cost on the wire: the engine's records against bytes by hand, for an adapter of 65,536."""

from __future__ import annotations

import pytest
import torch

from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import Pulled, count_bytes, federation
from fedfault.types.adapter import Adapter

WHOLE, SLICE, DENSE = 65_536, 8_192, 8 * 128 * 128 * 4  # an adapter, one rank of it, the eight matrices themselves
UP_AND_DOWN = {  # in round 2, of four clients that all take part
    "fedit": (WHOLE, WHOLE),
    "zero_pad": (WHOLE, WHOLE),
    "blockwise": (WHOLE, WHOLE),
    "hetlora": (WHOLE, WHOLE),
    "flexlora": (WHOLE, WHOLE),
    "ffa_lora": (32_768, 32_768),
    "rolora": (32_768, 32_768),
    "fedsa_lora": (32_768, 32_768),
    "flora": (WHOLE, 262_144),
    "fedex_lora": (WHOLE, WHOLE + 196_608),
}


def moved(name, task=None, **changes) -> list[list[tuple[int, int, int]]]:
    """(client, up, down) of every round; hetlora without pruning."""
    return count_bytes("fedavg", (name, {"gamma": 1.0} if name == "hetlora" else {}), task, **changes)


@pytest.mark.parametrize("name", UP_AND_DOWN)
def test_the_table(name):
    assert {(up, down) for _, up, down in moved(name)[1]} == {UP_AND_DOWN[name]}


@pytest.mark.parametrize("name", UP_AND_DOWN)
def test_a_head_is_added_both_ways(name):
    up, down = UP_AND_DOWN[name]
    assert {(up, down) for _, up, down in moved(name, Pulled(head=10))[1]} == {(up + 40, down + 40)}


@pytest.mark.parametrize("name", ["fedit", "zero_pad", "blockwise", "hetlora", "flexlora"])
def test_smaller_ranks_cost_less_in_proportion(name):
    costs = [(up, down) for _, up, down in moved(name, ranks=(8, 4, 2, 1))[1]]
    assert costs == [(r * SLICE, r * SLICE) for r in (8, 4, 2, 1)]


@pytest.mark.slow
def test_what_is_folded_goes_to_everyone_whatever_their_rank():
    """FLoRA: 8 + 4 + 2 + 1 ranks of stacks. FedEx: the residual has the ranks of all but the smallest client."""
    assert [c[1:] for c in moved("flora", ranks=(8, 4, 2, 1))[1]] == [(r * SLICE, 15 * SLICE) for r in (8, 4, 2, 1)]
    costs = [c[1:] for c in moved("fedex_lora", ranks=(8, 4, 2, 1))[1]]
    assert costs == [(r * SLICE, r * SLICE + 14 * SLICE) for r in (8, 4, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sent", "folds"), [("flora", 0, 2 * WHOLE), ("fedex_lora", WHOLE, WHOLE)])
def test_clients_pay_for_the_folds_of_the_rounds_since_they_were_last_there(name, sent, folds):
    """Two of four clients a round: that of their own last round included, the whole matrices at most."""
    last: dict[int, int] = {}
    waits = set()
    for t, round in enumerate(moved(name, cohort_size=2, num_rounds=12), 1):
        for client, _, down in round:
            missed = t - last.get(client, 1)
            assert down == sent + min(missed * folds, DENSE)
            waits.add(missed)
            last[client] = t
    assert len(waits) > 3
    assert max(waits) * folds > DENSE or name == "fedex_lora"


def test_a_truncated_residual_costs_its_rank():
    fed = federation(
        Pulled(), "fedavg", ("fedex_lora", {"residual_rank": 2}), clients=4, num_rounds=2, work={"steps": 1}
    )
    *_, (_, record) = rounds(fed, begin(fed))
    assert {c.bytes_down for c in record.clients} == {WHOLE + 2 * SLICE}


@pytest.mark.slow
def test_rolora_sends_what_the_round_before_changed_and_both_factors_after_an_absence():
    fed = moved("rolora", cohort_size=2, num_rounds=8)
    last: dict[int, int] = {}
    for t, round in enumerate(fed, 1):
        for client, up, down in round:
            missed = t - last.get(client, 1)
            assert (up, down) == (WHOLE // 2, WHOLE if missed > 1 else WHOLE // 2)
            last[client] = t


def test_pruned_slices_are_not_sent_any_more():
    """A client gives its tail up after training, before it sends: what it receives was still its old rank."""
    task = Pulled()
    task.points *= 0  # every step makes every product smaller
    task.init = lambda seed: Adapter(task.layout, torch.ones(task.layout.size))
    prune = ("hetlora", {"lam": 0.0, "gamma": 0.5, "r_min": 4})
    fed = federation(task, "fedavg", prune, clients=4, num_rounds=2, work={"steps": 1, "lr": 0.5})
    (_, _), (_, first), (after, second) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in first.clients} == {(4 * SLICE, 8 * SLICE)}
    assert {(c.bytes_up, c.bytes_down) for c in second.clients} == {(4 * SLICE, 4 * SLICE)}
    assert after.ranks == (4,) * 4
