"""Who is drawn, and that the mean over cohorts is that over all clients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfault.registry import build
from fedfault.rounds.engine import begin
from fedfault.selection.size import draw_systematically, find_inclusion, size
from fedfault.testing.toys import Quadratic, federation, run_to_end
from seeded import seeded, seeds

SIZES = [1] * 9 + [31]  # the large client has 0.775 of the data


def of_sizes(sizes=SIZES, m=3, **changes):
    n = len(sizes)
    task = Quadratic([[1.0]] * n, [[float(k)] for k in range(n)], sizes)
    work = {"weighting": "samples", **changes.pop("work", {})}
    return federation(task, cohort_size=m, work=work, **changes)


def mean_shares(fed, rounds=4000) -> np.ndarray:
    """Each client's share in the mean, over so many rounds."""
    total = np.zeros(fed.total_clients)
    for t in range(1, rounds + 1):
        ids = fed.cohort(t)
        weight = torch.tensor([float(fed.task.examples(k)) for k in ids], dtype=torch.float64)
        weight = fed.correct_weights(t, ids, weight)
        total[ids] += (weight / weight.sum()).numpy()
    return total / rounds


@pytest.mark.slow
def test_a_mean_over_uniform_cohorts_counts_large_clients_for_less():
    """In 3 of 10 cohorts it is there, with 31 of 33."""
    assert mean_shares(of_sizes())[-1] == pytest.approx(0.3 * 31 / 33, abs=0.03)


@pytest.mark.slow
def test_a_mean_over_cohorts_drawn_by_size_is_that_over_all_clients():
    shares = mean_shares(of_sizes(selection=size()))
    assert shares[-1] == pytest.approx(31 / 40)  # it is always there, and counts as much
    assert shares[:-1] == pytest.approx(1 / 40, abs=0.005)


@seeded
@given(seeds)
def test_inclusion_is_proportional_to_size_and_sums_to_the_cohort(seed):
    g = np.random.default_rng(seed)
    size, m = g.exponential(size=int(g.integers(1, 12))) ** 2 + 1e-3, int(g.integers(1, 12))
    pi = find_inclusion(size, m)
    assert pi.sum() == pytest.approx(min(m, len(size)))
    assert ((pi > 0) & (pi <= 1)).all()
    some = pi < 1
    assert size[some] / pi[some] == pytest.approx((size / pi)[some].mean() if some.any() else [])
    assert some.sum() == 0 or size[~some].min(initial=np.inf) >= size[some].max()


@pytest.mark.slow
@seeded
@given(seeds, st.floats(0, 0.999999))
def test_as_many_are_drawn_as_asked_for_and_none_twice(seed, start):
    g = np.random.default_rng(seed)
    pi = find_inclusion(g.exponential(size=9) + 0.01, int(g.integers(1, 10)))
    drawn = draw_systematically(pi, start)
    assert len(set(drawn.tolist())) == len(drawn) == round(pi.sum())
    assert set(np.flatnonzero(pi == 1)) <= set(drawn.tolist())


def test_each_is_drawn_at_its_rate():
    pi = find_inclusion(np.array([1.0, 2.0, 3.0, 4.0]), 2)
    drawn = [draw_systematically(pi, (i + 0.5) / 1000) for i in range(1000)]
    assert np.bincount(np.concatenate(drawn)) / 1000 == pytest.approx(pi, abs=2e-3)


def test_the_weights_of_a_cohort_always_sum_to_the_same():
    fed = of_sizes(selection=size())
    for t in range(1, 30):
        ids = fed.cohort(t)
        weight = torch.tensor([float(SIZES[k]) for k in ids], dtype=torch.float64)
        assert float(fed.correct_weights(t, ids, weight).sum()) == pytest.approx(40)


def test_the_server_takes_the_corrected_weights_and_the_record_has_them():
    """One step of SGD on f_k = (x - k)^2 / 2 from 3: client 9 with 31/40, two of the others with 4.5/40 each."""
    fed = of_sizes(selection=size(), num_rounds=1, work={"steps": 1, "lr": 0.1})
    state, records = run_to_end(fed)
    ids = [c.client for c in records[1].clients]
    weights = [31 / 40 if k == 9 else 4.5 / 40 for k in ids]
    assert [c.weight for c in records[1].clients] == pytest.approx(weights)
    start = begin(fed).adapter.flat.item()
    assert state.adapter.flat.item() == pytest.approx(
        sum(w * (start - 0.1 * (start - k)) for w, k in zip(weights, ids, strict=True))
    )


def test_the_mean_of_unbiased_fedavg_over_all_cohorts_is_fedavg_of_all_clients():
    sizes, m, algorithm = [1, 2, 3, 10], 2, build("algorithm", "fedavg", unbiased=True)
    fed = of_sizes(sizes, m)
    state = replace(begin(fed), weights=tuple(map(float, sizes)))
    y = torch.tensor([[1.0], [-2.0], [4.0], [0.5]], dtype=torch.float64)

    def step(ids, how) -> float:
        n = torch.tensor([float(sizes[k]) for k in ids], dtype=torch.float64)
        got = {"x": replace(state.adapter, flat=y[list(ids)]), "n": n}
        pool = lambda a, w: replace(a, flat=(w[:, None] * a.flat).sum(0) / w.sum())  # noqa: E731
        return how.server(state, got, pool).adapter.flat.item()

    cohorts = list(itertools.combinations(range(4), m))
    everyone = step(range(4), build("algorithm", "fedavg"))
    assert np.mean([step(ids, algorithm) for ids in cohorts]) == pytest.approx(everyone)
    assert np.mean([step(ids, build("algorithm", "fedavg")) for ids in cohorts]) != pytest.approx(everyone, abs=0.05)
