"""MOON's invariants, through the real engine (Li et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.moon import contrastive_loss, moon
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.rounds.engine import begin, rounds
from fedfault.tasks.language import LanguageTask
from fedfault.testing.toys import LowRank, count_bytes, federation
from fedfault.text.packing import pack_blocks
from tiny import VOCAB, tiny_llama


def states(fed) -> list:
    return [state for state, _ in rounds(fed, begin(fed))]


def language() -> LanguageTask:
    """Three clients with texts of unequal length under a tiny model with dropout."""
    model, g = tiny_llama(), torch.Generator().manual_seed(0)
    texts = [[torch.randint(1, VOCAB, (4 + k,), generator=g).tolist() for _ in range(5 + 2 * k)] for k in range(3)]
    train = [pack_blocks(t, 6, 0) for t in texts]
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0, dropout=0.3)
    return LanguageTask(opened, train, {"topic/a": train[0]}, {"topic/a": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("task", [LowRank, language])
def test_mu_zero_is_fedavg_bit_for_bit(task, optimizer):
    """I-M1: the further forward passes draw nothing from the streams of data and dropout."""
    work = {"lr": 0.02, "optimizer": optimizer, "steps": 3, "batch_size": 3}
    clients = None if task is LowRank else 3
    mine, plain = (
        states(federation(task(), a, clients=clients, num_rounds=2, work=work))[-1]
        for a in (("moon", {"mu": 0.0}), "fedavg")
    )
    assert torch.equal(mine.adapter.flat, plain.adapter.flat)


@pytest.mark.slow
@pytest.mark.parametrize("task", [LowRank, language])
def test_the_first_round_of_a_client_is_fedavgs(task):
    """I-M2: its previous model is the server's, so that the contrast is log 2 and has no gradient."""
    clients = None if task is LowRank else 3
    mine, plain = (states(federation(task(), a, clients=clients, num_rounds=1))[-1] for a in ("moon", "fedavg"))
    torch.testing.assert_close(mine.adapter.flat, plain.adapter.flat, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_client_that_comes_late_has_its_first_round_too():
    """I-M2 with partial participation: clients meet the server's present model, not the one before training."""
    fed = lambda a: federation(LowRank(), a, cohort_size=2, num_rounds=3, seed=2)  # noqa: E731
    cohorts = [set(fed("moon").cohort(t)) for t in (1, 2, 3)]
    assert not cohorts[0] & cohorts[1]
    assert cohorts[2] & (cohorts[0] | cohorts[1])
    mine, plain = states(fed("moon")), states(fed("fedavg"))
    torch.testing.assert_close(mine[2].adapter.flat, plain[2].adapter.flat, rtol=1e-5, atol=1e-7)
    assert float((mine[3].adapter.flat - plain[3].adapter.flat).abs().max()) > 1e-3


def watched(algorithm, losses: list):
    """The algorithm with the contrast of every step written down."""

    def client(got, memory, train):
        def noting(start, extra):
            def noted(z, see, rows):
                found = extra.loss(z, see, rows)
                losses.append(found.detach())
                return found

            return train(start, replace(extra, loss=noted))

        return algorithm.client(got, memory, noting)

    return replace(algorithm, client=client)


def forgetful(algorithm):
    """Public code's mistake: the aggregate arrives and is kept as the previous model before that was used."""

    def client(got, memory, train):
        flat = got["x"].flat.expand_as(memory["previous"].flat)
        return algorithm.client(got, {"previous": replace(got["x"], flat=flat)}, train)

    return replace(algorithm, client=client)


@pytest.mark.slow
@pytest.mark.parametrize("mistaken", [False, True])
def test_the_previous_model_is_the_clients_own_and_not_the_aggregate(mistaken):
    """I-M2 and B-10: from the second round on the contrast is not log 2, unless the two were confused."""
    losses: list[torch.Tensor] = []
    algorithm = watched(moon(), losses)
    fed = federation(LowRank(), forgetful(algorithm) if mistaken else algorithm, num_rounds=2)
    mine, plain = states(fed)[-1], states(federation(LowRank(), num_rounds=2))[-1]
    first, second = torch.stack(losses[:5]), torch.stack(losses[5:])
    assert first.flatten().tolist() == pytest.approx([math.log(2)] * 30)
    away = float((second - math.log(2)).abs().min())
    apart = float((mine.adapter.flat - plain.adapter.flat).abs().max())
    assert (away < 1e-6, apart < 1e-6) == (mistaken, mistaken)


@pytest.mark.slow
def test_what_a_client_keeps_is_what_it_sent():
    algorithm, sent = moon(), []

    def client(got, memory, train):
        up, home = algorithm.client(got, memory, train)
        sent.append(up["x"].flat)
        return up, home

    fed = federation(LowRank(), replace(algorithm, client=client), cohort_size=4, num_rounds=2)
    _, first, second = states(fed)
    kept, absent = second.clients["previous"].flat, sorted(set(range(6)) - set(fed.cohort(2)))
    assert torch.equal(kept[fed.cohort(2)], sent[1])
    assert torch.equal(kept[absent], first.clients["previous"].flat[absent])


def test_the_contrast_is_positive():
    """I-M3: and at most log(1 + e^(2 / T)), with z opposite to the one and along the other."""
    z, near, far = torch.randn(3, 200, 5, 4, generator=torch.Generator().manual_seed(0))
    for temperature in (0.1, 0.5, 5.0):
        most = math.log1p(math.exp(2 / temperature)) + 1e-5
        each = torch.cat([contrastive_loss(z, near, far, temperature), contrastive_loss(z, -z, z, temperature)])
        assert bool(((each > 0) & (each <= most)).all())
        assert each[-1].item() == pytest.approx(most, abs=1e-4)


@pytest.mark.slow
def test_the_models_compared_with_do_not_change():
    """I-M4: neither the server's nor the previous ones of absent and present clients."""
    fed = federation(LowRank(), "moon", cohort_size=3, num_rounds=3)
    iterator = rounds(fed, begin(fed))
    next(iterator), next(iterator)
    state, _ = next(iterator)
    copies = state.adapter.flat.clone(), state.clients["previous"].flat.clone()
    next(iterator)
    assert torch.equal(state.adapter.flat, copies[0])
    assert torch.equal(state.clients["previous"].flat, copies[1])


def test_only_the_model_crosses_the_network():
    fed = federation(LowRank(), "moon", cohort_size=3, num_rounds=2)
    *_, (_, record) = rounds(fed, begin(fed))
    assert {(c.bytes_up, c.bytes_down) for c in record.clients} == {(4 * 23, 4 * 23)}


def test_a_round_moves_what_fedavg_moves():
    assert {(up, down) for _, up, down in count_bytes("moon", cohort_size=2)[-1]} == {(65_536, 65_536)}
