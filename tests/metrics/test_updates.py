"""Update divergence against dense weight changes, which the code never forms."""

from __future__ import annotations

import pytest
import torch

from fedfault.algebra import gram, mean
from fedfault.measures.updates import update_metrics
from fedfault.metrics.updates import update_norms
from fedfault.types.adapter import Adapter, Layout, Site

LAYOUT = Layout.of(
    [Site("a", "lora", (2, 3, 5)), Site("norm", "full", (4,)), Site("b", "lora", (2, 6, 2))], scaling=1.5
)
G = torch.Generator().manual_seed(0)
START = torch.randn(LAYOUT.size, generator=G)
COHORT = START + 0.3 * torch.randn(4, LAYOUT.size, generator=G)


def dense(flat: torch.Tensor) -> torch.Tensor:
    adapter = Adapter(LAYOUT, flat.double())
    a, norm, b = LAYOUT.sites
    return torch.cat([adapter.delta(a).flatten(), LAYOUT.part(adapter.flat, norm), adapter.delta(b).flatten()])


CHANGES = torch.stack([dense(y) - dense(START) for y in COHORT])


def test_inner_products_are_those_of_the_dense_changes():
    torch.testing.assert_close(gram(LAYOUT, START, COHORT), CHANGES @ CHANGES.T, rtol=1e-10, atol=1e-10)


def test_named_measures_are_their_formulas():
    found = update_metrics(gram(LAYOUT, START, COHORT))
    average = CHANGES.mean(0)
    cos = torch.nn.functional.cosine_similarity
    pairs = [float(cos(CHANGES[i], CHANGES[j], 0)) for i in range(4) for j in range(4) if i != j]
    assert update_norms(LAYOUT, START.expand(4, -1), COHORT) == pytest.approx(CHANGES.norm(dim=1).tolist())
    assert found["update_norm"] == pytest.approx(float(average.norm()))
    assert found["update_divergence"] == pytest.approx(float((CHANGES - average).norm(dim=1).mean() / average.norm()))
    assert found["update_cosine"] == pytest.approx(float(cos(CHANGES, average[None]).mean()))
    assert found["pairwise_cosine"] == pytest.approx(sum(pairs) / 12)
    assert found["gradient_diversity"] == pytest.approx(float((CHANGES**2).sum() / CHANGES.sum(0).norm() ** 2))


def test_the_gauge_of_the_factors_does_not_matter():
    turned = COHORT.clone()
    Q = torch.linalg.qr(torch.randn(2, 2, generator=G))[0]
    for site in (s for s in LAYOUT.sites if s.kind == "lora"):
        A, B = LAYOUT.pair(turned, site)
        A.copy_(Q.T @ A), B.copy_(B @ Q)
    before, after = (update_metrics(gram(LAYOUT, START, x)) for x in (COHORT, turned))
    assert after == pytest.approx(before, rel=1e-5)


def test_clients_that_agree_do_not_diverge():
    found = update_metrics(gram(LAYOUT, START, COHORT[:1].expand(5, -1)))
    assert found["update_divergence"] == pytest.approx(0, abs=1e-6)
    assert found["gradient_diversity"] == pytest.approx(1 / 5)
    assert found["pairwise_cosine"] == pytest.approx(1)


def test_what_is_undefined_is_absent():
    alone = update_metrics(gram(LAYOUT, START, COHORT[:1]))
    assert set(alone) == {"update_norm"}
    still = START.expand(3, -1)
    assert update_metrics(gram(LAYOUT, START, still)) == {"update_norm": 0.0}
    assert update_norms(LAYOUT, still, still) == [0.0] * 3


def test_the_mean_of_one_client_is_that_client_to_the_last_bit():
    assert torch.equal(mean(Adapter(LAYOUT, COHORT[:1]), torch.tensor([7.0])).flat, COHORT[0])


def test_the_mean_is_weighted():
    expected = (COHORT[0] + 3 * COHORT[1]) / 4
    torch.testing.assert_close(mean(Adapter(LAYOUT, COHORT[:2]), torch.tensor([1.0, 3.0])).flat, expected)
