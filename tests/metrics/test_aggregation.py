"""The error of an aggregation against dense products, which the code never forms."""

from __future__ import annotations

import pytest
import torch

from fedfault.algebra import mean
from fedfault.metrics.aggregation import aggregation_error
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation
from fedfault.types.adapter import Adapter, Layout, Pair, Site

LAYOUT = Layout.of([Site("a", "lora", (2, 3, 5)), Site("n", "full", (4,)), Site("b", "lora", (2, 6, 2))], scaling=1.5)
G = torch.Generator().manual_seed(0)
SENT = torch.randn(4, LAYOUT.size, generator=G)
WEIGHT = torch.tensor([3.0, 1.0, 7.0, 2.0])
FEDIT = mean(Adapter(LAYOUT, SENT), WEIGHT)


def one_number(*values: float) -> torch.Tensor:
    """A (1, 1), B (1, 1) of a client each, as flat (K, 2)."""
    return torch.tensor(values).view(-1, 2)


def test_by_hand():
    """A = 1 and 3, B = 2 and -4, s = 0.5: mean of products (2 - 12) / 2 = -5, product of means 2 * -1 = -2, |3 / 5|."""
    layout = Layout.of([Site("w", "lora", (1, 1, 1))], scaling=0.5)
    sent, weight = one_number(1, 2, 3, -4), torch.ones(2)
    after = mean(Adapter(layout, sent), weight)
    assert aggregation_error(layout, sent, weight, after, {}) == (pytest.approx(0.6), {"w": pytest.approx(0.6)})
    folded = {"w": Pair(torch.tensor([[3.0]]), torch.tensor([[-0.25]]))}  # -0.75 of the missing 0.5 * -3
    assert aggregation_error(layout, sent, weight, after, folded)[0] == pytest.approx(0.3)


def test_the_part_of_the_base_that_all_started_from_is_no_change_of_it():
    """As by hand, from A0 = 1 and B0 = 2: the clients' mean change is 0.5 (-5 - 2), of which 1.5 are missed."""
    layout = Layout.of([Site("w", "lora", (1, 1, 1))], scaling=0.5)
    sent, weight, start = one_number(1, 2, 3, -4), torch.ones(2), Adapter(layout, torch.tensor([1.0, 2.0]))
    after = mean(Adapter(layout, sent), weight)
    assert aggregation_error(layout, sent, weight, after, {}, start)[0] == pytest.approx(1.5 / 3.5)
    assert aggregation_error(layout, start.flat.expand(2, -1), weight, start, {}, start) == (None, {})


def test_fedit_s_error_is_the_cross_covariance_of_the_factors():
    """Spec B1: |sum p (B - mean B)(A - mean A)| / |sum p B A|, by site and over all of them."""
    p = (WEIGHT / WEIGHT.sum()).double()
    found, by_site = aggregation_error(LAYOUT, SENT, WEIGHT, FEDIT, {})
    parts = []
    for site in LAYOUT.lora:
        A, B = LAYOUT.pair(SENT.double(), site)
        mean_A, mean_B = (torch.einsum("k,kij->ij", p, f) for f in (A, B))
        C, E = (torch.einsum("k,kij->ij", p, x) for x in ((B - mean_B) @ (A - mean_A), B @ A))
        assert by_site[site.name] == pytest.approx(float(C.norm() / E.norm()), rel=1e-5)
        parts.append((C.norm() ** 2, E.norm() ** 2))
    error, size = map(sum, zip(*parts, strict=True))
    assert found == pytest.approx(float((error / size).sqrt()), rel=1e-5)


def test_one_client_or_clients_that_agree_leave_no_error():
    alone, by_site = aggregation_error(LAYOUT, SENT[:1], WEIGHT[:1], Adapter(LAYOUT, SENT[0]), {})
    assert alone == pytest.approx(0, abs=1e-7)
    assert list(by_site) == ["a", "b"]
    agreed, _ = aggregation_error(LAYOUT, SENT[:1].expand(4, -1), WEIGHT, Adapter(LAYOUT, SENT[0]), {})
    assert agreed == pytest.approx(0, abs=1e-7)


def test_without_products_there_is_nothing_to_measure():
    idle = SENT.clone()
    LAYOUT.pair(idle, LAYOUT.lora[0]).B.zero_()
    assert list(aggregation_error(LAYOUT, idle, WEIGHT, FEDIT, {})[1]) == ["b"]
    LAYOUT.pair(idle, LAYOUT.lora[1]).B.zero_()
    assert aggregation_error(LAYOUT, idle, WEIGHT, FEDIT, {}) == (None, {})
    full = Layout.of([Site("n", "full", (3,))])
    assert aggregation_error(full, torch.ones(2, 3), WEIGHT[:2], Adapter(full, torch.ones(3)), {}) == (None, {})


def probe(aggregation, algorithm="fedavg", **changes) -> list[float | None]:
    given = {"work": {"steps": 2}, "num_rounds": 2, "probes": {"aggregation": build("probe", "aggregation")}, **changes}
    fed = federation(LowRank(clients=3), algorithm, aggregation, **given)
    return [r.probes.get("aggregation_error") for _, r in rounds(fed, begin(fed))][1:]


@pytest.mark.slow
def test_rounds_carry_it():
    assert all(error > 1e-4 for error in probe("fedit"))
    for name in ("flora", "fedex_lora", "ffa_lora", "rolora"):
        assert all(error < 1e-6 for error in probe(name))
        assert all(error < 1e-6 for error in probe(name, ranks=(1, 2, 2)))
    assert probe("fedsa_lora") == [None, None]  # there is no global product
    assert probe("fedit", algorithm="ifca") == [None, None]  # there are several
