"""Robust aggregations: their locations by hand and by reference, their breakdown points, and what factors do to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fedfault.aggregations.foolsgold import weigh_by_cosine
from fedfault.algebra import mask
from fedfault.registry import build, load_builders
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import Uploads

LAYOUT = Layout.of([Site("q", "lora", (2, 4, 5)), Site("head", "full", (3,))], scaling=1.5)
HEAD = LAYOUT.sites[1]
ROBUST = [name for name in load_builders("aggregation") if "robust" in build("aggregation", name).traits]
BOUNDING = [name for name in ROBUST if build("aggregation", name).tolerates(7)]
SPACES = ("factors", "products")


def uploads(rows: torch.Tensor, ranks=None, before=None, weight=None) -> Uploads:
    K = len(rows)
    ranks = torch.tensor([2] * K if ranks is None else ranks)
    x = torch.zeros(LAYOUT.size, dtype=torch.float64) if before is None else before
    sent = Adapter(LAYOUT, rows.double() * mask(LAYOUT, ranks))
    weight = torch.ones(K, dtype=torch.float64) if weight is None else torch.tensor(weight)
    return Uploads(Adapter(LAYOUT, x), sent, weight, ranks, round=1, seed=0)


def drawn(K: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return spread * torch.randn(K, LAYOUT.size, generator=g, dtype=torch.float64)


def combine(name: str, got: Uploads, **options):
    return build("aggregation", name, **options).combine(got)


def with_heads(*heads) -> torch.Tensor:
    """Clients that differ in the three numbers of the head alone."""
    rows = torch.zeros(len(heads), LAYOUT.size, dtype=torch.float64)
    LAYOUT.part(rows, HEAD)[:] = torch.tensor(np.array(heads), dtype=torch.float64)
    return rows


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("K", [4, 5])
def test_the_coordinate_median_of_a_head_is_numpy_s(K, space):
    rows = drawn(K)
    expected = np.median(LAYOUT.part(rows, HEAD).numpy(), axis=0)
    assert LAYOUT.part(combine("coordinate_median", uploads(rows), space=space).adapter.flat, HEAD).tolist() == (
        pytest.approx(expected)
    )


def test_the_trimmed_mean_cuts_off_both_ends():
    rows = with_heads((0, 5, -1), (1, 5, -1), (2, 5, -1), (3, 5, -1), (100, -100, -1))
    found = LAYOUT.part(combine("trimmed_mean", uploads(rows), trim=0.2).adapter.flat, HEAD)
    assert found.tolist() == pytest.approx([2, 5, -1])


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean"])
def test_a_slice_is_located_among_the_clients_that_have_it(name):
    """Of three clients two have slice 1: its location is theirs alone, and one that nobody has stays the server's."""
    rows, before = drawn(3), drawn(1, seed=9)[0]
    found = combine(name, uploads(rows, ranks=(1, 2, 2), before=before)).adapter.flat
    A = LAYOUT.pair(found, LAYOUT.lora[0]).A
    sent = LAYOUT.pair(rows, LAYOUT.lora[0]).A
    torch.testing.assert_close(A[1], sent[1:, 1].mean(0))
    nobody = combine(name, uploads(rows, ranks=(1, 1, 1), before=before)).adapter.flat
    torch.testing.assert_close(
        LAYOUT.pair(nobody, LAYOUT.lora[0]).A[1], LAYOUT.pair(before, LAYOUT.lora[0]).A[1], rtol=0, atol=0
    )


def test_krum_takes_the_client_in_the_middle_by_hand():
    """K = 5, f = 1: two neighbours. Scores 1 + 4, 1 + 1, 1 + 1 (ties: nearer to all), 1 + 4 and far; and the mean of two."""
    rows = with_heads((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (50, 0, 0))
    one = combine("krum", uploads(rows))
    assert LAYOUT.part(one.adapter.flat, HEAD).tolist() == [2, 0, 0]
    assert one.weight.tolist() == [0, 0, 1, 0, 0]
    two = combine("krum", uploads(rows), chosen=2)
    assert LAYOUT.part(two.adapter.flat, HEAD).tolist() == [1.5, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest(seed):
    heads = np.random.default_rng(seed).normal(size=(6, 3)) * [1, 2, 3]
    rows = with_heads(*heads)
    found = LAYOUT.part(combine("geometric_median", uploads(rows)).adapter.flat, HEAD).numpy()
    expected = minimize(lambda z: np.linalg.norm(heads - z, axis=1).sum(), heads.mean(0), tol=1e-12).x
    assert found == pytest.approx(expected, abs=1e-4)


def test_clipping_bounds_a_change_to_its_radius_by_hand():
    """Changes 3 and 4 of the head's first number; at most 2 of it: (2 + 2) / 2, and from v = 2 again (1 + 2) / 2 further."""
    rows = with_heads((3, 0, 0), (4, 0, 0))
    clipped = combine("norm_clipping", uploads(rows), max_norm=2.0)
    assert LAYOUT.part(clipped.adapter.flat, HEAD).tolist() == pytest.approx([2, 0, 0])
    once, twice = (combine("centred_clipping", uploads(rows), radius=2.0, steps=n).adapter.flat for n in (1, 2))
    assert LAYOUT.part(once, HEAD).tolist() == pytest.approx([2, 0, 0])
    assert LAYOUT.part(twice, HEAD).tolist() == pytest.approx([3.5, 0, 0])


def test_norm_clipping_weighs_by_size_and_the_median_does_not():
    rows = with_heads((1, 0, 0), (1, 0, 0), (-1, 0, 0))
    found = {
        name: float(LAYOUT.part(combine(name, uploads(rows, weight=(1.0, 1.0, 8.0))).adapter.flat, HEAD)[0])
        for name in ("norm_clipping", "coordinate_median")
    }
    assert found == pytest.approx({"norm_clipping": -0.6, "coordinate_median": 1.0})


def test_foolsgold_takes_the_votes_of_sybils_away_and_of_like_honest_clients_too():
    sybils = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 5.001]], dtype=torch.float64)
    weight = weigh_by_cosine(sybils @ sybils.T)
    assert weight[2:].sum() < 1e-2
    assert weigh_by_cosine(torch.ones(4, 4, dtype=torch.float64)).tolist() == [0.25] * 4


def gap(name: str, rows: torch.Tensor, **options) -> float:
    """How far the largest weight is that a rule makes of these clients."""
    adapter = combine(name, uploads(rows), **options).adapter
    return max(float(adapter.delta(LAYOUT.lora[0]).abs().max()), float(LAYOUT.part(adapter.flat, HEAD).abs().max()))


def agreed(K: int, many: int, far: float) -> torch.Tensor:
    """K - many honest clients near one point, and so many hostile ones that agree on another, `far` away."""
    rows = drawn(1, seed=1) + drawn(K, seed=2, spread=0.1)
    rows[:many] = far * drawn(1, seed=3).sign()
    return rows


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", BOUNDING)
@pytest.mark.parametrize("K", [7, 10])
def test_as_many_clients_as_a_rule_tolerates_do_not_carry_it_away(name, space, K):
    rule = build("aggregation", name, space=space)
    honest = gap(name, agreed(K, 0, 0), space=space)
    for far in (1e2, 1e6, 1e12):
        assert gap(name, agreed(K, rule.tolerates(K), far), space=space) < 20 * honest


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", BOUNDING)
def test_one_more_than_half_carry_every_rule_away(name, space):
    """The breakdown point is one half at best, whatever the rule."""
    assert gap(name, agreed(7, 4, 1e6), space=space) > 1e3


def test_the_least_cohort_of_a_rule_stands_one_hostile_client():
    for name in BOUNDING:
        rule = build("aggregation", name)
        assert rule.tolerates(rule.least) >= 1
        assert rule.tolerates(rule.least - 1) == 0 or name in ("norm_clipping", "centred_clipping")
    assert [build("aggregation", "krum", hostile=f).least for f in (1, 2)] == [5, 7]
    assert build("aggregation", "trimmed_mean", trim=0.1).least == 10


def turned(rows: torch.Tensor) -> torch.Tensor:
    """(B Q)(Q^T A) with a random rotation a client: the same weights in other factors."""
    rows, g = rows.clone(), torch.Generator().manual_seed(5)
    A, B = LAYOUT.pair(rows, LAYOUT.lora[0])
    Q = torch.linalg.qr(torch.randn(len(rows), 2, 2, generator=g, dtype=torch.float64))[0]
    A.copy_(Q.mT @ A), B.copy_(B @ Q)
    return rows


@pytest.mark.parametrize("name", ROBUST)
def test_a_rule_on_products_does_not_depend_on_how_a_product_is_cut_into_factors(name):
    """On factors it does, but where Krum chooses one client, whose product is whole in any factors."""
    rows = drawn(5)
    for space in SPACES:
        one, other = (
            combine(name, uploads(r), space=space).adapter.delta(LAYOUT.lora[0]) for r in (rows, turned(rows))
        )
        assert torch.allclose(one, other, atol=1e-6) == (space == "products" or name == "krum")


def test_the_median_of_factors_is_not_the_median_of_products():
    """B A = 1 * 4, 2 * 2 and 4 * 1 are the same number, 4, and so is its median; the medians of the factors make 2 * 2."""
    layout = Layout.of([Site("w", "lora", (1, 1, 1))])
    rows = torch.tensor([[4.0, 1.0], [1.0, 4.0], [9.0, 9.0]], dtype=torch.float64)  # B A = 4, 4 and 81
    x = Adapter(layout, torch.zeros(2, dtype=torch.float64))
    got = Uploads(x, Adapter(layout, rows), torch.ones(3).double(), torch.ones(3).long(), 1, 0)
    found = {s: float(combine("coordinate_median", got, space=s).adapter.delta(layout.lora[0])) for s in SPACES}
    assert found == pytest.approx({"factors": 16.0, "products": 4.0})


def test_the_median_of_products_is_the_dense_median_cut_to_the_rank():
    rows = drawn(5)
    dense = Adapter(LAYOUT, rows).delta(LAYOUT.lora[0]).numpy()
    U, S, Vh = np.linalg.svd(np.median(dense, axis=0))
    expected = (U[:, :2] * S[:2]) @ Vh[:2]
    found = combine("coordinate_median", uploads(rows), space="products").adapter.delta(LAYOUT.lora[0])
    assert found.numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["krum", "geometric_median", "centred_clipping", "norm_clipping"])
def test_in_products_a_step_is_the_sum_of_changes_cut_to_the_rank(name):
    """x + sum_k c_k (y_k - x) as dense matrices, with the weights that the rule says, unequal ranks included."""
    rows, before, ranks = drawn(6), drawn(1, seed=7)[0], torch.tensor([1, 2, 2, 1, 2, 2])
    got = uploads(rows, ranks=ranks.tolist(), before=before)
    pooled = combine(name, got, space="products")
    site, start = LAYOUT.lora[0], before * mask(LAYOUT, ranks)
    changes = got.sent.delta(site) - Adapter(LAYOUT, start).delta(site)
    whole = Adapter(LAYOUT, before).delta(site) + torch.einsum("k,kij->ij", pooled.weight, changes)
    U, S, Vh = torch.linalg.svd(whole)
    torch.testing.assert_close(pooled.adapter.delta(site), (U[:, :2] * S[:2]) @ Vh[:2])
    assert math.isclose(float(pooled.weight.sum()), 1.0, abs_tol=1e-9) == (name in ("krum", "geometric_median"))


def test_fltrust_takes_directions_at_the_trusted_length_and_nothing_that_points_back():
    """Client 5 is trusted, (1, 0, 0). (30, 0, 0) counts at length 1, (0, 7, 0) and (-2, 0, 0) not at all."""
    rows = with_heads((30, 0, 0), (1, 0, 0), (0, 7, 0), (-2, 0, 0))
    got = uploads(rows)._replace(clients=(2, 5, 7, 9))
    found = combine("fltrust", got, trusted=5)
    assert LAYOUT.part(found.adapter.flat, HEAD).tolist() == pytest.approx([1, 0, 0])
    assert found.weight.tolist() == pytest.approx([1 / 60, 1 / 2, 0, 0])
    nobody = combine("fltrust", got, trusted=4)
    assert not nobody.weight.any()
    assert torch.equal(nobody.adapter.flat, got.before.flat)


def test_fltrust_stands_any_number_while_the_trusted_client_is_honest():
    for many in (3, 6):
        rows = agreed(7, many, 1e6)
        assert float(combine("fltrust", uploads(rows), trusted=6).adapter.flat.abs().max()) < 20
    assert float(combine("fltrust", uploads(agreed(7, 1, 1e6)), trusted=0).adapter.flat.abs().max()) > 1e3
