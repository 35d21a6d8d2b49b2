"""Hidden states against the base and between clients: on states made by hand, and on tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sites import lora_targets, partial_targets
from fedfault.metrics.representation import select_positions
from fedfault.registry import build
from fedfault.tasks.language import LanguageTask
from fedfault.testing.toys import Quadratic
from fedfault.text.packing import Blocks, pack_blocks
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State
from fedfault.types.task import FinishedRound, States
from tiny import VOCAB, tiny_llama

G = torch.Generator().manual_seed(0)
B, T, D = 6, 5, 4
H = torch.randn(1, B, T, D, generator=G)
MASK = torch.arange(T) < torch.tensor([5, 5, 5, 5, 5, 2])[:, None]


class Seen:
    """A task whose models have the states that they are said to have: of the server's, the base's, the clients'."""

    def __init__(self, now, base, clients) -> None:
        self.now, self.base, self.clients = now, base, clients

    def states(self, params, blocks):
        layer = self.base if params is None else self.now if len(params) == 1 else self.clients
        return States([layer[:, :blocks]], MASK[: min(blocks, layer.shape[1])])


def finished(task, x: Adapter, clients: torch.Tensor, folded=None) -> FinishedRound:
    """The server has come to x and has folded something in, the clients have come to their own rows."""
    before = State(x)
    around = {"start": clients, "averages": [], "halves": None, "private": False, "clients": range(len(clients))}
    return FinishedRound(
        round=1,
        seed=0,
        task=task,
        before=before,
        after=replace(before, base=folded) if folded else before,
        trained=SimpleNamespace(adapter=Adapter(x.layout, clients)),
        **around,
    )


def by_hand(now=H, base=H, clients=H, k: int = 1) -> dict[str, float]:
    task = Seen(now, base, clients.expand(k, -1, -1, -1) if len(clients) == 1 else clients)
    found = build("probe", "representation").measure(finished(task, Adapter(None, torch.zeros(1)), torch.zeros(k, 1)))
    return dict(found.probes)


def test_a_model_that_has_not_moved_is_the_base():
    found = by_hand(k=3)
    for name in ("hidden_cosine/0", "cka/0", "client_cosine/0", "client_cka/0"):
        assert found[name] == pytest.approx(1)
    for name in ("hidden_rank", "embedding_rank"):
        assert found[name] == found[f"{name}_base"]


def test_a_direction_that_all_states_share_is_no_likeness():
    common = torch.tensor([100.0, -50.0, 0.0, 0.0])
    assert by_hand(now=H + common)["hidden_cosine/0"] == pytest.approx(1, abs=1e-4)
    assert by_hand(now=common - H)["hidden_cosine/0"] == pytest.approx(-1, abs=1e-4)
    assert by_hand(now=common - H)["cka/0"] == pytest.approx(1, abs=1e-4)


def test_the_scale_of_a_model_that_runs_away_does_not_matter():
    found = by_hand(now=1e18 * H, clients=torch.cat([1e18 * H, -1e-18 * H]), k=2)
    assert [found["hidden_cosine/0"], found["cka/0"], found["client_cka/0"]] == pytest.approx([1, 1, 1])
    assert found["client_cosine/0"] == pytest.approx(-1)


def test_padding_does_not_count():
    padded = H.clone()
    padded[:, ~MASK] = 1e3
    assert by_hand(padded, padded) == by_hand()
    assert select_positions(H, MASK).shape == (1, 27, D)


def test_clients_are_compared_in_pairs_on_four_blocks():
    x, y = H[0], torch.randn(B, T, D, generator=G)
    found = by_hand(clients=torch.stack([x, -x, y]), k=3)
    of = [h[:4][MASK[:4]] - h[:4][MASK[:4]].mean(0) for h in (x, y)]
    c = float(torch.cosine_similarity(*of).mean())
    assert found["client_cosine/0"] == pytest.approx((-1 + c - c) / 3, abs=1e-6)
    assert set(by_hand()) == set(found) - {"client_cosine/0", "client_cka/0"}  # a lone client has no pair


def test_few_positions_take_the_debiased_cka():
    """Of independent states the plain one would be about d / (n + d): 0.13 for 27 positions, 0.24 for 12."""
    short = torch.randn(40, 1, 3, 5, D, generator=G), torch.randn(40, 1, 3, 5, D, generator=G)
    values = [by_hand(a, b)["cka/0"] for a, b in zip(*short, strict=True)]
    assert min(values) < 0
    assert abs(sum(values) / 40) < 0.1
    values = [by_hand(torch.randn(1, B, T, D, generator=G))["cka/0"] for _ in range(40)]
    assert min(values) > 0


def test_a_collapsed_model_has_rank_one_and_embeddings_that_agree():
    line = torch.randn(B, T, 1, generator=G) * torch.tensor([1.0, 2.0, 0.0, -1.0])
    found = by_hand(now=line[None])
    assert found["hidden_rank"] == pytest.approx(1, abs=1e-4)
    assert found["hidden_rank_base"] > 3
    alike = by_hand(now=H * 1e-3 + torch.tensor([1.0, 2.0, 0.0, -1.0]))
    assert alike["embedding_cosine"] == pytest.approx(1, abs=1e-4)
    assert alike["hidden_rank"] == pytest.approx(found["hidden_rank_base"], rel=1e-3)


def test_embeddings_are_means_over_the_positions_of_a_block():
    E = torch.stack([h[m].mean(0) for h, m in zip(H[0], MASK, strict=True)])
    found = by_hand()
    pairs = [float(torch.cosine_similarity(E[i], E[j], 0)) for i in range(B) for j in range(B) if i != j]
    assert found["embedding_cosine"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    s = torch.linalg.svdvals((E - E.mean(0)).double())
    assert found["embedding_rank"] == pytest.approx(float((s / s.sum()).log().mul(-s / s.sum()).sum().exp()), rel=1e-5)


def test_what_is_undefined_is_absent():
    constant = torch.full_like(H, 0.1)
    found = by_hand(now=constant, k=2)
    assert not {"hidden_cosine/0", "cka/0", "hidden_rank", "embedding_rank"} & set(found)
    assert found["embedding_cosine"] == pytest.approx(1)
    broken = by_hand(now=torch.full_like(H, math.nan), k=2)
    assert set(broken) == {"hidden_rank_base", "embedding_rank_base", "client_cosine/0", "client_cka/0"}
    toy = Quadratic([[1.0]], [[0.0]], [1])
    assert build("probe", "representation").measure(finished(toy, toy.init(0), torch.zeros(2, 1))).probes == {}


def documents(seed: int, n: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (7,), generator=g).tolist() for _ in range(n)]


def language(model=None, partial: bool = False, cache_mb: int = 0) -> LanguageTask:
    model = model or tiny_llama(blocks=3)
    targets = partial_targets(model, 1, []) if partial else lora_targets(model, None)
    sets = {"topic/a": pack_blocks(documents(1, 5), T, 0), "client/0": pack_blocks(documents(2, 3), T, 0)}
    sets |= {"topic/b": pack_blocks(documents(3, 2), T, 0), "general": pack_blocks(documents(4, 3), T, 0)}
    c = CohortModel(model, targets, r=2, alpha=4.0)
    train = [pack_blocks(documents(9 + k, 4), T, 0) for k in range(2)]
    return LanguageTask(c, train, sets, {"topic/a": 0.7, "topic/b": 0.3}, cache_mb=cache_mb)


def moved(task: LanguageTask, k: int = 3) -> torch.Tensor:
    noise = torch.randn(k, task.layout.size, generator=torch.Generator().manual_seed(3))
    return task.init(0).flat + 0.2 * noise


def some_base(task: LanguageTask) -> dict[str, torch.Tensor]:
    return {s.name: Adapter(task.layout, moved(task, 1)[0]).delta(s) for s in task.layout.lora}


def test_the_probed_blocks_are_of_every_topic_in_turn_and_held_out():
    task = language()
    whole = task.states(None, 99)
    a, b = task.sets["topic/a"], task.sets["topic/b"]
    assert whole.mask.shape == (len(a) + len(b), T)
    topic = ["a" if any(torch.equal(row, x) for x in a.ids) else "b" for row in task.ids[task.probed]]
    assert topic == ["a", "b"] * len(b) + ["a"] * (len(a) - len(b))
    first = task.states(moved(task), 3)
    assert torch.equal(first.mask, whole.mask[:3])
    assert [tuple(layer.shape) for layer in first.layers] == [(3, 3, T, 24)] * 4


def test_states_do_not_depend_on_the_size_of_a_pass_or_on_the_other_rows(monkeypatch):
    task = language()
    flat = moved(task)
    whole = task.states(flat, 6)
    monkeypatch.setattr("fedfault.tasks.fitting.EVALUATION_TOKENS", 2 * T)
    for k in range(3):
        alone = task.states(flat[k : k + 1], 6)
        for one, every in zip(alone.layers, whole.layers, strict=True):
            torch.testing.assert_close(one[0], every[k], rtol=1e-4, atol=1e-5)
    weights = task.attention(flat, 6)
    assert [tuple(w.shape) for w in weights] == [(18, 4, T, T)] * 3
    torch.testing.assert_close(weights[2][6:12], task.attention(flat[1:2], 6)[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("partial", [False, True])
def test_the_untrained_model_is_the_base(partial):
    task = language(partial=partial)
    x = task.init(1)
    found = build("probe", "representation", blocks=8).measure(finished(task, x, moved(task))).probes
    for L in range(4):
        assert found[f"hidden_cosine/{L}"] == pytest.approx(1, abs=1e-6)
        assert found[f"cka/{L}"] == pytest.approx(1, abs=1e-5)
    assert found["hidden_rank"] == pytest.approx(found["hidden_rank_base"], rel=1e-5)
    assert found["client_cosine/3"] < 0.99
    assert found["client_cosine/0"] == pytest.approx(1, abs=1e-6)  # nobody trains the embedding


def test_the_base_s_states_are_those_before_any_fold_and_looked_at_once(tiny, monkeypatch):
    fresh, task = language(tiny()), language(tiny())
    task.fold(some_base(task))
    folded = task.checksums()
    late, early = task.states(None, 5), fresh.states(None, 5)
    assert all(torch.equal(x, y) for x, y in zip(late.layers, early.layers, strict=True))
    for x, y in zip(task.attention(None, 2), fresh.attention(None, 2), strict=True):
        assert torch.equal(x, y)
    assert task.checksums() == folded != fresh.checksums()
    assert not torch.equal(task.states(task.init(0).flat[None], 5).layers[-1], early.layers[-1])
    monkeypatch.setattr(task, "model", None)  # a second look would need it
    assert len(task.states(None, 4).mask) == 4


def test_clients_are_seen_on_the_frozen_weights_that_they_trained_on():
    task, probe = language(), build("probe", "representation", blocks=6)
    x, clients = task.init(0), moved(task)
    expected = probe.measure(finished(task, x, clients)).probes
    task.fold(base := some_base(task))
    sums = task.checksums()
    found = probe.measure(finished(task, x, clients, folded=base)).probes
    assert {n: v for n, v in found.items() if n.startswith("client_")} == {
        n: v for n, v in expected.items() if n.startswith("client_")
    }
    assert found["hidden_cosine/3"] < 0.99
    assert task.checksums() == sums


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_probes_change_neither_the_model_nor_any_loss(cache_mb):
    task = language(partial=True, cache_mb=cache_mb)
    x, clients = Adapter(task.layout, moved(task)[0]), moved(task)
    before, sums, copy = task.evaluate(x), task.checksums(), clients.clone()
    for name in ("representation", "attention"):
        assert build("probe", name).measure(finished(task, x, clients)).probes
    assert task.evaluate(x) == before
    assert task.checksums() == sums
    assert torch.equal(clients, copy)


def test_a_task_without_topics_has_no_states():
    blocks = Blocks(torch.zeros(1, T + 1, dtype=torch.int64), torch.tensor([T]))
    model = tiny_llama()
    c = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    task = LanguageTask(c, [blocks], {}, {})
    assert task.states(None, 4) is None
    assert task.states(task.init(0).flat[None], 4) is None
    assert task.attention(task.init(0).flat[None], 4) is None
