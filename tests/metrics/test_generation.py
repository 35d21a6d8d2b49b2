"""Scores of continuations: limits by hand, and what is compared with what."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.sample import decode_greedily
from fedfault.backbones.sites import lora_targets
from fedfault.errors import UserError
from fedfault.metrics.generation import bleu, distinct_2, generation, rouge_l, signature
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import Blocks
from fedfault.types.adapter import Adapter
from tiny import VOCAB, tiny_llama

T = 8
TEXTS = ["the cat sat on the mat all day", "nobody reads the whole report twice"]
OTHERS = ["x1 x2 x3 x4 x5 x6 x7 x8", "y1 y2 y3 y4 y5 y6"]


def blocks(n: int, last: int = T) -> Blocks:
    ids = torch.randint(1, VOCAB, (n, T + 1), generator=torch.Generator().manual_seed(n))
    return Blocks(ids, torch.tensor([T] * (n - 1) + [last]))


def words(ids) -> str:
    return " ".join(f"w{i}" for i in ids)


def task(decode=words, **sets: Blocks) -> LanguageTask:
    model = tiny_llama()
    c = CohortModel(model, lora_targets(model, None), r=2, alpha=4.0)
    sets = sets or {"topic/a": blocks(5, last=3), "topic/b": blocks(2), "client/0": blocks(4)}
    mixture = {name: 0.5 for name in sets if name.startswith("topic/")}
    return LanguageTask(c, [blocks(3)], sets, mixture, decode=decode)


def finished(t: LanguageTask):
    start = t.init(0).flat
    flat = start + 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    return SimpleNamespace(task=t, after=SimpleNamespace(adapter=Adapter(t.layout, flat)))


@pytest.mark.slow
def test_texts_that_are_the_references_score_full_marks():
    assert bleu(TEXTS, TEXTS) == pytest.approx(100)
    assert rouge_l(TEXTS, TEXTS) == pytest.approx(1)


@pytest.mark.slow
def test_texts_that_share_no_word_with_the_references_score_nothing():
    assert bleu(OTHERS, TEXTS) == 0
    assert rouge_l(OTHERS, TEXTS) == 0


@pytest.mark.slow
def test_bleu_is_that_of_the_corpus_by_hand():
    # n-gram matches over both texts: 1: 8 of 10, 2: 6 of 8, 3: 4 of 6, 4: 2 of 4; as long as the references
    found = bleu(["a b c d e", "a b c d e"], ["a b c d x", "x b c d e"])
    assert found == pytest.approx(100 * (8 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25)


@pytest.mark.slow
def test_rouge_l_is_the_mean_over_pairs_by_hand():
    # longest common subsequence of the first pair: a c d, of 4 words on one side and 3 on the other
    precision, recall = 3 / 4, 1
    first = 2 * precision * recall / (precision + recall)
    assert rouge_l(["a b c d", "z"], ["a c d", "y"]) == pytest.approx(first / 2)


def test_rouge_l_stems_no_words():
    assert rouge_l(["walking"], ["walks"]) == 0


def test_distinct_2_counts_pairs_within_rows():
    assert distinct_2([[1, 2, 1, 2], [2, 1, 2, 2]]) == pytest.approx(3 / 6)  # 12 21 12, 21 12 22
    assert distinct_2([[7, 7, 7, 7, 7]]) == pytest.approx(1 / 4)
    assert distinct_2(torch.arange(12).view(3, 4).tolist()) == 1
    assert distinct_2([[1, 2, 3], [4]]) == 1  # a short answer is no repetition
    assert distinct_2([[1], [2], []]) is None


def test_the_signature_says_what_was_done():
    found = dict(part.split(":") for part in signature().split("|"))
    assert {key: found[key] for key in ("nrefs", "case", "tok", "smooth")} == {
        "nrefs": "1", "case": "mixed", "tok": "13a", "smooth": "exp",
    }  # fmt: skip
    assert found["version"]


@pytest.mark.slow
def test_halves_of_whole_blocks_are_continued_one_of_every_topic_in_turn():
    t = task()
    flat = finished(t).after.adapter.flat
    found = t.continuations(flat, 4)
    a, b = (t.sets[f"topic/{name}"].ids for name in "ab")
    chosen = torch.stack([a[0], b[0], a[1], b[1]])
    assert list(found.references) == [words(row) for row in chosen[:, 5:].tolist()]  # 9 ids: 5 are given, 4 to come
    assert found.ids == decode_greedily(t.model, flat, chosen[:, :5], 4).tolist()
    assert list(found.texts) == [words(row) for row in found.ids]
    assert len(t.continuations(flat, 100).texts) == 4 + 2  # the short last block of topic a is left out


def test_without_text_or_whole_blocks_nothing_is_measured():
    for t in (task(decode=None), task(**{"topic/a": blocks(1, last=2)})):
        assert t.continuations(t.init(0).flat, 4) is None
        assert generation().measure(finished(t)).probes == {}


@pytest.mark.slow
def test_the_probe_scores_the_servers_model():
    probe, m = generation(), finished(task())
    found = m.task.continuations(m.after.adapter.flat, 16)
    assert probe.sparse
    assert probe.measure(m).probes == {
        "bleu": bleu(found.texts, found.references),
        "rouge_l": rouge_l(found.texts, found.references),
        "distinct_2": distinct_2(found.ids),
    }
    assert probe.measure(m) == probe.measure(m)


def test_a_model_that_writes_the_references_gets_full_marks(monkeypatch):
    t = task()
    truth = torch.stack([x for pair in zip(*(t.sets[f"topic/{n}"].ids[:2] for n in "ab"), strict=True) for x in pair])
    monkeypatch.setattr(
        "fedfault.tasks.language.decode_greedily", lambda model, flat, first, length: truth[: len(first), -length:]
    )
    monkeypatch.setattr("fedfault.metrics.generation.BLOCKS", 4)
    found = generation().measure(finished(t)).probes
    assert found["bleu"] == pytest.approx(100)
    assert found["rouge_l"] == pytest.approx(1)


@pytest.mark.parametrize(("module", "package"), [("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")])
def test_a_missing_library_is_named_with_what_to_install(monkeypatch, module, package):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else there(name))
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'fedfault\[text\]'"):
        generation()
