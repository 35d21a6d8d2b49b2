import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.text import words
from fedfault.text.words import count_words, remove_words, shorten_texts, split_words

WORD = re.compile(r"\w+(?:['’]\w+)*")
TEXTS = st.lists(st.text("ab'’ .!\n\t_7éß漢İ\ud800\0", max_size=12) | st.text(max_size=12), max_size=6)


def words_of(text):
    return [word.lower().replace("’", "'") for word in WORD.findall(text)]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_words_are_what_the_regular_expression_matches(texts):
    found = split_words(texts)
    assert [found.types[i] for i in found.ids] == [word for text in texts for word in words_of(text)]
    assert found.counts.tolist() == count_words(texts).tolist() == [len(words_of(text)) for text in texts]
    assert len(set(found.types)) == len(found.types)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(TEXTS, st.randoms(use_true_random=False))
def test_taking_words_out_is_what_the_regular_expression_would_do(texts, random):
    gone = [[random.random() < 0.4 for _ in words_of(text)] for text in texts]

    def expected(text, marks):
        marks = iter(marks)
        left = re.sub(r"(\s*)(" + WORD.pattern + ")", lambda m: "" if next(marks) else m[0], text)
        return left if text[:1].isspace() else left.lstrip()

    flat = np.array([mark for marks in gone for mark in marks], dtype=bool)
    assert remove_words(texts, flat) == [expected(*pair) for pair in zip(texts, gone, strict=True)]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 4))
def test_a_shortened_text_ends_with_its_last_word(texts, limit):
    limits = np.arange(len(texts)) % 3 + limit
    for text, n, short in zip(texts, limits.tolist(), shorten_texts(texts, limits), strict=True):
        ends = [m.end() for m in WORD.finditer(text)]
        assert short == (text if len(ends) <= n else text[: ends[n - 1]])


def test_what_stands_around_a_missing_word_stays():
    text = 'He said: "Go (now)!"\n\nShe went...'
    gone = np.array([True, False, False, True, False, True])  # he, now, went
    assert remove_words([text], gone) == ['said: "Go ()!"\n\nShe...']


def test_sentences_open_after_a_stop_but_not_within_numbers_and_names():
    texts = ["", "Version 3.5 of foo.bar. Is it (any) good?! Yes … 'Yes' it is", "no stop", "..."]
    found = split_words(texts)
    opening = [found.types[i] for i in found.ids[found.starts_sentence]]
    assert opening == ["version", "is", "yes", "yes", "no"]


def test_texts_are_read_in_chunks_alike(monkeypatch: pytest.MonkeyPatch):
    texts = [f"Text {i}. It's  the {'very ' * (i % 7)}same!" for i in range(60)]
    gone = np.random.default_rng(0).random(count_words(texts).sum()) < 0.5
    limits = np.arange(60) % 5 + 1

    def results():
        found = split_words(texts)
        arrays = found.ids.tolist(), found.starts_sentence.tolist(), found.counts.tolist()
        return found.types, arrays, remove_words(texts, gone), shorten_texts(texts, limits)

    whole = results()
    monkeypatch.setattr(words, "CHUNK", 100)
    assert results() == whole
