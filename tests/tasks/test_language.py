"""The language-model task: the silent bugs of text to tokens to loss."""

from __future__ import annotations

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.quantised import quantise
from fedfault.backbones.sample import sample_texts
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.backbones.starts import Start
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.tasks.language import LanguageTask, SecretRows, estimate_error
from fedfault.text.packing import Blocks, pack_blocks
from fedfault.text.responses import Responses
from fedfault.types.adapter import Adapter
from fedfault.types.task import Served, Step
from tiny import VOCAB, tiny_gpt2, tiny_llama

T = 6


def documents(seed: int, n: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (n,), generator=g).tolist()
    return [torch.randint(1, VOCAB, (length,), generator=g).tolist() for length in lengths]


def task(
    cache_mb: int = 0, partial: bool = False, clients: int = 3, start: Start = "uniform", **sets: Blocks
) -> LanguageTask:
    model = tiny_llama(blocks=3)
    targets = partial_targets(model, 1, []) if partial else lora_targets(model, None)
    opened = CohortModel(model, targets, r=2, alpha=4.0, start=start)
    train = [pack_blocks(documents(k, 5 + 4 * k), T, 0) for k in range(clients)]
    sets = sets or {"topic/a": pack_blocks(documents(10, 9), T, 0), "topic/b": pack_blocks(documents(11, 4), T, 0)}
    return LanguageTask(opened, train, sets, {"topic/a": 0.75, "topic/b": 0.25}, cache_mb=cache_mb)


def moved(t: LanguageTask) -> Adapter:
    g = torch.Generator().manual_seed(3)
    start = t.init(0)
    return Adapter(t.layout, start.flat + 0.2 * torch.randn(start.flat.shape, generator=g))


def plain_nll(t: LanguageTask, adapter: Adapter, blocks: Blocks) -> tuple[float, int]:
    """Block by block, token by token, from whole logits."""
    total, count = 0.0, 0
    with torch.no_grad(), t.model.slots.bind(adapter.flat[None]):
        for ids, targets in zip(blocks.ids, blocks.targets.tolist(), strict=True):
            logp = t.model.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
            total -= sum(float(logp[i, ids[i + 1]]) for i in range(targets))
            count += targets
    return total, count


@pytest.mark.slow
def test_perplexity_counts_every_target_once_shifted_once_and_no_padding():
    t = task()
    scores = t.evaluate(adapter := moved(t))
    for name, blocks in t.sets.items():
        total, count = plain_nll(t, adapter, blocks)
        assert scores[name].tokens == count
        assert scores[name].loss == pytest.approx(total / count, rel=1e-5)
    assert int(t.sets["topic/a"].targets[-1]) < T  # there was a short last block to lose


def test_the_mixture_weighs_topics_by_their_share_of_the_text():
    t = task()
    scores = t.evaluate(moved(t))
    expected = 0.75 * scores["topic/a"].loss + 0.25 * scores["topic/b"].loss
    assert scores["validation"].loss == pytest.approx(expected)


@pytest.mark.slow
def test_perplexity_does_not_depend_on_the_batch_size(monkeypatch):
    t = task()
    adapter, by_batch = moved(t), []
    for per in (1, 3, 1000):
        monkeypatch.setattr("fedfault.tasks.fitting.EVALUATION_TOKENS", per * T)
        by_batch.append(t.evaluate(adapter))
    for name in by_batch[0]:
        assert [b[name].loss for b in by_batch] == pytest.approx([by_batch[0][name].loss] * 3, rel=1e-6)


@pytest.mark.slow
def test_training_loss_is_a_mean_over_tokens_not_over_batches():
    t = task()
    adapter, k = moved(t), 2
    n = t.examples(k)
    rows = torch.arange(n)[None]
    step = Step(torch.tensor([k]), rows, torch.ones(1, n, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    loss, _, tokens = t.grad(adapter.flat[None], step)
    total, count = plain_nll(t, adapter, Blocks(t.ids[t.first[k] : t.first[k] + n], t.mask[t.first[k] :][:n].sum(1)))
    assert int(tokens) == count == t.tokens(k)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_without_gradients_the_loss_is_the_same():
    t = task()
    step = Step(torch.tensor([2]), torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    loss, gradient, tokens = t.grad(moved(t).flat[None], step)
    with torch.no_grad():
        alone, nothing, counted = t.grad(moved(t).flat[None], step)
    assert torch.equal(alone, loss)
    assert torch.equal(counted, tokens)
    assert gradient.any()
    assert not nothing.any()


@pytest.mark.slow
def test_each_client_trains_on_its_own_blocks():
    t = task()
    flat = moved(t).flat.expand(3, -1)
    clients, rows = torch.arange(3), torch.zeros(3, 1, dtype=torch.int64)
    step = Step(clients, rows, torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, dtype=torch.int64))
    together, _, _ = t.grad(flat, step)
    for k in range(3):
        key = torch.zeros(1, dtype=torch.int64)
        one = Step(torch.tensor([k]), rows[:1], torch.ones(1, 1, dtype=torch.bool), key)
        alone, _, _ = t.grad(flat[:1], one)
        assert float(together[k]) == pytest.approx(float(alone), rel=1e-5)
    assert len({round(x, 4) for x in together.tolist()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cohort_of_k_trains_like_k_cohorts_of_one(optimizer):
    t = task()
    work = LocalWork(epochs=2, batch_size=2, lr=0.01, optimizer=optimizer, max_grad_norm=1.0)
    run = lambda clients: Trainer(  # noqa: E731
        t, work, seed=0, round=1, clients=clients, passes=Passes(len(clients))
    )(t.init(0))
    together = run([0, 1, 2])
    assert len(set(together.num_steps.tolist())) > 1
    for k in range(3):
        torch.testing.assert_close(together.adapter.flat[k], run([k]).adapter.flat[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_activation_cache_changes_no_number():
    with_cache, without = task(cache_mb=1, partial=True), task(partial=True)
    assert with_cache.cache is not None
    assert without.cache is None
    work = LocalWork(epochs=2, batch_size=2, lr=0.01)
    for t in (1, 2):
        trained = [
            Trainer(x, work, seed=0, round=t, clients=[0, 1, 2], passes=Passes(3))(x.init(0))
            for x in (with_cache, without)
        ]
        torch.testing.assert_close(trained[0].adapter.flat, trained[1].adapter.flat, rtol=1e-5, atol=1e-7)
    scores = [x.evaluate(Adapter(x.layout, trained[0].adapter.flat[0])) for x in (with_cache, without)]
    for name in scores[0]:
        assert scores[0][name].loss == pytest.approx(scores[1][name].loss, rel=1e-6)


@pytest.mark.slow
def test_the_base_has_lost_nothing_on_its_own_samples_before_training():
    model = tiny_llama()
    ids = sample_texts(model, 4, T, 0, torch.Generator().manual_seed(0))
    assert ids.shape == (4, T + 1)
    assert ids[:, 0].tolist() == [0] * 4
    t = task(
        general=Blocks(ids, torch.full((4,), T)),
        **{"topic/a": pack_blocks([[1]], T, 0), "topic/b": pack_blocks([[2]], T, 0)},
    )
    first, again = t.evaluate(t.init(0)), t.evaluate(t.init(1))
    assert first["general"].loss == again["general"].loss  # B = 0: whatever A is


@pytest.mark.slow
def test_samples_follow_the_model_and_the_seed():
    model = tiny_llama()
    draw = lambda seed, n=4: sample_texts(model, n, T, 0, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    first = draw(3, 4000)[:, 1]
    p = model(input_ids=torch.zeros(1, 1, dtype=torch.int64)).logits[0, -1].softmax(-1).detach()
    seen = torch.bincount(first, minlength=VOCAB) / 4000
    assert (seen - p).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_the_error_of_a_paired_change_is_that_of_the_bootstrap():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 17, (200,), generator=g).double()
    change = tokens * (0.1 + 0.3 * torch.randn(200, generator=g, dtype=torch.float64))
    rows = torch.randint(200, (4000, 200), generator=g)
    drawn = change[rows].sum(1) / tokens[rows].sum(1)
    assert estimate_error(change, tokens) == pytest.approx(float(drawn.std()), rel=0.05)


def test_one_block_has_no_error():
    assert estimate_error(torch.tensor([1.0]).double(), torch.tensor([4.0]).double()) is None


def test_the_untrained_model_has_changed_by_nothing_for_sure():
    t = task()
    assert {s.se for s in t.evaluate(t.init(5)).values()} == {0.0}


@pytest.mark.parametrize(("start", "same"), [("uniform", True), ("pissa", False)])
def test_another_A_is_another_model_unless_B_is_zero(start, same):
    t = task(start=start)
    x = t.init(0)
    for site in t.layout.lora:
        t.layout.pair(x.flat, site).A.mul_(1.1)
    assert {s.se == 0.0 for s in t.evaluate(x).values()} == {same}


@pytest.mark.slow
def test_changes_are_paired_with_the_model_before_training_whatever_was_folded_in():
    """After a resume the first model that is evaluated is a trained one; what it is compared with is not."""
    fresh, resumed = task(), task()
    fresh.evaluate(fresh.init(0))
    site = fresh.layout.lora[0]
    folded = {site.name: 0.1 * torch.ones(site.shape[2], site.shape[1])}
    for t in (fresh, resumed):
        t.fold(folded)
    adapter = moved(fresh)
    assert resumed.evaluate(adapter) == fresh.evaluate(adapter)
    assert resumed.folded is folded
    change, tokens = fresh.untrained, torch.cat([b.targets for b in fresh.sets.values()]).double()
    assert change is not None
    n = len(fresh.sets["topic/a"])
    nll = fresh.compute_outputs(adapter.flat, torch.arange(sum(fresh.counts), len(fresh.ids)))
    expected = estimate_error((nll - change)[:n], tokens[:n])
    assert fresh.evaluate(adapter)["topic/a"].se == pytest.approx(expected)


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (tiny_llama, 2 * (2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 40) + 24 * VOCAB),
        (tiny_gpt2, 2 * (24 * 72 + 24 * 24 + 2 * 24 * 96) + 24 * VOCAB),
    ],
)
@pytest.mark.parametrize("kind", ["none", "8bit", "4bit"])
def test_a_token_is_multiplied_with_all_linear_layers_whatever_keeps_their_weights(build, weights, kind):
    model = build()
    if kind != "none":
        pytest.importorskip("bitsandbytes")
        quantise(model, kind, torch.float32, torch.device("cpu"))
    opened = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    own = [pack_blocks(documents(0, 5), T, 0)]
    assert LanguageTask(opened, own, {"topic/a": own[0]}, {"topic/a": 1.0}).frozen_weights() == weights


def test_several_models_are_scored_as_each_is_alone():
    t = task()
    models = [Served(t.init(0)), Served(moved(t))]
    assert t.evaluate_each(models) == [t.evaluate(*model) for model in models]


@pytest.mark.slow
def test_each_text_s_loss_is_that_of_its_own_targets_under_its_own_model():
    own = pack_blocks(documents(12, 6), T, 0)
    t = task(**{"topic/a": own, "topic/b": own, "client/1": own})
    adapter = moved(t)
    found = [*(t.text_losses(None, [1], 2) or []), *(t.text_losses([adapter.flat] * 2, [1, 0], 2) or [])]
    assert [(len(f.members), len(f.others)) for f in found] == [(2, len(own)), (2, len(own)), (2, 0)]
    for losses, model in zip(found, (t.init(0), adapter), strict=False):
        one, _ = plain_nll(t, model, own[:1])
        assert losses.others[0] == pytest.approx(one / int(own.targets[0]), rel=1e-5)
        two, _ = plain_nll(t, model, t.split_training_rows()[1][1:2])
        assert losses.members[1] == pytest.approx(two / int(t.split_training_rows()[1].targets[1]), rel=1e-5)


@pytest.mark.slow
def test_a_secret_s_loss_is_the_sum_over_its_tokens_under_the_model_in_its_place():
    t, said = task(), torch.randint(1, VOCAB, (7, T + 1), generator=torch.Generator().manual_seed(5))
    blocks = Blocks(said, torch.full((7,), T))
    rows = Responses.from_blocks(blocks)
    t.secrets = SecretRows(rows[:3], rows[3:6], rows[6:])
    found = t.secret_losses([t.init(0).flat, moved(t).flat], [[0, 2], [1]])
    for losses, model, own in zip(found, (t.init(0), moved(t)), ([0, 2], [1]), strict=True):
        every = [*own, *(3 + k for k in own), 6]
        plain = [plain_nll(t, model, blocks[i : i + 1])[0] for i in every]
        assert [*losses.planted, *losses.decoys, *losses.others] == pytest.approx(plain, rel=1e-5)
    assert task().secret_losses([t.init(0).flat], [[0]]) is None


def test_what_texts_lose_before_training_is_computed_once():
    t, asked = (
        task(**{"topic/a": pack_blocks(documents(12, 6), T, 0), "topic/b": pack_blocks(documents(11, 4), T, 0)}),
        [],
    )
    t.use_scorer(lambda pairs: (asked.append(len(pairs)), t.score(pairs))[1])
    first, again = t.text_losses(None, [0, 1], 2), t.text_losses(None, [2, 1], 2)
    assert asked == [2, 1]
    assert again[1] is first[1]
    assert t.text_losses(None, [1], 2) == [first[1]]
