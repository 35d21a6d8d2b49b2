"""FedPer's halves of a round, which are FedRep's: first what a client keeps, then what it shares."""

from __future__ import annotations

import pytest
import torch

from fedfault.aggregations.fedper import fedper
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.rounds.exchange import OWN
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from fedfault.setup.combinations import check_parts
from fedfault.testing.toys import LowRank, federation, run_rounds, run_to_end

FEDREP = ("fedper", {"private": ["bias"], "in_turn": True})
WORK = {"batch_size": 99, "lr": 0.1, "optimizer": "sgd", "max_grad_norm": None}


def descend(task, k, x, free, steps):
    """Full-batch steps of 0.1 by client k on the numbers that are free."""
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        loss = task._loss(leaf, task.X[k], task.Y[k])
        x = x - 0.1 * torch.autograd.grad(loss, leaf)[0] * free
    return x


@pytest.mark.parametrize(("steps", "first"), [(2, 1), (5, 3)])
def test_what_is_private_trains_first_and_what_is_shared_under_that(steps, first):
    task = LowRank()
    private = fedper(private=["bias"]).private(task.layout)
    (start, _), (state, _) = run_rounds(
        federation(task, aggregation=FEDREP, work={**WORK, "steps": steps}, num_rounds=1)
    )
    ends = []
    for k in range(6):
        head = descend(task, k, start.adapter.flat, private, first)
        torch.testing.assert_close(state.clients[OWN].flat[k][private], head[private])
        ends.append(descend(task, k, head, ~private, steps - first))
    weight = torch.tensor(state.weights, dtype=torch.float32)
    mean = (weight[:, None] * torch.stack(ends)).sum(0) / weight.sum()
    torch.testing.assert_close(state.adapter.flat[~private], mean[~private])


def test_a_pull_is_towards_where_the_round_started_in_both_halves():
    """FedProx's anchor does not move with the private parts, which the integrity checks would notice."""
    _, records = run_to_end(federation(LowRank(), ("fedprox", {"mu": 1.0}), FEDREP, work={"steps": 4}, num_rounds=2))
    assert [c.steps for c in records[-1].clients] == [4] * 6


def test_steps_are_counted_once_and_momenta_start_anew():
    """Both halves are in the record; AdamW would move the private parts on in the second half, were they not frozen."""
    work = {"steps": 6, "optimizer": "adamw", "lr": 0.01}
    whole, (_, record) = run_to_end(federation(LowRank(), aggregation=FEDREP, work=work, num_rounds=1))
    half, _ = run_to_end(federation(LowRank(), aggregation=("fedper", {"private": ["bias"]}), work=work, num_rounds=1))
    assert [c.steps for c in record.clients] == [6] * 6
    assert not torch.equal(whole.clients[OWN].flat, half.clients[OWN].flat)


def test_one_step_a_round_has_no_halves():
    with pytest.raises(UserError, match="client 0 takes one step in a round"):
        run_to_end(federation(LowRank(), aggregation=FEDREP, work={"steps": 1}, num_rounds=1))


def test_one_step_a_round_is_refused_before_anything_is_loaded():
    words = ["data.task_type=classification", "federation.aggregation={name: fedper, in_turn: true}"]
    with pytest.raises(UserError, match=r"training\.local_steps=1; give 2 at least"):
        check_parts(load("quickstart", [*words, "training.local_steps=1"]).experiment)


@pytest.mark.slow
@pytest.mark.parametrize("private", ["null", "[typo]", "[model]"])
def test_parts_that_are_none_or_all_of_what_is_trained_are_refused_before_there_is_a_folder(private, tmp_path):
    words = [f"federation.aggregation={{name: fedper, private: {private}}}", f"logging.results_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"fedper: private: .*name some of what is trained.*q_proj") as e:
        start_run(load("quickstart", words), Progress(quiet=True))
    assert ("leaves nothing to be averaged" if private == "[model]" else "names nothing") in str(e.value)
    assert not list(tmp_path.iterdir())
