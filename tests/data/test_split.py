"""Bytes per token of evaluation sets, and the bits per byte that follow from them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fedfault.config import load
from fedfault.data.split import (
    _hold_back,
    bytes_per_token,
    deal_out,
    draw_positions,
    load_corpus,
    split_into_blocks,
)
from fedfault.errors import UserError
from fedfault.records import bits_per_byte
from fedfault.seeds import rng
from fedfault.text.packing import Blocks, pack_blocks
from fedfault.text.tokens import encode_texts

END = 256  # the separator of the tokenizer below
TEXTS = ["The cat sat – on the mat.", "naïve €", "a", "🦊🦊🦊"]


class Bytes:
    """Every byte is a token."""

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.backend_tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()
        self.backend_tokenizer.add_special_tokens(["<end>"])

    def __call__(self, texts, **_):
        return {"input_ids": [e.ids for e in self.backend_tokenizer.encode_batch(texts)]}


@pytest.mark.parametrize(
    ("share", "documents", "held"),
    [
        (0.07, 100, 7),
        (0.07, 200, 14),
        (0.07, 101, 8),
        (0.1, 30, 3),
        (0.1, 31, 4),
        (1e-12, 5, 1),
        (0.9, 2, 1),
        (0.5, 1, 0),
    ],
)
def test_the_share_that_is_held_out_is_rounded_up_and_no_further(share, documents, held):
    number = np.arange(documents)
    ((train, back),) = _hold_back([number], [number, number], share, [np.random.default_rng(0)])
    assert (len(train), len(back)) == (documents - held, held)
    assert back.tolist() == sorted(np.random.default_rng(0).permutation(number)[:held].tolist())


def divide(prompts, texts=None, clients=4):
    """Deal documents with these prompts out at random, and the prompts that every client trains on and holds back."""
    prompts = np.array(prompts)
    order = np.random.default_rng(1).permutation(len(prompts))
    draws = [np.random.default_rng(k) for k in range(clients)]
    texts = np.arange(len(prompts)) if texts is None else np.array(texts)
    parts = _hold_back(np.array_split(order, clients), [prompts, texts], 0.1, draws)
    assert sorted(np.concatenate([own for part in parts for own in part]).tolist()) == list(range(len(prompts)))
    return [tuple(prompts[own].tolist() for own in part) for part in parts]


@pytest.mark.parametrize(("different", "clients"), [(60, 4), (200, 4), (60, 20), (20, 3)])
def test_what_a_client_holds_back_no_client_trains_on(different, clients):
    numbers = np.repeat(np.arange(different), 6)
    parts = divide(numbers, numbers, clients)
    trained = {number for train, _ in parts for number in train}
    assert all(train and back for train, back in parts)
    assert not trained & {number for _, back in parts for number in back}
    assert 0.05 < sum(len(back) for _, back in parts) / len(numbers) < 0.2


def test_a_client_with_one_prompt_holds_some_of_its_responses_back():
    assert [len(back) for _, back in divide([0] * 80)] == [2, 2, 2, 2]


def test_a_text_that_every_client_has_alone_is_trained_on():
    assert divide([0] * 8, [0] * 8) == [([0, 0], [])] * 4


def test_texts_that_are_there_more_than_once_are_not_in_training_and_held_out(tmp_path):
    rows = "".join(f"Order {n % 60}: bring {n % 60 * 7} boxes.\n" for n in range(360))
    (tmp_path / "t.csv").write_text("text\n" + rows)
    changes = ["data.dataset=text", "data.dataset.keep_repeats=true", f"data.path={tmp_path / 't.csv'}",
               "federation.total_clients=4", "data.partition=iid"]  # fmt: skip
    exp = load("quickstart", changes).experiment
    dealt = deal_out(exp, load_corpus(exp))
    trained, held = ({dealt.documents[i].text for part in dealt.parts for i in part[side]} for side in (0, 1))
    assert held
    assert not trained & held


def test_pairs_of_one_prompt_are_not_in_training_and_held_out(tmp_path):
    rows = [{"prompt": f"Which {n // 8}?", "chosen": "this", "rejected": f"not {n}"} for n in range(240)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = ["data.dataset=text", f"data.path={tmp_path / 't.jsonl'}", "federation.total_clients=4",
               "data.partition=iid", "data.task_type=preference"]  # fmt: skip
    exp = load("quickstart", changes).experiment
    dealt = deal_out(exp, load_corpus(exp))
    asked = [document.text.split("\n")[0] for document in dealt.documents]
    trained, held = ({asked[i] for part in dealt.parts for i in part[side]} for side in (0, 1))
    assert held
    assert not trained & held


def test_by_hand():
    # end | é é end a | b c end, the first is no target
    blocks = pack_blocks(encode_texts(Bytes(), ["é", "abc"]), 4, END)
    found = bytes_per_token({"topic/x": blocks}, Bytes(), END)
    assert found == {"topic/x": pytest.approx(5 / 7)}  # 5 bytes of text, 7 targets
    assert bits_per_byte(2.0, found["topic/x"]) == pytest.approx(2.0 * 7 / math.log(2) / 5)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1000])
def test_where_the_text_is_cut_into_blocks_does_not_matter(length):
    blocks = pack_blocks(encode_texts(Bytes(), TEXTS), length, END)
    size = sum(len(t.encode()) for t in TEXTS)
    expected = size / (size + len(TEXTS))  # a separator behind every document
    assert bytes_per_token({"x": blocks}, Bytes(), END)["x"] == pytest.approx(expected)


def test_a_uniform_guess_at_every_byte_costs_eight_bits():
    ids = torch.tensor(encode_texts(Bytes(), ["0123456789 – abc"])[0].tolist())
    blocks = Blocks(ids[None], torch.tensor([len(ids) - 1]))
    assert bits_per_byte(math.log(256), bytes_per_token({"x": blocks}, Bytes(), END)["x"]) == pytest.approx(8)


def test_tokens_of_twice_the_bytes_at_twice_the_loss_cost_the_same_bits():
    assert bits_per_byte(1.5, 1.0) == pytest.approx(bits_per_byte(3.0, 2.0))


def test_tokens_that_stand_for_no_text_have_no_bits_per_byte():
    assert bits_per_byte(1.0, 0.0) == math.inf


def test_sets_of_different_sizes_do_not_mix():
    sets = {
        name: pack_blocks(encode_texts(Bytes(), [text]), 4, END) for name, text in {"a": "x", "b": "xxxxxxxxx"}.items()
    }
    assert bytes_per_token(sets, Bytes(), END) == {"a": pytest.approx(1 / 2), "b": pytest.approx(9 / 10)}


@pytest.mark.slow
def test_a_split_knows_the_bytes_per_token_of_every_set_and_of_the_mixture():
    changes = ["federation.total_clients=3", "evaluation.max_blocks=4", "data.max_samples=60", "model.max_length=16"]
    exp = load("quickstart", changes).experiment
    made = split_into_blocks(exp, load_corpus(exp), Bytes(), END)
    found = made.to_json()["bytes_per_token"]
    sets = {f"topic/{t}": b for t, b in made.validation.items()}
    sets |= {f"client/{k}": b for k, b in enumerate(made.held_out)}
    assert set(found) == {"validation", *sets}
    for name, blocks in sets.items():  # every token but the separator is a byte here
        ends = int((blocks.ids[:, 1:][blocks.mask] == END).sum())
        assert found[name] == pytest.approx(1 - ends / blocks.num_tokens)
    assert found["validation"] == pytest.approx(sum(made.mixture[t] * found[f"topic/{t}"] for t in made.topics))


def test_a_split_by_topics_of_data_without_topics_names_the_columns_that_could_be(tmp_path):
    rows = "".join(f"Text number {i} is here.,{i},{'ab'[i % 2]},site {i % 3}\n" for i in range(60))
    (tmp_path / "train.csv").write_text("text,id,team,place\n" + rows)
    given = ["data.dataset=text", f"data.path={tmp_path}", "federation.total_clients=2"]
    could = {"topic_skew": "topic_column", "topic_isolation": "topic_column", "natural": "group_column"}
    for name, setting in could.items():
        exp = load("quickstart", [*given, f"data.partition={name}"]).experiment
        with pytest.raises(UserError) as told:
            deal_out(exp, load_corpus(exp))
        end = f". Columns that data.{setting} could name: team (2 different values), place (3 different values)"
        assert str(told.value).endswith(end)
        mended = load("quickstart", [*given, f"data.partition={name}", f"data.{setting}=team"]).experiment
        assert len(deal_out(mended, load_corpus(mended)).parts) == 2


def test_a_corpus_without_columns_has_none_to_offer(tmp_path):
    (tmp_path / "train.txt").write_text("\n\n".join(f"{'Word ' * 300}number {i}." for i in range(30)))
    given = ["data.dataset=text", f"data.path={tmp_path / 'train.txt'}", "data.partition=topic_skew"]
    exp = load("quickstart", given).experiment
    with pytest.raises(UserError) as told:
        deal_out(exp, load_corpus(exp))
    assert "all 27 documents have the same topic" in str(told.value)
    assert "Columns" not in str(told.value)


def test_a_file_beside_a_corpus_that_reads_none_is_refused_with_the_way_to_read_it(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    exp = load("instruct/quick", [f"data.path={tmp_path / 'mine.jsonl'}"]).experiment
    with pytest.raises(
        UserError, match=r"'skills' takes no path; leave it out, or read data.path by data.dataset=text"
    ):
        load_corpus(exp)


def test_texts_without_a_token_are_counted(tmp_path):
    class Deaf(Bytes):
        """Digits are no tokens."""

        def __call__(self, texts, **_):
            return super().__call__(["".join(c for c in text if not c.isdigit()) for text in texts])

    (tmp_path / "t.csv").write_text("text\n" + "".join(f"plain text {chr(192 + i)}\n" for i in range(80)) + "7\n42\n")
    changes = [
        "data.dataset=text",
        f"data.path={tmp_path / 't.csv'}",
        "federation.total_clients=2",
        "data.partition=iid",
    ]
    exp = load("quickstart", changes).experiment
    made = split_into_blocks(exp, load_corpus(exp), Deaf(), END)
    assert made.too_short == 2
    assert made.describe_losses()[0].startswith("2 texts are too short")
    assert split_into_blocks(exp, load_corpus(exp), Bytes(), END).describe_losses() == []


def test_examples_are_drawn_until_their_tokens_are_spent_and_one_is_always():
    lengths = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    order = rng(7, "evaluation", "topic", "news").permutation(8)
    some = draw_positions(lengths, int(lengths[order[:3]].sum()), 7, "topic", "news")
    assert some.tolist() == sorted(order[:3].tolist())
    assert draw_positions(lengths, 0, 7, "topic", "news").tolist() == [order[0]]
    assert draw_positions(lengths, 31, 7, "topic", "news").tolist() == list(range(8))
