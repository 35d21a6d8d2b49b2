"""The task of labels: that grouping, padding, caches and company change no number, and what is scored."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.scorer import LAST, MEAN, POOLER, Scorer
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.registry import build
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, Passes
from fedfault.rounds.trainer import Trainer
from fedfault.runs.folder import RunFolder
from fedfault.tasks import base, fitting, grouping
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.grouping import group_columns
from fedfault.text.examples import EncodedText, Examples
from fedfault.types.adapter import Adapter
from fedfault.types.task import Step
from tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama

C = 3
SIZES = (5, 9, 13)


def examples(seed: int, n: int, scores: bool = False) -> Examples:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (n,), generator=g).tolist()
    rows = [
        EncodedText(torch.randint(1, VOCAB, (length,), generator=g).tolist(), length // 2 + 1) for length in lengths
    ]
    labels = (5 * torch.rand(n, generator=g)) if scores else torch.randint(C, (n,), generator=g)
    return Examples.from_rows(rows, labels.tolist())


def task(
    build=tiny_bert, pooling: str = MEAN, partial: bool = False, scores: bool = False, dropout: float = 0.0, **more
) -> ClassificationTask:
    model = build(blocks=3)
    targets = partial_targets(model, 1, []) if partial else lora_targets(model, None)
    scorer = Scorer(pooling, 24, 1 if scores else C)
    opened = CohortModel(model, targets, r=2, alpha=4.0, dropout=dropout, scorer=scorer)
    sets = {"topic/a": examples(10, 7, scores), "topic/b": examples(11, 4, scores)}
    sets |= {"client/0": examples(12, 3, scores), "client/2": examples(13, 5, scores)}
    return ClassificationTask(opened, [examples(k, n, scores) for k, n in enumerate(SIZES)], sets, **more)


def moved(t: ClassificationTask, k: int = 3) -> torch.Tensor:
    noise = torch.randn(k, t.layout.size, generator=torch.Generator().manual_seed(3))
    return t.init(0).flat + 0.2 * noise


def whole(t: ClassificationTask, key: torch.Tensor | None = None, extra_loss=None) -> Step:
    """All examples of every client: rows of unequal number."""
    rows = torch.arange(max(SIZES)).expand(3, -1)
    real = rows < torch.tensor(SIZES)[:, None]
    return Step(torch.arange(3), rows.where(real, 0), real, key, extra_loss)


KINDS = [(tiny_bert, MEAN), (tiny_bert, POOLER), (tiny_llama, LAST), (tiny_gpt2, LAST)]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "pooling"), KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_groups_of_equal_length_give_what_one_padded_pass_gives(build, pooling, dropout, monkeypatch):
    t, key = task(build, pooling, dropout=dropout), torch.tensor([4, 5, 6])
    monkeypatch.setattr(grouping, "PASS", 0)
    flat, step = moved(t), whole(t, key)
    found = t.grad(flat, step)
    monkeypatch.setattr(base, "group_columns", lambda lengths, most: group_columns(lengths, None))
    expected = t.grad(flat, step)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert found[2].tolist() == list(SIZES)


@pytest.mark.slow
def test_without_gradients_the_loss_is_the_same():
    t = task()
    flat, step = moved(t), whole(t)
    loss, gradient, _ = t.grad(flat, step)
    with torch.no_grad():
        alone, nothing, _ = t.grad(flat, step)
    torch.testing.assert_close(alone, loss)
    assert gradient.any()
    assert not nothing.any()


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cohort_of_k_trains_like_k_cohorts_of_one(optimizer, dropout):
    t = task(dropout=dropout)
    work = LocalWork(epochs=2, batch_size=4, lr=0.01, optimizer=optimizer, max_grad_norm=1.0)
    run = lambda clients: Trainer(  # noqa: E731
        t, work, seed=0, round=1, clients=clients, passes=Passes(len(clients))
    )(t.init(0))
    together = run([0, 1, 2])
    for k in range(3):
        torch.testing.assert_close(together.adapter.flat[k], run([k]).adapter.flat[0], rtol=1e-4, atol=1e-5)
    heads = together.adapter.flat[:, -C * 25 :]
    assert not torch.allclose(heads[0], heads[1])
    assert together.num_tokens.tolist() == [2 * n for n in SIZES]


def plain(t: ClassificationTask, flat: torch.Tensor, of: Examples) -> torch.Tensor:
    """Outputs row by row, from whole states."""
    weight, bias = (t.layout.part(flat, site) for site in t.layout.sites[-2:])
    out = []
    with torch.no_grad(), t.model.slots.bind(flat[None]):
        for ids, n, second in zip(of.ids, of.lengths.tolist(), of.second.tolist(), strict=True):
            kinds = (torch.arange(n) >= second).long()[None]
            given = {"token_type_ids": kinds} if t.pooling == MEAN else {}
            states = t.model.model.base_model(input_ids=ids[None, :n], **given).last_hidden_state[0]
            out.append(weight @ (states[-1] if t.pooling == LAST else states.mean(0)) + bias)
    return torch.stack(out)


@pytest.mark.slow
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, MEAN), (tiny_llama, LAST)])
def test_the_loss_is_a_mean_over_examples(build, pooling, scores):
    t = task(build, pooling, scores=scores)
    flat = moved(t)
    loss, _, counts = t.grad(flat, whole(t))
    for k, n in enumerate(SIZES):
        own = examples(k, n, scores)
        out = plain(t, flat[k], own)
        expected = F.mse_loss(out[:, 0], own.labels) if scores else F.cross_entropy(out, own.labels)
        assert float(loss[k]) == pytest.approx(float(expected), rel=1e-4)
    assert counts.tolist() == list(SIZES)
    assert [t.tokens(k) for k in range(3)] == [t.examples(k) for k in range(3)] == list(SIZES)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, MEAN), (tiny_llama, LAST)])
def test_scores_count_every_example_once(build, pooling, monkeypatch):
    t = task(build, pooling, positive=1)
    monkeypatch.setattr(fitting, "EVALUATION_TOKENS", 20)
    x = Adapter(t.layout, moved(t)[0])
    found = t.evaluate(x)
    assert set(found) == {"validation", "topic/a", "topic/b", "client/0", "client/2"}
    parts = {name: (plain(t, x.flat, own), own.labels) for name, own in t.sets.items()}
    parts["validation"] = tuple(torch.cat(both) for both in zip(parts["topic/a"], parts["topic/b"], strict=True))
    for name, (out, labels) in parts.items():
        assert found[name].loss == pytest.approx(float(F.cross_entropy(out, labels)), rel=1e-4)
        assert found[name].tokens == found[name].blocks == len(labels)
        hits = out.argmax(1) == labels
        assert found[name].metrics["accuracy"] == pytest.approx(float(hits.float().mean()))
        positive = (out.argmax(1) == 1).sum() + (labels == 1).sum()
        if not name.startswith("topic/"):
            assert found[name].metrics["f1"] == pytest.approx(float(2 * (hits & (labels == 1)).sum() / positive))
    assert "f1" not in found["topic/a"].metrics


@pytest.mark.slow
def test_regressions_are_measured_by_correlations():
    t = task(scores=True)
    found = t.evaluate(Adapter(t.layout, moved(t)[0]))
    assert set(found["validation"].metrics) == {"pearson", "spearman"}
    assert not found["topic/a"].metrics
    out = torch.cat([plain(t, moved(t)[0], t.sets[name])[:, 0] for name in ("topic/a", "topic/b")])
    labels = torch.cat([t.sets[name].labels for name in ("topic/a", "topic/b")])
    assert found["validation"].metrics["pearson"] == pytest.approx(
        float(torch.corrcoef(torch.stack([out, labels]))[0, 1]), rel=1e-3
    )


@pytest.mark.slow
def test_personal_models_are_scored_on_their_own_examples():
    t = task()
    own = Adapter(t.layout, moved(t))
    x = Adapter(t.layout, moved(t)[1])
    found = t.evaluate(x, own)
    for k in (0, 2):
        out, labels = plain(t, own.flat[k], t.sets[f"client/{k}"]), t.sets[f"client/{k}"].labels
        assert found[f"client/{k}"].loss == pytest.approx(float(F.cross_entropy(out, labels)), rel=1e-4)
    held_out = [found[f"client/{k}"] for k in (0, 2)]
    assert found["personal"].tokens == 8
    assert found["personal"].loss == pytest.approx(sum(s.loss * s.tokens for s in held_out) / 8)
    assert found["topic/a"].loss == pytest.approx(t.evaluate(x)["topic/a"].loss, rel=1e-5)  # in another pass


@pytest.mark.slow
def test_changes_are_paired_with_the_fresh_head_of_the_same_seed():
    t = task(seed=7)
    assert {s.se for s in t.evaluate(t.init(7)).values()} == {0.0}
    resumed, x = task(seed=7), Adapter(t.layout, moved(t)[0])
    assert resumed.evaluate(x) == t.evaluate(x)
    before, after = (plain(t, a.flat, t.sets["topic/a"]) for a in (t.init(7), x))
    labels = t.sets["topic/a"].labels
    change = F.cross_entropy(after, labels, reduction="none") - F.cross_entropy(before, labels, reduction="none")
    assert t.evaluate(x)["topic/a"].se == pytest.approx(float(change.std()) / math.sqrt(7), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, MEAN), (tiny_llama, LAST)])
def test_the_activation_cache_changes_no_number(build, pooling):
    with_cache, without = (task(build, pooling, partial=True, cache_mb=mb) for mb in (1, 0))
    assert with_cache.cache is not None
    assert without.cache is None
    flat = moved(without) * 0.05 + 0.95 * without.init(0).flat
    for _ in range(2):
        both = [x.grad(flat, whole(x)) for x in (with_cache, without)]
        for mine, theirs in zip(*both, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    scores = [x.evaluate(Adapter(x.layout, flat[0])) for x in (with_cache, without)]
    for name in scores[0]:
        assert scores[0][name].loss == pytest.approx(scores[1][name].loss, rel=1e-5)


@pytest.mark.slow
def test_a_further_loss_sees_all_of_the_batch_and_is_differentiated():
    t = task()
    flat, seen = moved(t), []

    def further(z, see):
        seen.append((z.detach(), see(flat)))
        return z.square().sum((1, 2))

    step = whole(t, extra_loss=further)
    _, with_it, _ = t.grad(flat, step)
    z, again = seen[0]
    assert z.shape == (3, max(SIZES), 24)
    assert not z[~step.real].any()
    torch.testing.assert_close(z, again)
    _, without, _ = t.grad(flat, whole(t))
    head = slice(t.layout.size - C * 25, None)
    torch.testing.assert_close(with_it[:, head], without[:, head], rtol=1e-4, atol=1e-5)  # z is what the head reads
    assert not torch.allclose(with_it, without)


@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, MEAN), (tiny_llama, LAST)])
def test_probes_see_states_and_attention(build, pooling):
    t = task(build, pooling)
    states = t.states(moved(t), 5)
    n, T = 5, t.ids.shape[1]
    assert [tuple(layer.shape) for layer in states.layers] == [(3, n, T, 24)] * 4
    assert torch.equal(states.mask, t.mask[t.probed[:5]])
    row = int(t.probed[1])
    length = int(t.table.lengths[row])
    given = {"token_type_ids": (torch.arange(length) >= t.table.second[row]).long()[None]} if pooling == MEAN else {}
    with torch.no_grad(), t.model.slots.bind(moved(t)[2:]):
        alone = t.model.model.base_model(input_ids=t.ids[row : row + 1, :length], output_hidden_states=True, **given)
    torch.testing.assert_close(states.layers[1][2, 1, :length], alone.hidden_states[1][0], rtol=1e-4, atol=1e-5)
    weights = t.attention(None, 2)
    assert [tuple(w.shape) for w in weights] == [(2, 4, T, T)] * 3
    ahead = any(bool(w.triu(1).any()) for w in weights)
    assert ahead == (pooling == MEAN)
    assert not any(bool(w[..., int(t.table.lengths[t.probed[0]]) :][0].any()) for w in weights) or pooling == LAST
    assert t.continuations(moved(t)[0], 4) is None


def federation(t: ClassificationTask, **changes) -> Federation:
    work = LocalWork(epochs=1, batch_size=4, lr=0.01)
    parts = {"algorithm": build("algorithm", "fedavg"), "aggregation": build("aggregation", "fedit")}
    given = {"total_clients": 3, "cohort_size": 3, "num_rounds": 2, **changes}
    return Federation(task=t, **parts, work=work, **given)


@pytest.mark.slow
def test_heads_are_federated_counted_and_checkpointed(tmp_path):
    """No head is shared between clients: each trains its own from the server's, and the server's is their mean."""
    t = task()
    fed, head = federation(t), slice(t.layout.size - C * 25, None)
    state = begin(fed)
    steps = list(rounds(fed, state))
    for before, (after, record) in zip([s for s, _ in steps], steps[1:], strict=False):
        alone = [
            Trainer(t, fed.work, seed=0, round=record.round, clients=[k], passes=Passes(1))(before.adapter)
            for k in range(3)
        ]
        flat, weight = torch.cat([a.adapter.flat for a in alone]).double(), torch.tensor(SIZES).double()
        expected = (weight / weight.sum()) @ flat
        torch.testing.assert_close(after.adapter.flat[head].double(), expected[head], rtol=1e-4, atol=1e-6)
        assert [c.bytes_up for c in record.clients] == [4 * t.layout.size] * 3
    folder = RunFolder.create(tmp_path / "run")
    folder.save(steps[-1][0])
    loaded, _ = folder.load(t.layout, "cpu")
    assert torch.equal(loaded.adapter.flat[head], steps[-1][0].adapter.flat[head])


@pytest.mark.slow
def test_every_probe_can_be_taken():
    t = task()
    names = ("updates", "gradients", "ranks", "aggregation", "representation", "attention", "memory", "generation")
    *_, (_, record) = rounds(
        federation(t, num_rounds=1, probes={n: build("probe", n) for n in names}), begin(federation(t))
    )
    assert {"update_norm", "gradient_norm_mean", "effective_rank", "hidden_rank", "attention_entropy/3"} <= set(
        record.probes
    )
    assert 0 < record.probes["attention_entropy/3"] <= 1
