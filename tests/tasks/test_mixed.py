"""Clients on differently quantised copies of one backbone: to each its copy, and nothing else is different."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.moon import contrastive_loss
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.quantised import quantise
from fedfault.backbones.sites import lora_targets
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import IntegrityError
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.tasks.language import LanguageTask
from fedfault.tasks.mixed import MixedTask
from fedfault.testing.toys import federation
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Room
from fedfault.types.task import Step
from tiny import VOCAB, tiny_llama

NEEDS = "bitsandbytes"
pytestmark = pytest.mark.skipif(importlib.util.find_spec(NEEDS) is None, reason=f"{NEEDS} is not installed")

T = 6
PRECISIONS = ("4bit", "none", "4bit", "8bit", "none")
SIZES = (5, 2, 3, 4, 1)  # blocks of each client


def blocks(seed: int, n: int) -> Blocks:
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(1, VOCAB, (n, 3), generator=g)
    targets = torch.full((n,), T)
    targets[-1] = T - 2  # a short last block
    return Blocks(words.repeat(1, 3)[:, : T + 1], targets)


def plain(precision: str) -> LanguageTask:
    model = tiny_llama()
    if precision != "none":
        quantise(model, precision, torch.float32, torch.device("cpu"))
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.2)
    clients = [blocks(k, n) for k, n in enumerate(SIZES)]
    return LanguageTask(opened, clients, {"topic/a": blocks(0, 3), "client/1": blocks(9, 2)}, {"topic/a": 1.0})


def mixed(server: str = "none", precisions=PRECISIONS) -> MixedTask:
    return MixedTask({p: plain(p) for p in {server, *precisions}}, precisions, server)


def moved(layout, k: int) -> torch.Tensor:
    return 0.2 * torch.randn(k, layout.size, generator=torch.Generator().manual_seed(3))


def a_pass(layout):
    """All five clients, longest first; the widest batch is that of a client on 4 bits."""
    clients = torch.tensor([0, 3, 2, 1, 4])
    rows = torch.arange(4).repeat(5, 1)
    real = rows < torch.tensor(SIZES)[clients][:, None].clamp(max=4)
    return moved(layout, 5), Step(clients, rows.where(real, 0), real, torch.tensor([5, 6, 7, 8, 9]))


def contrast(params, clients):
    """MOON's further loss against models that are other ones for every client."""

    def extra(z, see):
        near, far = (see(params * c) for c in (0.5, -1.0))
        return contrastive_loss(z, near, far, 0.5) * (1.0 + clients)

    return extra


@pytest.mark.slow
@pytest.mark.parametrize("further", [False, True])
def test_clients_of_a_precision_get_what_they_get_among_themselves(further):
    """But for rounding: some CPUs add up products of other numbers of rows in another order."""
    task = mixed()
    params, step = a_pass(task.layout)
    clients = step.clients
    step = replace(step, extra_loss=contrast(params, clients) if further else None)
    loss, gradient, tokens = task.grad(params, step)
    for precision in ("none", "8bit", "4bit"):
        own = torch.tensor([PRECISIONS[k] == precision for k in clients.tolist()])
        width = int(step.real[own].sum(1).max())
        extra = contrast(params[own], clients[own]) if further else None
        some = Step(clients[own], step.rows[own, :width], step.real[own, :width], step.key[own], extra)
        expected = plain(precision).grad(params[own], some)
        for ours, theirs in zip((loss, gradient, tokens), expected, strict=True):
            torch.testing.assert_close(ours[own], theirs, rtol=1e-5, atol=1e-5)
    assert bool(gradient.any(1).all())


@pytest.mark.slow
def test_passes_are_as_large_as_the_memory_that_the_last_copy_left():
    """The server's copy is loaded first, and finds free what the others take after it."""
    copies = {p: plain(p) for p in ("none", "4bit", "8bit")}
    for task, free in zip(copies.values(), (2**24, 2**23, 2**22), strict=True):
        task.free, task.room = free, Room(free // 100, free // 200)
    most, alone = (copies[p].clients_per_pass(1) for p in ("none", "8bit"))
    task = MixedTask(copies, PRECISIONS, "none")
    assert (task.free, task.room) == (2**22, Room(2**22 // 100, 2**22 // 200))
    assert task.clients_per_pass(1) == alone < most


def test_a_federation_of_one_precision_is_the_plain_one():
    task = mixed("8bit", ("8bit",) * 5)
    given = a_pass(task.layout)
    for ours, theirs in zip(task.grad(*given), plain("8bit").grad(*given), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_every_client_trains_as_on_its_own_copy_alone():
    work = LocalWork(epochs=2, batch_size=2, lr=0.01)

    def trained(task, clients, per_pass):
        start = Adapter(task.layout, moved(task.layout, 1)[0])
        return Trainer(task, work, seed=0, round=1, clients=clients, passes=Passes(per_pass))(start)

    together = trained(mixed(), range(5), 5)
    for precision in ("none", "8bit", "4bit"):
        own = [k for k in range(5) if PRECISIONS[k] == precision]
        assert torch.equal(together.adapter.flat[own], trained(plain(precision), own, len(own)).adapter.flat)
    assert not torch.allclose(together.adapter.flat[0], trained(plain("none"), [0], 1).adapter.flat[0], atol=1e-3)


@pytest.mark.slow
def test_every_client_looks_at_what_it_keeps_back_through_its_own_copy():
    task = mixed(precisions=("none", "4bit", "none", "8bit", "none"))
    params, clients = moved(task.layout, 3), torch.tensor([3, 1, 4])
    found = task.held_out(params, clients)
    assert found[1] == plain("4bit").held_out(params[1:2], clients[1:2])
    assert found.isnan().tolist() == [True, False, True]  # only client 1 keeps anything back
    assert [task.select_copy(k).frozen_bytes() for k in (0, 1, 3)] == [
        plain(p).frozen_bytes() for p in ("none", "4bit", "8bit")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["none", "4bit", "8bit"])
def test_the_servers_copy_is_what_scores_are_of(server):
    task, alone = mixed(server, ("4bit", "none", "4bit", "none", "none")), plain(server)
    adapter = Adapter(task.layout, moved(task.layout, 1)[0])
    assert task.evaluate(adapter) == alone.evaluate(adapter)
    assert torch.equal(task.states(adapter.flat[None], 2).layers[1], alone.states(adapter.flat[None], 2).layers[1])
    assert task.clients_per_pass(4) == alone.clients_per_pass(4)
    assert task.layout == alone.layout


@pytest.mark.slow
def test_what_is_folded_in_goes_to_every_copy_and_comes_back_from_every_copy():
    task = mixed()
    before = task.checksums()
    assert len({name.partition("/")[0] for name in before}) == 3
    change = {s.name: Adapter(task.layout, moved(task.layout, 1)[0]).delta(s) for s in task.layout.lora}
    task.fold(change)
    for precision, copy in task.copies.items():
        alone = plain(precision)
        alone.fold(change)
        assert copy.checksums() == alone.checksums()
    task.fold({})
    assert task.checksums() == before


@pytest.mark.slow
def test_a_frozen_weight_that_moves_on_one_copy_is_named():
    task = mixed()

    class Writes(LanguageTask):
        def grad(self, *given):
            self.model.model.model.norm.weight.data += 1.0
            return super().grad(*given)

    task.copies["8bit"].__class__ = Writes
    with pytest.raises(IntegrityError, match=r"8bit/model\.norm\.weight"):
        list(rounds(*start(task)))


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["fedit", "flora"])
def test_a_mixed_federation_learns(aggregation):
    losses = [record.scores["validation"].loss for _, record in rounds(*start(mixed(), aggregation, num_rounds=4))]
    assert losses[-1] < losses[0] - 0.1


def start(task, aggregation="fedit", **changes):
    work = {"steps": 4, "lr": 0.02, "optimizer": "adamw", "batch_size": 2}
    fed = federation(task, "fedavg", aggregation, clients=5, work=work, **changes)
    return fed, begin(fed)
