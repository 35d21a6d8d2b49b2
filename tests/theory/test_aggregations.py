"""What each aggregation promises of sum_k p_k s B_k A_k, in float64 to 1e-10: d_in != d_out, unequal ranks, s != 1.

Through `combine` alone; rounds of the engine are in test_aggregation_rounds.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.aggregations.hetlora import product_norms
from fedfault.algebra import mask, mean
from fedfault.registry import build
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import Pooled, Uploads

K, R = 4, 3
LAYOUT = Layout.of([Site("q", "lora", (R, 9, 14)), Site("bias", "full", (5,)), Site("v", "lora", (R, 16, 7))], 2.5)
P = torch.tensor([3.0, 1.0, 7.0, 2.0], dtype=torch.float64) / 13
EQUAL, UNEQUAL = (R,) * K, (1, 3, 2, 3)
EXACT = ["flora", "fedex_lora"]
MEANS = ["fedit", "zero_pad", "blockwise"]


def uploads(ranks=UNEQUAL, weight=P * 13, seed: int = 0) -> Uploads:
    g = torch.Generator().manual_seed(seed)
    before, sent = (torch.randn(*n, LAYOUT.size, generator=g, dtype=torch.float64) for n in ((), (len(ranks),)))
    sent = sent * mask(LAYOUT, torch.tensor(ranks))
    return Uploads(Adapter(LAYOUT, before), Adapter(LAYOUT, sent), weight, torch.tensor(ranks), round=3, seed=11)


def combine(name: str, got: Uploads, **options) -> Pooled:
    return build("aggregation", name, **options).combine(got)


def exact(got: Uploads, site: Site) -> torch.Tensor:
    """s sum_k p_k B_k A_k, dense: (d_out, d_in)."""
    return torch.einsum("k,kij->ij", got.weight / got.weight.sum(), got.sent.delta(site))


def change(pooled: Pooled, site: Site) -> torch.Tensor:
    """What the site's weight becomes, less the frozen weight before the round."""
    fold = pooled.fold.get(site.name)
    return pooled.adapter.delta(site) + (0 if fold is None else fold.B @ fold.A)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def turned(got: Uploads) -> Uploads:
    """(B_k, A_k) -> (B_k Q_k, Q_k^T A_k) with a random rotation a client and site: the same weights."""
    flat, g = got.sent.flat.clone(), torch.Generator().manual_seed(5)
    for site in LAYOUT.lora:
        A, B = LAYOUT.pair(flat, site)
        Q = torch.linalg.qr(torch.randn(len(flat), R, R, generator=g, dtype=torch.float64))[0]
        A.copy_(Q.mT @ A), B.copy_(B @ Q)
    return got._replace(sent=Adapter(LAYOUT, flat))


@pytest.mark.parametrize("site", LAYOUT.lora, ids=lambda s: s.name)
def test_the_error_of_averaging_factors_is_their_cross_covariance(site):
    """I-L1: sum p B A - mean(B) mean(A) = sum p (B - mean B)(A - mean A), with the norm bound of Cauchy and Schwarz."""
    got = uploads(EQUAL)
    A, B = LAYOUT.pair(got.sent.flat, site)
    mean_A, mean_B = (torch.einsum("k,kij->ij", P, f) for f in (A, B))
    C = LAYOUT.scaling * torch.einsum("k,kij->ij", P, (B - mean_B) @ (A - mean_A))
    close(exact(got, site) - change(combine("fedit", got), site), C)
    spread = [(P * (f - m).pow(2).sum((1, 2))).sum().sqrt() for f, m in ((A, mean_A), (B, mean_B))]
    assert C.norm() <= LAYOUT.scaling * spread[0] * spread[1]


@pytest.mark.parametrize("shared", ["A", "B", "one client"])
def test_averaging_factors_is_exact_where_a_factor_is_shared(shared):
    """I-L2."""
    got = uploads((R,), P[:1]) if shared == "one client" else uploads(EQUAL)
    for site in LAYOUT.lora if shared in "AB" else ():
        factor = getattr(LAYOUT.pair(got.sent.flat, site), shared)
        factor.copy_(factor[0].clone().expand_as(factor))
    for site in LAYOUT.lora:
        close(change(combine("fedit", got), site), exact(got, site))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("blockwise", {}),
        ("zero_pad", {}),
        ("zero_pad", {"pad": "deltas"}),
        ("hetlora", {"weighting": "samples"}),
    ],
)
def test_with_equal_ranks_these_are_fedit_bit_for_bit(name, options):
    """I-L3, I-B1, I-H2."""
    got = uploads(EQUAL)
    assert torch.equal(combine(name, got, **options).adapter.flat, combine("fedit", got).adapter.flat)


@pytest.mark.parametrize("name", [*EXACT, "flexlora", "fedit"])
def test_only_fedit_depends_on_the_gauge_of_the_factors(name):
    """I-L4, I-FX3: the same weights in other factors give the same weights, but for FedIT, which is why it is inexact."""
    got = uploads(EQUAL)
    for site in LAYOUT.lora:
        gap = float((change(combine(name, got), site) - change(combine(name, turned(got)), site)).norm())
        assert gap > 0.1 if name == "fedit" else gap < 1e-10


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("ranks", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("site", LAYOUT.lora, ids=lambda s: s.name)
def test_stacking_and_the_residual_give_the_exact_mean(name, ranks, site):
    """I-FL1, I-E1."""
    got = uploads(ranks)
    close(change(combine(name, got), site), exact(got, site))


def test_flora_of_one_client_merges_it():
    """I-FL3: W0 + s B A, and the new adapter does nothing yet."""
    got = uploads((2,), P[:1])
    pooled = combine("flora", got)
    for site in LAYOUT.lora:
        close(pooled.fold[site.name].B @ pooled.fold[site.name].A, got.sent.delta(site)[0])
        assert not pooled.adapter.delta(site).any()


def test_flora_s_weights_are_in_one_factor_and_its_stack_has_the_sum_of_ranks():
    got = uploads(UNEQUAL)
    A, B = combine("flora", got).fold["v"]
    theirs = LAYOUT.pair(got.sent.flat, LAYOUT.lora[1])
    assert A.shape == (1 + 3 + 2 + 3, 16)
    assert torch.equal(A[1:4], theirs.A[1])
    close(B[:, 1:4], 2.5 * P[1] * theirs.B[1])


def test_flora_draws_the_new_adapter_from_the_seed_and_the_round_alone():
    one, other = combine("flora", uploads(seed=0)), combine("flora", uploads(seed=1))
    lora = torch.cat([one.adapter.flat[s.offset : s.offset + s.size] for s in LAYOUT.lora])
    same = torch.cat([other.adapter.flat[s.offset : s.offset + s.size] for s in LAYOUT.lora])
    assert torch.equal(lora, same)
    later = combine("flora", uploads()._replace(round=4)).adapter.flat
    assert not torch.equal(LAYOUT.pair(later, LAYOUT.lora[0]).A, LAYOUT.pair(one.adapter.flat, LAYOUT.lora[0]).A)
    assert LAYOUT.pair(later, LAYOUT.lora[0]).A.abs().max() <= 1 / 3  # 1 / sqrt(d_in), d_in = 9


@pytest.mark.parametrize("site", LAYOUT.lora, ids=lambda s: s.name)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_first_slices_of_flexlora_are_the_best_approximation_of_their_rank(site, rank):
    """I-FX1 (Eckart and Young), I-FX4: every rank's model is a truncation of the next one's."""
    got = uploads(EQUAL)
    W, adapter = exact(got, site), combine("flexlora", got).adapter
    cut = Adapter(LAYOUT, adapter.flat * mask(LAYOUT, torch.tensor([rank]))[0])
    sigma = torch.linalg.svdvals(W)
    close((W - cut.delta(site)).norm() ** 2, (sigma[rank:] ** 2).sum())
    close(torch.linalg.svdvals(cut.delta(site))[:rank], sigma[:rank])


@pytest.mark.parametrize("ranks", [(1, 1, 1), (1, 2), (3,)])
def test_flexlora_is_exact_where_the_rank_suffices(ranks):
    """I-FX2."""
    got = uploads(ranks, P[: len(ranks)])
    for site in LAYOUT.lora:
        close(change(combine("flexlora", got), site), exact(got, site))


def test_flexlora_splits_evenly_and_fixes_the_signs():
    flat = combine("flexlora", uploads(EQUAL)).adapter.flat
    for site in LAYOUT.lora:
        A, B = LAYOUT.pair(flat, site)
        close(A.norm(dim=1), B.norm(dim=0))
        assert (B.gather(0, B.abs().argmax(0, keepdim=True)) > 0).all()


def test_flexlora_revives_components_of_size_zero():
    """B10: clients that agree on a product of rank 1 leave two slices of zeros, which get B = 0 and a new A."""
    got = uploads((1, 1, 1, 1))
    agreed = got._replace(sent=Adapter(LAYOUT, got.sent.flat[:1].expand(4, -1)))
    for alive, some in ((1, agreed), (0, agreed._replace(sent=Adapter(LAYOUT, torch.zeros(4, LAYOUT.size).double())))):
        A, B = LAYOUT.pair(combine("flexlora", some).adapter.flat, LAYOUT.lora[0])
        assert (B[:, :alive].norm(dim=0) > 0.1).all()
        assert not B[:, alive:].any()
        assert (A.norm(dim=1) > 0.1).all()


@pytest.mark.parametrize(("ranks", "width"), [(EQUAL, 3 * R), (UNEQUAL, 3 + 2 + 3), ((2,), 0)])
def test_fedex_s_residual_has_rank_of_all_clients_but_one(ranks, width):
    """I-E4: rank (K - 1) r; where ranks differ, all but the smallest."""
    fold = combine("fedex_lora", uploads(ranks, P[: len(ranks)] * 13)).fold
    assert all(len(pair.A) == width for pair in fold.values())
    q = fold["q"]
    assert torch.linalg.matrix_rank(q.B @ q.A) == min(width, 9)


def test_fedex_leaves_the_weights_alone_where_clients_agree():
    """I-E2."""
    got = uploads(EQUAL)
    got = got._replace(sent=Adapter(LAYOUT, got.sent.flat[:1].expand(K, -1)))
    assert not any((pair.B @ pair.A).any() for pair in combine("fedex_lora", got).fold.values())


@pytest.mark.parametrize("kept", [1, 4, 20])
def test_a_truncated_residual_is_off_by_the_norm_of_the_rest(kept):
    """Spec B6: error sum_{j > r'} sigma_j^2 of s C."""
    got = uploads(EQUAL)
    for site in LAYOUT.lora:
        whole = combine("fedex_lora", got).fold[site.name]
        pooled = combine("fedex_lora", got, residual_rank=kept)
        sigma = torch.linalg.svdvals(whole.B @ whole.A)
        close((change(pooled, site) - exact(got, site)).norm() ** 2, (sigma[kept:] ** 2).sum())
        assert len(pooled.fold[site.name].A) == min(kept, 3 * R)


def test_blockwise_by_hand():
    """Weights 3, 1, 7, 2 and ranks 1, 3, 2, 3: slice 1 belongs to clients 1, 2, 3, slice 2 to clients 1 and 3."""
    got = uploads(UNEQUAL)
    pooled = combine("blockwise", got).adapter.flat
    A, B = LAYOUT.pair(pooled, LAYOUT.lora[0])
    theirs = LAYOUT.pair(got.sent.flat, LAYOUT.lora[0])
    close(A[0], torch.einsum("k,ki->i", P, theirs.A[:, 0]))
    close(A[1], (1 * theirs.A[1, 1] + 7 * theirs.A[2, 1] + 2 * theirs.A[3, 1]) / 10)
    close(B[:, 2], (1 * theirs.B[1, :, 2] + 2 * theirs.B[3, :, 2]) / 3)


def test_blockwise_keeps_what_nobody_has_and_takes_what_one_has():
    """I-B3, I-B4, bit for bit."""
    got = uploads((1, 2, 1, 1))
    pooled = combine("blockwise", got).adapter.flat
    for site in LAYOUT.lora:
        after, before, sent = (LAYOUT.pair(f, site) for f in (pooled, got.before.flat, got.sent.flat))
        assert torch.equal(after.A[1], sent.A[1, 1])
        assert torch.equal(after.B[:, 1], sent.B[1, :, 1])
        assert torch.equal(after.A[2], before.A[2])
        assert torch.equal(after.B[:, 2], before.B[:, 2])


@pytest.mark.parametrize("options", [{}, {"pad": "deltas"}])
def test_zero_padding_by_hand(options):
    """Slice 2 belongs to clients 1 and 3 with weights 1 and 2 of 13: parameters or changes of the others are zero."""
    got = uploads(UNEQUAL)
    A = LAYOUT.pair(combine("zero_pad", got, **options).adapter.flat, LAYOUT.lora[0]).A
    x, y = LAYOUT.pair(got.before.flat, LAYOUT.lora[0]).A, LAYOUT.pair(got.sent.flat, LAYOUT.lora[0]).A
    padded = (1 * y[1, 2] + 2 * y[3, 2]) / 13
    stepped = x[2] + (1 * (y[1, 2] - x[2]) + 2 * (y[3, 2] - x[2])) / 13
    close(A[2], stepped if options else padded)


def test_hetlora_s_norms_are_those_of_the_dense_products():
    """I-H4: the trace trick over two sites."""
    got = uploads(UNEQUAL)
    dense = torch.stack([got.sent.delta(site).pow(2).sum((1, 2)) for site in LAYOUT.lora]).sum(0).sqrt()
    close(product_norms(LAYOUT, got.sent.flat), dense)


def test_hetlora_weighs_factors_by_norms_and_the_rest_by_the_clients_weights():
    got = uploads(UNEQUAL)
    pooled, S = combine("hetlora", got), product_norms(LAYOUT, got.sent.flat)
    site = LAYOUT.lora[1]
    for after, sent in zip(LAYOUT.pair(pooled.adapter.flat, site), LAYOUT.pair(got.sent.flat, site), strict=True):
        close(after, torch.einsum("k,kij->ij", S / S.sum(), sent))
    close(pooled.weight / pooled.weight.sum(), S / S.sum())


def test_hetlora_without_norms_falls_back_to_the_clients_weights():
    """B = 0 everywhere, as before the first step: 0 / 0."""
    got = uploads(EQUAL)
    for site in LAYOUT.lora:
        LAYOUT.pair(got.sent.flat, site).B.zero_()
    assert torch.equal(combine("hetlora", got).adapter.flat, mean(got.sent, got.weight).flat)


@pytest.mark.parametrize("name", [*MEANS, *EXACT, "hetlora", "flexlora"])
def test_a_lone_client_gets_back_the_function_that_it_sent(name):
    """I-SCL: one scalar s for all ranks, so that padding, truncation and refactoring leave a client's output alone."""
    got = uploads((2,), P[:1])
    pooled, X = combine(name, got), torch.randn(8, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cut = pooled._replace(adapter=replace(got.before, flat=pooled.adapter.flat * mask(LAYOUT, got.ranks)[0]))
    for site in LAYOUT.lora:
        x = X[:, : site.shape[1]]
        close(x @ change(cut, site).T, x @ got.sent.delta(site)[0].T)


def turned_from(before: Adapter, K: int, spread: float) -> Uploads:
    """Clients that each write nearly the server's factors, in a basis of their own."""
    g = torch.Generator().manual_seed(4)
    near = before.flat + spread * torch.randn(K, LAYOUT.size, generator=g, dtype=torch.float64)
    got = uploads(EQUAL)
    return turned(got._replace(before=before, sent=Adapter(LAYOUT, near)))


@pytest.mark.parametrize("align", ["A", "B"])
def test_turning_undoes_what_clients_turned(align):
    """FedRot: clients that hold one product in unlike factors give that product, where FedIT gives another one."""
    before = Adapter(LAYOUT, uploads().before.flat)
    got = turned_from(before, K, 0.0)
    for site in LAYOUT.lora:
        close(change(combine("fedrot_lora", got, align=align), site), before.delta(site))
        assert (change(combine("fedit", got), site) - before.delta(site)).norm() > 1


def test_turning_keeps_every_client_s_product_and_lowers_the_error():
    """The error of averaging falls where clients are near the server's model; nothing else is lost by it."""
    got = turned_from(Adapter(LAYOUT, uploads().before.flat), K, 0.2)
    for site in LAYOUT.lora:
        plain, by_A, soft = (
            float((change(combine(name, got, **options), site) - exact(got, site)).norm())
            for name, options in (
                ("fedit", {}), ("fedrot_lora", {"align": "A"}), ("fedrot_lora", {"align": "A", "strength": 0.5})
            )
        )  # fmt: skip
        assert by_A < 0.2 * plain
        assert by_A < soft < plain
    one = got._replace(sent=Adapter(LAYOUT, got.sent.flat[:1]), weight=P[:1], ranks=got.ranks[:1])
    for site in LAYOUT.lora:
        close(change(combine("fedrot_lora", one), site), exact(one, site))


def test_factors_are_turned_to_the_server_s_a_in_odd_rounds_and_b_in_even_ones():
    got = turned_from(Adapter(LAYOUT, uploads().before.flat), K, 0.3)
    for round, align in ((3, "A"), (4, "B")):
        one, other = (
            combine("fedrot_lora", got._replace(round=round), align=a).adapter.flat for a in ("alternate", align)
        )
        assert torch.equal(one, other)


def test_where_there_is_nothing_to_turn_to_factors_stay():
    """B of the server is zero before the first round: FedIT, to the bit of its rounding."""
    got = uploads(EQUAL)
    before = got.before.flat.clone()
    for site in LAYOUT.lora:
        LAYOUT.pair(before, site).B.zero_()
    got = got._replace(before=Adapter(LAYOUT, before))
    close(combine("fedrot_lora", got, align="B").adapter.flat, combine("fedit", got).adapter.flat)


@pytest.mark.parametrize("every", [1, 3])
def test_fedsvd_keeps_the_exact_mean_and_makes_a_orthonormal(every):
    """With the server's A at every client the mean of B is exact, and the SVD changes nothing of the product."""
    got = uploads(EQUAL)
    for site in LAYOUT.lora:
        LAYOUT.pair(got.sent.flat, site).A.copy_(LAYOUT.pair(got.before.flat, site).A.expand(K, -1, -1))
    pooled = combine("fedsvd", got, every=every)  # of round 3
    for site in LAYOUT.lora:
        close(change(pooled, site), exact(got, site))
        A = LAYOUT.pair(pooled.adapter.flat, site).A
        close(A @ A.mT, torch.eye(R, dtype=torch.float64))
    assert torch.equal(combine("fedsvd", got, every=2).adapter.flat, combine("fedit", got).adapter.flat)


@pytest.mark.parametrize("every", [1, 2])
def test_fedsvd_keeps_the_exact_mean_with_unequal_ranks_also_between_two_decompositions(every):
    """Rows of A that a client lacks counted as zero in rounds without one: the product was off by a third."""
    got = uploads(UNEQUAL)
    for site in LAYOUT.lora:
        A = LAYOUT.pair(got.before.flat, site).A
        for k, rank in enumerate(UNEQUAL):
            own = LAYOUT.pair(got.sent.flat, site).A[k]
            own.copy_(A)
            own[rank:] = 0
    pooled = combine("fedsvd", got, every=every)
    for site in LAYOUT.lora:
        close(change(pooled, site), exact(got, site))
    if every == 2:
        site = LAYOUT.lora[0]
        close(LAYOUT.pair(pooled.adapter.flat, site).A, LAYOUT.pair(got.before.flat, site).A)


@pytest.mark.parametrize("site", LAYOUT.lora, ids=lambda s: s.name)
def test_raflora_averages_every_slice_over_its_owners(site):
    """As a dense matrix: sum_j sum_{k has j} p_k / (sum of the owners' p) B_k[:, j] A_k[j], cut to the rank."""
    got = uploads(UNEQUAL)
    A, B = LAYOUT.pair(got.sent.flat, site)
    whole = torch.zeros(B.shape[1], A.shape[2], dtype=torch.float64)
    for j in range(R):
        owners = [k for k in range(K) if UNEQUAL[k] > j]
        for k in owners:
            whole += P[k] / P[owners].sum() * torch.outer(B[k, :, j], A[k, j])
    U, S, Vh = torch.linalg.svd(whole)
    close(change(combine("raflora", got), site), LAYOUT.scaling * (U[:, :R] * S[:R]) @ Vh[:R])


def test_raflora_is_flexlora_with_equal_ranks_and_does_not_decay_with_unequal_ones():
    """The published mechanism: of a slice that a share rho of the weight has, FlexLoRA keeps rho an idle round."""
    got = uploads(EQUAL)
    for site in LAYOUT.lora:
        close(change(combine("raflora", got), site), change(combine("flexlora", got), site))
    layout = Layout.of([Site("w", "lora", (2, 3, 3))])
    left = {}
    for name in ("flexlora", "raflora"):
        x = torch.zeros(layout.size, dtype=torch.float64)
        A, B = layout.pair(x, layout.lora[0])
        A[:] = torch.eye(3)[:2]
        B[:] = torch.diag(torch.tensor([2.0, 1.0, 0.0]))[:, :2]
        for t in range(3):
            ranks = torch.tensor([1, 2])
            sent = Adapter(layout, x * mask(layout, ranks))
            got = Uploads(Adapter(layout, x), sent, torch.ones(2).double(), ranks, t + 1, 0)
            x = combine(name, got).adapter.flat
        left[name] = torch.linalg.svdvals(Adapter(layout, x).delta(layout.lora[0]))[:2].tolist()
    assert left["flexlora"] == pytest.approx([2.0, 1 / 8])  # half of the weight, three idle rounds
    assert left["raflora"] == pytest.approx([2.0, 1.0])
