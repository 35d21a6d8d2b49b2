"""Attention entropy between its ends, and what the probe leaves out."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets
from fedfault.metrics.attention import entropy
from fedfault.registry import build
from fedfault.tasks.language import LanguageTask
from fedfault.testing.toys import Quadratic
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State
from fedfault.types.task import FinishedRound, States
from tiny import VOCAB

B, H, T = 2, 3, 5
ALL = torch.ones(B, T, dtype=torch.bool)
UNIFORM = (torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]).expand(B, H, T, T)
ONE_HOT = torch.eye(T).expand(B, H, T, T)


class Seen:
    """A task whose models have the weights that they are said to have."""

    def __init__(self, now, base, mask=ALL) -> None:
        self.now, self.base, self.mask, self.asked = now, base, mask, []

    def states(self, params, blocks):
        return States([], self.mask[:blocks])

    def attention(self, params, blocks):
        self.asked.append(blocks)
        found = self.base if params is None else self.now
        return None if found is None else [w[:blocks] for w in found]


def finished(task, flat=None) -> FinishedRound:
    after = State(Adapter(getattr(task, "layout", None), torch.zeros(1) if flat is None else flat))
    around = {"clients": [0], "start": torch.zeros(1), "averages": [], "halves": None, "private": False}
    return FinishedRound(round=1, seed=0, task=task, before=after, after=after, trained=SimpleNamespace(), **around)


def test_uniform_attention_has_entropy_one_and_attention_to_one_token_zero():
    assert entropy(UNIFORM, ALL) == pytest.approx(1)
    assert entropy(ONE_HOT, ALL) == 0


def test_the_entropy_is_over_the_logarithm_of_the_keys_that_a_query_may_look_at():
    weights = ONE_HOT.clone()
    weights[:, :, 3] = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])  # log 2 / log 4 for one query of the four that count
    assert entropy(weights, ALL) == pytest.approx(0.5 / 4)
    weights[:, 1:, 3] = 0
    weights[:, 1:, 3, 0] = 1  # and now for one head of three
    assert entropy(weights, ALL) == pytest.approx(0.5 / 12)


def test_queries_that_predict_nothing_and_the_first_one_do_not_count():
    weights = UNIFORM.clone()
    weights[0, :, 3:], weights[1, :, 1:] = 0, ONE_HOT[1, :, 1:]
    weights[0, :, 3:, 0] = 1
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    assert entropy(weights, mask) == pytest.approx(1)
    assert math.isnan(entropy(UNIFORM, ALL & (torch.arange(T) == 0)))


def test_every_layer_is_reported_beside_the_base():
    found = build("probe", "attention").measure(finished(Seen([ONE_HOT, UNIFORM], [UNIFORM, ONE_HOT]))).probes
    assert found == pytest.approx(
        {
            "attention_entropy/1": 0.0,
            "attention_entropy_base/1": 1.0,
            "attention_entropy/2": 1.0,
            "attention_entropy_base/2": 0.0,
        }
    )


def test_what_is_not_a_number_or_not_given_is_absent():
    probe = build("probe", "attention")
    found = probe.measure(finished(Seen([torch.full_like(UNIFORM, math.nan)], [UNIFORM]))).probes
    assert set(found) == {"attention_entropy_base/1"}
    assert probe.measure(finished(Seen(None, None))).probes == {}
    assert probe.measure(finished(Quadratic([[1.0]], [[0.0]], [1]))).probes == {}


def test_long_blocks_are_fewer():
    for length, expected in ((100, 4), (128, 4), (200, 1), (512, 1)):
        weights = torch.ones(4, 1, length, length).tril()
        task = Seen([weights], [weights], torch.ones(4, length, dtype=torch.bool))
        build("probe", "attention").measure(finished(task))
        assert task.asked == [expected] * 2


def test_the_untrained_model_has_the_entropy_of_the_base_and_a_trained_one_another(tiny):
    c = CohortModel(tiny(), lora_targets(tiny(), None), r=2, alpha=4.0)
    g = torch.Generator().manual_seed(0)
    blocks = Blocks(torch.randint(VOCAB, (3, 8), generator=g), torch.tensor([7, 7, 4]))
    task = LanguageTask(c, [blocks], {"topic/a": blocks}, {"topic/a": 1.0})
    probe, start = build("probe", "attention", blocks=3), task.init(0)
    found = probe.measure(finished(task, start.flat)).probes
    assert len(found) == 4
    assert all(0 < v < 1 for v in found.values())
    for L in (1, 2):
        assert found[f"attention_entropy/{L}"] == pytest.approx(found[f"attention_entropy_base/{L}"], rel=1e-5)
    moved = replace(start, flat=start.flat + 0.3 * torch.randn(start.flat.shape, generator=g))
    later = probe.measure(finished(task, moved.flat)).probes
    assert later["attention_entropy/2"] != pytest.approx(found["attention_entropy/2"], rel=1e-3)
    assert later["attention_entropy_base/2"] == found["attention_entropy_base/2"]
