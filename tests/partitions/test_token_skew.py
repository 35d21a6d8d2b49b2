import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.partitions.token_skew import token_skew
from fedfault.registry import build
from fedfault.text.words import count_words
from fedfault.types.corpus import Document

CHANGING = ["truncation", "vocabulary", "stopwords"]


def split(texts, num_clients, seed=0, **options):
    return token_skew(**options)([Document(text, "topic") for text in texts], num_clients, np.random.default_rng(seed))


def texts_of(deal, texts):
    """The texts of each client as it has them."""
    return [[deal.texts.get(i, texts[i]) for i in own.tolist()] for own in deal.clients]


def test_frequency_puts_rare_words_together():
    texts = ["to be or not to be"] * 20 + [f"rare{i} word{i}" for i in range(20)]
    deal = split(texts, 4, type="frequency")
    assert sorted(sorted({i < 20 for i in own.tolist()}) for own in deal.clients) == [[False], [False], [True], [True]]
    assert deal.texts == {}
    assert deal.removed is None
    mixed = split(texts, 4, type="frequency", purity=0.0)
    assert all(len({i < 20 for i in own.tolist()}) == 2 for own in mixed.clients)


def test_truncation_limits_rise_in_equal_ratios_by_hand():
    texts = [" ".join(f"w{i}" for i in range(32)) + "."] * 9
    deal = split(texts, 3, type="truncation", min_words=2, max_words=8)
    lengths = [set(count_words(own).tolist()) for own in texts_of(deal, texts)]
    assert sorted(map(tuple, lengths)) == [(2,), (4,), (8,)]
    assert deal.removed == [3 * (32 - min(own)) for own in lengths]
    assert set(deal.texts.values()) == {"w0 w1", "w0 w1 w2 w3", "w0 w1 w2 w3 w4 w5 w6 w7"}


def test_without_max_words_one_client_has_whole_texts():
    texts = [f"{'word, ' * 40}end." for _ in range(8)]
    deal = split(texts, 4, type="truncation", min_words=5)
    assert sorted(deal.removed) == sorted(2 * (41 - n) for n in (5, 10, 20, 41))  # 5 (41/5)^(k/3), rounded
    assert sorted(deal.texts.values(), key=len)[0] == "word, word, word, word, word"


def test_which_client_has_the_shortest_texts_depends_on_the_seed():
    texts = ["one two three four five six"] * 6
    most = {int(np.argmax(split(texts, 3, seed, type="truncation", min_words=1).removed)) for seed in range(30)}
    assert most == {0, 1, 2}


def test_middle_types_by_hand():
    """Of 20 words, a is 10, b 4, c 3, d 2 and e 1: b and c lie between the first half and the last tenth."""
    texts = ["a b c d e", "A, b; c d", "a b c", "a b"] + ["a"] * 6
    deal = split(texts, 2, type="vocabulary", fraction=1.0)
    assert {i: deal.texts[i] for i in sorted(deal.texts)} == {0: "a d e", 1: "A,; d", 2: "a", 3: "a"}
    assert sum(deal.removed) == 7
    assert "2 of 2 types" in deal.notes[0]


def test_every_client_has_holes_of_its_own_in_the_middle_of_the_vocabulary():
    generator = np.random.default_rng(3)
    law = 1 / np.arange(1, 401)
    texts = [" ".join(f"w{i}" for i in generator.choice(400, 40, p=law / law.sum())) for _ in range(300)]
    deal = split(texts, 3, type="vocabulary", fraction=0.5)
    lost, of = map(int, re.search(r"lacks (\d+) of (\d+) types", deal.notes[0]).groups())
    assert lost == round(of / 2)
    before = [{w for i in own for w in texts[i].split()} for own in deal.clients]
    after = [{w for text in own for w in text.split()} for own in texts_of(deal, texts)]
    missing = [b - a for b, a in zip(before, after, strict=True)]
    assert all(0.8 * lost < len(own) <= lost for own in missing)  # a client need not have had all of them
    assert "w0" not in set.union(*missing)
    assert 0.3 < len(missing[0] & missing[1]) / len(missing[0]) < 0.7  # half of one half is shared by chance


def test_stop_words_are_taken_from_some_clients():
    texts = ["It's the end of the world, and I don't feel fine!"] * 12
    deal = split(texts, 4, type="stopwords", affected=0.25)
    assert sorted(deal.removed) == [0, 0, 0, 3 * 7]
    assert set(deal.texts.values()) == {"end world, feel fine!"}
    assert "1 of 4 clients" in deal.notes[0]


@pytest.mark.parametrize(("affected", "num_clients", "expected"), [(0, 5, 0), (0.5, 1, 1), (0.1, 30, 3), (1, 7, 7)])
def test_the_affected_share_is_rounded_to_the_nearest_client(affected, num_clients, expected):
    deal = split(["the cat"] * num_clients, num_clients, type="stopwords", affected=affected)
    assert sum(n > 0 for n in deal.removed) == expected


def test_a_text_of_stop_words_keeps_its_first_word():
    deal = split(["(To be), or not to be?", "of", "...", ""], 1, type="stopwords", affected=1.0)
    assert deal.texts == {0: "(To),?"}
    assert deal.removed == [5]


@pytest.mark.parametrize("nothing", [{"type": "vocabulary", "fraction": 0.0}, {"type": "stopwords", "affected": 0.0}])
def test_nothing_to_take_leaves_the_text_as_it_is(nothing):
    deal = split(["The cat sat on the mat."] * 10, 3, **nothing)
    assert deal.texts == {}
    assert deal.removed == [0, 0, 0]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text("ab' .\n") | st.sampled_from(["the", "It's the cat", "?", "naïve  of  it"]), min_size=1),
    num_clients=st.integers(1, 5),
    type_=st.sampled_from(CHANGING),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    min_words=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_what_is_removed_is_missing_and_nothing_else(texts, num_clients, type_, share, min_words, seed):
    if len(texts) < num_clients:
        return
    options = {"fraction": share, "affected": share, "min_words": min_words}
    deal = split(texts, num_clients, seed, type=type_, **options)
    left = texts_of(deal, texts)
    for own, after, removed in zip(deal.clients, left, deal.removed, strict=True):
        before = count_words([texts[i] for i in own])
        assert removed == before.sum() - count_words(after).sum()
        assert (count_words(after)[before > 0] > 0).all()
    for i, text in deal.texts.items():
        assert text != texts[i]
        rest = iter(texts[i])
        assert all(char in rest for char in text)  # what is left is in the old order


def test_the_documents_are_dealt_as_iid_deals_them():
    texts = [f"the text number {i}" for i in range(20)]
    given_to = {t: [own.tolist() for own in split(texts, 3, seed=4, type=t).clients] for t in CHANGING}
    iid = build("partition", "iid")([Document(text, "topic") for text in texts], 3, np.random.default_rng(4))
    assert all(own == [mine.tolist() for mine in iid.clients] for own in given_to.values())


def test_a_maximum_below_the_minimum_is_refused():
    with pytest.raises(UserError, match="max_words=3 is less than min_words=8"):
        build("partition", "token_skew", type="truncation", max_words=3)


@pytest.mark.parametrize("wrong", [{"type": "noise"}, {"fraction": 1.5}, {"affected": -1.0}, {"min_words": 0}])
def test_other_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        build("partition", "token_skew", **wrong)


@pytest.mark.parametrize(("type", "said"), [("stopwords", "no word is taken out"), ("frequency", "the same mean log")])
def test_texts_in_which_nothing_differs_are_an_iid_split_and_that_is_said(type, said):
    texts = [f"Wort{i}" for i in range(40)]
    (note,) = [note for note in split(texts, 4, type=type).notes if "IID" in note]
    assert said in note
    assert not any("IID" in note for note in split(["The cat and the dog", "a dog"] * 20, 4, type=type).notes)
