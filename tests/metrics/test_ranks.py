"""Ranks of products whose singular values are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import State

LAYOUT = Layout.of(
    [Site("q", "lora", (3, 4, 5)), Site("norm", "full", (2,)), Site("v", "lora", (3, 6, 3))], scaling=2.0
)
G = torch.Generator().manual_seed(0)


def flat(q=None, v=None) -> torch.Tensor:
    """Numbers whose products have these singular values on the sites, None for a site without change."""
    out = torch.zeros(LAYOUT.size)
    for site, values in zip(LAYOUT.lora, (q, v), strict=True):
        A, B = LAYOUT.pair(out, site)
        A.copy_(torch.linalg.qr(torch.randn(site.shape[1], 3, generator=G))[0].T)
        if values is not None:
            B.copy_(torch.linalg.qr(torch.randn(site.shape[2], 3, generator=G))[0] * torch.tensor(values))
    return out


def taken(x: torch.Tensor, ranks=(3, 3), base=(), layout: Layout = LAYOUT, start=None) -> dict[str, float]:
    before = State(Adapter(layout, torch.zeros(layout.size)), ranks=ranks)
    began = SimpleNamespace(init=lambda seed: Adapter(layout, torch.zeros(layout.size) if start is None else start))
    finished = SimpleNamespace(before=before, after=State(Adapter(layout, x), base=dict(base)), task=began, seed=0)
    return dict(build("probe", "ranks").measure(finished).probes)


def test_an_adapter_of_rank_one_has_rank_one_however_many_slices_it_has():
    x = torch.zeros(LAYOUT.size)
    for site in LAYOUT.lora:
        A, B = LAYOUT.pair(x, site)
        A.copy_(torch.randn(site.shape[1], generator=G).expand_as(A))
        B.copy_(torch.randn(site.shape[2], 1, generator=G).expand_as(B))
    assert taken(x) == pytest.approx({"effective_rank": 1, "stable_rank": 1}, abs=1e-5)


def test_what_the_adapter_started_from_is_no_change():
    """The rank of B A - B0 A0: with one more slice on top of any start it is one, and without training zero."""
    start = flat([5.0] * 3, [1.0] * 3)
    moved = start.clone()
    for site in LAYOUT.lora:
        LAYOUT.pair(moved, site).B[:, 1] += 0.5
    assert taken(moved, start=start) == pytest.approx({"effective_rank": 1, "stable_rank": 1}, abs=1e-5)
    assert taken(start, start=start) == {"effective_rank": 0.0}


def test_equal_singular_values_count_fully():
    assert taken(flat([2.0] * 3, [7.0] * 3)) == pytest.approx({"effective_rank": 3, "stable_rank": 3})
    assert taken(flat([2.0, 2.0, 0.0], [7.0, 7.0, 0.0])) == pytest.approx(
        {"effective_rank": 2, "stable_rank": 2}, abs=1e-5
    )


def test_by_hand():
    """1/2 1/4 1/4 has entropy 1.5 ln 2; (4 + 1 + 1) / 4 = 1.5."""
    found = taken(flat([2.0, 1.0, 1.0], [4.0, 2.0, 2.0]))
    assert found == pytest.approx({"effective_rank": 2**1.5, "stable_rank": 1.5}, rel=1e-5)


def test_sites_count_alike_whatever_their_size_and_dead_ones_not_at_all():
    assert taken(flat([1.0, 0.0, 0.0], [500.0] * 3))["effective_rank"] == pytest.approx(2, abs=1e-4)
    assert taken(flat(None, [500.0] * 3))["effective_rank"] == pytest.approx(3)


def test_a_dead_adapter_has_rank_zero():
    assert taken(flat()) == {"effective_rank": 0.0}


def test_an_adapter_whose_product_went_into_the_frozen_weights_is_not_dead():
    assert taken(flat(), base={"q": torch.ones(5, 4)}) == {}
    fed = federation(LowRank(), aggregation="flora", num_rounds=2, probes={"ranks": build("probe", "ranks")})
    assert not any("effective_rank" in record.probes for _, record in rounds(fed, begin(fed)))


def test_energy_above_the_smallest_rank_by_hand():
    """Squares 9 4 1 and 4 4 0, 22 in all: above rank 1 there are 9 of them, above rank 2 there is 1."""
    x = flat([3.0, 2.0, 1.0], [2.0, 2.0, 0.0])
    assert taken(x, ranks=(1, 3))["energy_above"] == pytest.approx(9 / 22)
    assert taken(x, ranks=(2, 3, 2))["energy_above"] == pytest.approx(1 / 22)
    assert "energy_above" not in taken(x, ranks=(2, 2, 2))


def test_what_has_no_product_or_is_not_finite_has_no_rank():
    full = Layout.of([Site("x", "full", (3,))])
    assert taken(torch.ones(3), layout=full) == {}
    x = flat([1.0] * 3, [1.0] * 3)
    x[5] = math.inf
    assert taken(x) == {}


def test_rounds_carry_it_and_tasks_without_lora_do_not():
    probes = {"ranks": build("probe", "ranks")}
    for task, there in ((LowRank(), True), (Quadratic([[1.0]] * 2, [[0.0]] * 2, [2, 2]), False)):
        fed = federation(task, num_rounds=2, probes=probes)
        _, *trained = (record for _, record in rounds(fed, begin(fed)))
        assert [("effective_rank" in r.probes) for r in trained] == [there] * 2
        assert all(1 <= r.probes["effective_rank"] <= 2 for r in trained if there)
