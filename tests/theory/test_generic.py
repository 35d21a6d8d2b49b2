"""What holds for every algorithm and every aggregation, through the engine: invariants I-G1 to I-G8."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from allowed import allowed
from fedfault.algebra import mask
from fedfault.registry import load_builders
from fedfault.rounds import clients
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import OWN
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Trained
from fedfault.wire import pack

AGGREGATIONS = list(load_builders("aggregation"))
PARTS = [(a, "fedit") for a in load_builders("algorithm")] + [("fedavg", g) for g in AGGREGATIONS if g != "fedit"]
every_part = pytest.mark.parametrize(("algorithm", "aggregation"), PARTS, ids=["-".join(p) for p in PARTS])
RANKS = (1, 2, 2, 1, 2, 1)


def messages(fed: Federation) -> list[tuple[dict, dict]]:
    """What went down and what came up in every round, adapters with a row a client."""
    seen = []

    def client(got, memory, train):
        up, home = fed.algorithm.client(got, memory, train)
        seen.append((dict(got), dict(up)))
        return up, home

    tapped = replace(fed, algorithm=replace(fed.algorithm, client=client))
    list(rounds(tapped, begin(fed)))
    return seen


def digests(fed: Federation) -> list[tuple[str, str]]:
    return [tuple(hashlib.sha256(pack(m)).hexdigest() for m in both) for both in messages(fed)]


def parts(algorithm: str, aggregation: str, task=None, **changes) -> Federation:
    unequal = {"ranks": RANKS} if allowed(algorithm, aggregation, [1, 2]) else {}
    changes = {"cohort_size": 4, "num_rounds": 2, "work": {"steps": 2, "lr": 0.05}, **unequal, **changes}
    return federation(task or LowRank(), algorithm, aggregation, **changes)


@pytest.mark.slow
@every_part
def test_the_seed_decides_every_payload(algorithm, aggregation):
    """I-G1: the same bytes in every round for the same seed, others for another one."""
    first = digests(parts(algorithm, aggregation, seed=1))
    assert digests(parts(algorithm, aggregation, seed=1)) == first
    assert not set(first) & set(digests(parts(algorithm, aggregation, seed=2)))


class Backwards(Trainer):
    """Takes the clients in the opposite order."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.longest_first.reverse()


class DrawnBackwards(Federation):
    """Draws the same cohorts in the opposite order."""

    def cohort(self, round, *known):
        return super().cohort(round, *known)[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "aggregation", "optimizer"),
    [(*pair, "sgd") for pair in PARTS] + [(*pair, "adamw") for pair in (("fedavg", "fedit"), ("scaffold", "fedit"))],
)
def test_the_order_of_execution_changes_no_bit(algorithm, aggregation, optimizer, monkeypatch):
    """I-G2: passes of 1, 3 or all clients, in either order, and cohorts drawn in either order.

    P = 32, as rows of language models are multiples of 16 too: fused AdamW rounds the last P mod 16 numbers of what it is
    given in another way than the others.
    """
    work = {"steps": None, "epochs": 1, "batch_size": 16, "lr": 0.02, "optimizer": optimizer}

    def fed(**changes):
        return parts(algorithm, aggregation, LowRank(r=3), work=work, **changes)

    whole = digests(fed())
    assert digests(fed(clients_per_pass=3)) == whole
    drawn = DrawnBackwards(**vars(fed(clients_per_pass=1)))
    assert drawn.cohort(1) == sorted(drawn.cohort(1), reverse=True)
    monkeypatch.setattr(clients, "Trainer", Backwards)
    assert digests(drawn) == whole


class Idle(Trainer):
    """No client takes a step."""

    def __call__(self, start, *extra, **options):
        K = len(self.clients)
        self.start, zero = start.flat.expand(K, -1), torch.zeros(K)
        own = replace(start, flat=self.start.clone())
        self.trained = Trained(own, self.weight, zero, zero, zero, zero, torch.zeros_like(own.flat))
        return self.trained

    def gradient(self, at):
        return replace(at, flat=torch.zeros(len(self.clients), at.layout.size))


def anywhere(fed: Federation):
    """A state whose model is anywhere, both signs."""
    state, g = begin(fed), torch.Generator().manual_seed(5)
    x = Adapter(state.adapter.layout, torch.randn(state.adapter.flat.shape, generator=g))
    home = {OWN: replace(x, flat=x.flat.repeat(6, 1))} if OWN in state.clients else {}
    return replace(state, adapter=x, memory=fed.algorithm.init(x), clients={**state.clients, **home})


def function(task: LowRank, adapter: Adapter, base=None) -> torch.Tensor:
    """The numbers that decide what the model does: its weight, all included, and its bias."""
    w, bias = task.layout.sites
    weight = task.W0 + adapter.delta(w) + (base or {}).get("w", 0.0)
    return torch.cat([weight.flatten(), task.layout.part(adapter.flat, bias)])


@every_part
def test_an_idle_round_changes_nothing(algorithm, aggregation, monkeypatch):
    """I-G3: to the bit where the numbers of the adapter keep their meaning, else in what the model computes."""
    monkeypatch.setattr(clients, "Trainer", Idle)
    fed = parts(algorithm, aggregation, ranks=(), num_rounds=1)
    before = anywhere(fed)
    *_, (after, _) = rounds(fed, before)
    if "refactors" in fed.aggregation.traits:
        was, now = function(fed.task, before.adapter), function(fed.task, after.adapter, after.base)
        torch.testing.assert_close(now, was, rtol=1e-5, atol=1e-6)
        return
    assert algorithm == "ifca" or torch.equal(after.adapter.flat, before.adapter.flat)  # its models start apart
    still = {name: m for name, m in before.memory.items() if name != "v"}  # Adam's v decays with beta2 whatever comes
    assert all(torch.equal(after.memory[name].flat, m.flat) for name, m in still.items())
    assert not any(change.any() for change in after.base.values())


class Watching(LowRank):
    """Notes with which parameters each client enters the model first."""

    def __init__(self):
        super().__init__()
        self.first = {}

    def grad(self, params, step):
        for k, own in zip(step.clients.tolist(), params, strict=True):
            self.first.setdefault(k, own.clone())
        return super().grad(params, step)


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_client_starts_from_its_slice_of_the_servers_model_whoever_trained_before_it(aggregation):
    """I-G4 and I-G6: exactly, biases included, in every round and with one client in the model at a time."""
    fed = parts("fedavg", aggregation, Watching(), clients_per_pass=1, num_rounds=4)
    private = fed.aggregation.private(fed.task.layout)
    before = begin(fed)
    for state, _ in rounds(fed, before):
        cohort = fed.cohort(state.round) if state.round else []
        assert sorted(fed.task.first) == cohort
        for k in cohort:
            x = before.adapter.flat
            x = x if private is None else torch.where(private, before.clients[OWN].flat[k], x)
            assert torch.equal(fed.task.first[k], x * mask(fed.task.layout, torch.tensor([before.ranks[k]]))[0])
        before = state
        fed.task.first.clear()


@every_part
def test_a_client_cannot_touch_another_one_in_the_same_round(algorithm, aggregation):
    """I-G6: with other data at client 0, the uploads of clients 1 to 5 are the same, bit for bit."""

    def uploads(shift):
        task = LowRank()
        task.Y[0] = task.Y[0] + shift
        ((_, up),) = messages(parts(algorithm, aggregation, task, cohort_size=6, num_rounds=1))
        return up["x"].flat

    one, other = uploads(0.0), uploads(3.0)
    assert torch.equal(one[1:], other[1:])
    assert not torch.equal(one[0], other[0])
    rows = {row.data_ptr() for row in one}
    assert len(rows) == 6


@pytest.mark.slow
def test_clients_answer_to_what_the_server_does():
    """I-G5: where two aggregations get the same first uploads, the second ones differ: the server's answer is loaded."""
    different = [g for g in AGGREGATIONS if g != "zero_pad"]  # which is what FedIT does with unequal ranks
    seen = [digests(federation(LowRank(), "fedavg", g, ranks=RANKS, num_rounds=2)) for g in different]
    firsts, seconds = ([up for _, up in at] for at in zip(*seen, strict=True))
    assert max(map(firsts.count, firsts)) >= 5
    assert len(set(seconds)) == len(different)


class Alike(LowRank):
    """All clients have the data of the third."""

    def __init__(self):
        super().__init__()
        self.X, self.Y = [self.X[2]] * 6, [self.Y[2]] * 6


@every_part
def test_identical_clients_change_alike_and_their_mean_is_any_of_them(algorithm, aggregation):
    """I-G7: with whole-batch steps, over two rounds; what the server makes of it is theirs where it adds nothing."""
    work = {"steps": 2, "batch_size": 99, "lr": 0.05}
    fed = parts(algorithm, aggregation, Alike(), ranks=(), cohort_size=6, num_rounds=2, work=work)
    for _, up in messages(fed):
        torch.testing.assert_close(up["x"].flat, up["x"].flat[:1].expand(6, -1), rtol=1e-5, atol=1e-6)
    if algorithm in ("fedavg", "fedprox", "moon", "fednova", "scaffold"):
        last = Adapter(fed.task.layout, up["x"].flat[0])
        states = [state for state, _ in rounds(fed, begin(fed))]
        theirs = function(fed.task, last, states[1].base)
        ours = function(fed.task, states[2].adapter, states[2].base)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_losses_in_telemetry_are_of_the_same_examples_without_dropout_whenever_they_are_taken():
    """I-G8: the first 64 examples of each client, the same to the bit in another round and with another seed."""

    class NoDropout(Quadratic):
        def grad(self, params, step):
            assert step.key is None
            return super().grad(params, step)

    task = NoDropout([[1.0], [2.0]], [[0.0], [1.0]], [100, 7], noise=1.0)
    work = LocalWork(batch_size=16)
    trainers = [Trainer(task, work, seed=s, round=t, clients=[0, 1], passes=Passes(2)) for s, t in ((0, 1), (3, 9))]
    losses = [train.loss(task.init(0)) for train in trainers]
    assert torch.equal(*losses)
    by_hand = [0.5 * H * ((3 - b - task.e[k, :n, 0]) ** 2).mean() for k, H, b, n in ((0, 1, 0, 64), (1, 2, 1, 7))]
    torch.testing.assert_close(losses[0], torch.stack(by_hand), rtol=1e-12, atol=0)
