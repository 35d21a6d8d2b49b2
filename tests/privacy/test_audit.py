"""The audit in one run: what canaries prove, with noise and without."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedfault.diagnosis.verdict import judge_run
from fedfault.privacy import clients
from fedfault.privacy.audit import Canaries, bound_by_scores, bound_epsilon, find_probability
from fedfault.records import FAILED
from fedfault.testing.toys import Pulled, run_to_end
from hidden import hide_toy, make_budget


def test_all_guesses_right_is_the_power_of_one_being_right():
    assert find_probability(10, 10, 10, 1.0, 0.0) == pytest.approx((math.e / (1 + math.e)) ** 10)


def test_a_delta_adds_what_the_theorem_says():
    """One guess of one canary: f(1) = p, f(0) = 1, so that P <= p + 2 delta (1 - p)."""
    p = 1 / (1 + math.exp(-0.5))
    assert find_probability(1, 1, 1, 0.5, 0.01) == pytest.approx(p + 2 * 0.01 * (1 - p))


def test_guesses_by_chance_prove_nothing():
    assert bound_epsilon(100, 100, 55, 0.0, 0.05) == 0.0


@pytest.mark.slow
def test_randomised_response_is_bounded_by_its_own_epsilon():
    """Canaries whose membership is told truly with probability e / (1 + e): epsilon is 1."""
    g = np.random.default_rng(0)
    included = g.random(20_000) < 0.5
    truly = g.random(20_000) < math.e / (1 + math.e)
    scores = np.where(truly, included, ~included) + 1e-6 * g.random(20_000)
    found = bound_by_scores(scores, included, 0.0, 0.05)
    assert 0.9 < found <= 1.0


def run_audited(noise: float, delta: float = 1e-5):
    budget = make_budget("client", 4, noise, 4, 4, delta=delta, canaries=200)
    return run_to_end(hide_toy(Pulled(), budget=budget, clients=4, work={"steps": 1, "lr": 0.1}))[1]


@pytest.mark.long
def test_a_run_with_its_noise_is_never_above_its_claim():
    for r in run_audited(0.5)[1:]:
        assert 0.5 < r.probes["epsilon_audited"] < r.probes["epsilon"]
    assert judge_run(run_audited(0.5), None)["state"] != FAILED


@pytest.mark.slow
def test_a_run_that_lost_its_noise_fails_by_its_own_audit(monkeypatch):
    monkeypatch.setattr(clients, "draw_noise", lambda size, std, *stream: torch.zeros(size, dtype=torch.float64))
    records = run_audited(8.0)
    last = records[-1].probes
    assert last["epsilon_audited"] > last["epsilon"]
    verdict = judge_run(records, None)
    assert verdict["state"] == FAILED
    assert "broken_privacy" in verdict["causes"]


@pytest.mark.slow
def test_at_a_large_delta_a_second_audit_at_a_small_one_finds_out_what_the_first_cannot(monkeypatch):
    monkeypatch.setattr(clients, "draw_noise", lambda size, std, *stream: torch.zeros(size, dtype=torch.float64))
    records = run_audited(8.0, delta=0.01)
    last = records[-1].probes
    assert last["epsilon_audited"] == 0.0  # 2 m delta = 4: nothing can be proved
    assert last["epsilon_small_audited"] > last["epsilon_small"] > last["epsilon"]
    assert judge_run(records, None)["causes"] == ["broken_privacy"]


@pytest.mark.slow
def test_a_run_at_a_small_delta_has_one_audit():
    budget = make_budget("client", 2, 1.0, 4, 4, delta=1e-6, canaries=10)
    assert Canaries(budget).deltas == (1e-6,)
    assert Canaries(replace(budget, delta=1e-3)).deltas == (1e-3, 1e-5)
    assert budget.spend(2, 1e-9) > budget.spend(2) == budget.spend(2, 1e-6)
