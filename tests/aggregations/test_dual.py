"""Dual adapters: what is shared is one model, what is kept never crosses the network."""

from __future__ import annotations

import pytest
import torch

from fedfault.aggregations.dual import dual
from fedfault.errors import UserError
from fedfault.rounds.exchange import OWN
from fedfault.testing.toys import LowRank, federation, run_to_end
from fedfault.types.adapter import Layout, Site


def test_a_client_s_adapter_is_the_shared_one_and_its_own_side_by_side():
    """B A = B[:, :1] A[:1] + B[:, 1:] A[1:]: the first term is the server's for all, the second differs."""
    task = LowRank(r=3)
    state, _ = run_to_end(federation(task, aggregation=("dual", {"shared": 1}), num_rounds=3))
    site = task.layout.sites[0]
    server, own = task.layout.pair(state.adapter.flat, site), task.layout.pair(state.clients[OWN].flat, site)
    private = dual(shared=1).private(task.layout)
    models = torch.where(private, state.clients[OWN].flat, state.adapter.flat)
    pair = task.layout.pair(models, site)
    torch.testing.assert_close(pair.B @ pair.A, server.B[:, :1] @ server.A[:1] + own.B[..., 1:] @ own.A[:, 1:])
    assert len({tuple(row.flatten().tolist()) for row in own.A[:, 1:]}) == len(own.A)


@pytest.mark.slow
def test_only_the_shared_ranks_are_counted_in_the_bytes():
    one, all_of_it = (
        run_to_end(federation(LowRank(r=3), aggregation=how, num_rounds=2))[1][-1].clients[0].bytes_up
        for how in (("dual", {"shared": 1}), "fedit")
    )
    assert (one, all_of_it) == (4 * (9 + 5), 4 * (27 + 5))  # A (r, 4), B (5, r) and the bias of 5


@pytest.mark.parametrize(("r", "shared", "first"), [(4, None, 2), (5, None, 2), (4, 3, 3)])
def test_half_of_the_ranks_of_each_module_are_shared_unless_it_is_said(r, shared, first):
    kept = dual(shared=shared).private(Layout.of([Site("q", "lora", (r, 1, 1))]))
    assert (~kept).sum() == 2 * first


@pytest.mark.parametrize("shared", [None, 1, 2])
def test_an_adapter_without_a_rank_is_refused(shared):
    with pytest.raises(UserError, match="each of the two adapters needs one at least"):
        dual(shared=shared).private(Layout.of([Site("q", "lora", (1, 4, 5))]))
