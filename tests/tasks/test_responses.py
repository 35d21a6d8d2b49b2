"""Conversations in the language-model task: rows of unequal length in groups, in company, with dropout and a cache."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.tasks import base, grouping
from fedfault.tasks.grouping import group_columns
from fedfault.tasks.language import LanguageTask
from fedfault.text.conversing import EncodedConversation
from fedfault.text.questions import Choices, Questions
from fedfault.text.responses import Responses
from fedfault.types.task import Step
from tiny import VOCAB, tiny_gpt2, tiny_llama

SIZES = (5, 9, 13)


def conversations(seed: int, n: int) -> Responses:
    """Rows of 3 to 17 tokens, of which the first is never a target and the last always."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(3, 18, (n,), generator=g).tolist():
        mask = [False, *(torch.rand(length - 2, generator=g) < 0.4).tolist(), True]
        rows.append(EncodedConversation(torch.randint(1, VOCAB, (length,), generator=g).tolist(), mask))
    return Responses.from_rows(rows, 64)


def task(build=tiny_llama, dropout: float = 0.0, cache_mb: int = 0, partial: bool = False) -> LanguageTask:
    model = build(blocks=3)
    targets = partial_targets(model, 1, []) if partial else lora_targets(model, None)
    opened = CohortModel(model, targets, r=2, alpha=4.0, dropout=dropout)
    clients = [conversations(k, n) for k, n in enumerate(SIZES)]
    return LanguageTask(opened, clients, {"topic/a": conversations(7, 6)}, {"topic/a": 1.0}, cache_mb=cache_mb)


def moved(t: LanguageTask, k: int = 3) -> torch.Tensor:
    return t.init(0).flat + 0.2 * torch.randn(k, t.layout.size, generator=torch.Generator().manual_seed(3))


def whole(key: torch.Tensor | None = None, extra_loss=None) -> Step:
    rows = torch.arange(max(SIZES)).expand(3, -1)
    real = rows < torch.tensor(SIZES)[:, None]
    return Step(torch.arange(3), rows.where(real, 0), real, key, extra_loss)


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_groups_of_equal_length_give_what_one_padded_pass_gives(build, dropout, monkeypatch):
    t, key = task(build, dropout), torch.tensor([4, 5, 6])
    monkeypatch.setattr(grouping, "PASS", 0)
    found = t.grad(moved(t), whole(key))
    monkeypatch.setattr(base, "group_columns", lambda lengths, most: group_columns(lengths, None))
    for mine, theirs in zip(found, t.grad(moved(t), whole(key)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert found[2].tolist() == [conversations(k, n).num_tokens for k, n in enumerate(SIZES)]


@pytest.mark.slow
def test_the_loss_is_the_mean_of_what_transformers_says_of_each_target():
    t, model = task(), tiny_llama(blocks=3)
    loss, _, tokens = t.grad(t.init(0).flat.expand(3, -1), whole())
    for k, n in enumerate(SIZES):
        own, total = conversations(k, n), 0.0
        for ids, length, mask in zip(own.ids, own.lengths, own.mask, strict=True):
            labels = ids[None, :length].clone()
            labels[0, 1:][~mask[: length - 1]] = -100
            labels[0, 0] = -100
            total += model(input_ids=ids[None, :length], labels=labels).loss.item() * int(mask.sum())
        assert float(loss[k]) == pytest.approx(total / int(tokens[k]), rel=1e-5)


@pytest.mark.slow
def test_a_client_in_company_learns_what_it_learns_alone():
    t = task(dropout=0.3)
    flat, key = moved(t), torch.tensor([4, 5, 6])
    _, together, _ = t.grad(flat, whole(key))
    for k, n in enumerate(SIZES):
        step = Step(torch.tensor([k]), torch.arange(n)[None], torch.ones(1, n, dtype=torch.bool), key[k : k + 1])
        torch.testing.assert_close(t.grad(flat[k : k + 1], step)[1][0], together[k], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cached_activations_change_nothing():
    one, other = (task(cache_mb=mb, partial=True) for mb in (0, 8))
    assert other.cache is not None
    for mine, theirs in zip(one.grad(moved(one), whole()), other.grad(moved(other), whole()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scores_are_weighted_by_tokens_of_responses():
    t = task()
    scores = t.evaluate(t.init(0))
    own = conversations(7, 6)
    assert scores["topic/a"].tokens == scores["validation"].tokens == own.num_tokens
    assert scores["topic/a"].blocks == 6
    alone = [t.compute_outputs(t.init(0).flat, torch.tensor([sum(SIZES) + i])) for i in range(6)]
    assert scores["topic/a"].loss == pytest.approx(float(torch.cat(alone).sum()) / own.num_tokens, rel=1e-6)


@pytest.mark.slow
def test_an_extra_loss_sees_states_at_targets_of_the_whole_batch():
    t = task()
    seen = []

    def extra(z, see):
        seen.append(z.shape)
        return z.square().sum((1, 2))

    plain, more = t.grad(moved(t), whole()), t.grad(moved(t), whole(extra_loss=extra))
    assert seen == [(3, max(SIZES), 24)]
    torch.testing.assert_close(plain[0], more[0])
    assert not torch.allclose(plain[1], more[1])


@pytest.mark.slow
def test_the_choice_is_the_answer_of_the_least_loss():
    """Three rows are the answers of a question each time; their losses by whole logits say which is the likeliest."""
    rows, t = conversations(11, 6), task()
    choices = Choices(rows, [0, 0, 0, 2, 2, 2], [True, False, False] * 2)
    t.questions = Questions([], [], [], {}, frozenset(), 1, choices=choices)
    flat = moved(t)[0]
    losses = []
    with torch.no_grad(), t.model.slots.bind(flat[None]):
        for ids, mask, n in zip(rows.ids, rows.mask, rows.lengths.tolist(), strict=True):
            logp = t.model.model(input_ids=ids[None, : n - 1]).logits[0].log_softmax(-1)
            losses.append(-float(logp.gather(1, ids[1:n, None])[:, 0][mask[: n - 1]].sum()))
    first, second = losses[:3], losses[3:]
    expected = {0: float(first[0] == min(first)), 2: float(second[0] == min(second))}
    assert t.choose(flat, [0, 1, 2]) == expected
    assert t.choose(flat, [2]) == {2: expected[2]}
    assert {*expected.values()} == {0.0, 1.0}  # the seeds make one right and one wrong
