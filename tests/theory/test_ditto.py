"""Ditto: what clients keep, between training alone and the server's model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fedfault.algorithms.ditto import ditto
from fedfault.rounds.integrity import IntegrityError
from fedfault.testing.toys import LowRank, Quadratic, federation, run_rounds, run_to_end

TASK = Quadratic(H=[[1.0], [3.0]], b=[[0.0], [4.0]], sizes=[4, 4])
LONG = {"work": {"steps": 60, "lr": 0.1}, "num_rounds": 8}


def kept(lam: float, task=TASK, **changes) -> torch.Tensor:
    state, _ = run_to_end(federation(task, ("ditto", {"lam": lam}), **{**LONG, **changes}))
    return state.clients["v"].flat


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.5, 2.0, 6.0])
def test_what_a_client_keeps_is_the_minimum_of_its_own_objective(lam):
    """v_k = (H_k b_k + lam x) / (H_k + lam), with x what the server sent in the last round."""
    states = [s for s, _ in run_rounds(federation(TASK, ("ditto", {"lam": lam}), **LONG))]
    x, H, b = states[-2].adapter.flat, TASK.Ht, TASK.bt
    torch.testing.assert_close(states[-1].clients["v"].flat, (H * b + lam * x) / (H + lam), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_without_a_pull_clients_end_where_they_would_alone():
    torch.testing.assert_close(kept(0.0), TASK.bt, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_server_s_model_is_fedavg_s_to_the_bit():
    both = [run_to_end(federation(LowRank(), algorithm, cohort_size=4))[0] for algorithm in ("ditto", "fedavg")]
    assert torch.equal(both[0].adapter.flat, both[1].adapter.flat)


@pytest.mark.slow
def test_a_client_that_was_not_there_keeps_what_it_had():
    states = run_rounds(federation(LowRank(), "ditto", cohort_size=2, num_rounds=3))
    for (before, _), (after, record) in itertools.pairwise(states):
        there = {c.client for c in record.clients}
        for k in range(6):
            same = torch.equal(before.clients["v"].flat[k], after.clients["v"].flat[k])
            assert same == (k not in there)


@pytest.mark.slow
def test_personal_scores_are_those_of_what_clients_keep():
    *_, (state, record) = run_rounds(federation(LowRank(), ("ditto", {"lam": 0.01}), num_rounds=40))
    own = [LowRank().grad(row[None], _all(k))[0].item() for k, row in enumerate(state.clients["v"].flat)]
    assert record.scores["personal"].loss == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert record.scores["personal"].loss < record.scores["validation"].loss


def _all(k):
    from fedfault.types.task import Step

    n = LowRank().examples(k)
    return Step(torch.tensor([k]), torch.arange(n)[None], torch.ones(1, n, dtype=torch.bool))


def test_clients_that_start_from_anything_else_are_found_out():
    """A copy of what was kept is no proof that it was: the check takes the very value that the engine handed over."""

    def client(got, memory, train):
        elsewhere = replace(memory["v"], flat=memory["v"].flat + 0.1)
        own, local = train(elsewhere), train(got["x"])
        return {"x": local.adapter, "n": local.weight}, {"v": own.adapter}

    with pytest.raises(IntegrityError, match="client 0 does not start from what the server sent"):
        run_to_end(federation(LowRank(), replace(ditto(), client=client)))
