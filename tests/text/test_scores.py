import csv

import numpy as np
import pytest

from fedfault.text.scores import complexity, count_syllables, formality, length_in_words, mean_log_frequency
from fedfault.text.words import split_words


def test_formality_of_sentences_tagged_by_hand():
    texts = [
        "The old man slept quietly in the garden.",  # 6 nouns, adjectives, prepositions, articles; 2 of the others
        "Report of the committee",
        "Wow, I love it!",
        "Two or three",  # numbers and conjunctions count as words only
        "",
    ]
    np.testing.assert_allclose(formality(split_words(texts)), [75, 100, 0, 50, 50])


def test_grade_levels_by_hand():
    texts = ["The cat sat. The dog ran!", "Probably considerable difficulties", "?"]
    expected = [0.39 * 6 / 2 + 11.8 * 6 / 6 - 15.59, 0.39 * 3 + 11.8 * 12 / 3 - 15.59, -15.59]
    np.testing.assert_allclose(complexity(split_words(texts)), expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("the made makes walked played whale eye queue tv 12 strengths", 1),
        ("table people houses places boxes wanted apples reading money", 2),
        ("syllable beautiful probably difficult families", 3),
    ],
)
def test_syllables_by_hand(words, expected):
    assert {word: count_syllables(word) for word in words.split()} == dict.fromkeys(words.split(), expected)


def test_frequency_is_the_mean_log_share_of_the_words():
    a, b = np.log(3 / 5), np.log(1 / 5)
    expected = [(2 * a + b) / 3, a, b, (3 * a + 2 * b) / 5]  # without words: the mean of all words
    np.testing.assert_allclose(mean_log_frequency(split_words(["A a, b", "a", "c", "..."])), expected)


def test_lengths_are_numbers_of_words():
    assert length_in_words(split_words(["It's one, two!", "", "naïve"])).tolist() == [3, 0, 1]


@pytest.mark.parametrize("score", [formality, complexity, mean_log_frequency, length_in_words])
@pytest.mark.parametrize("texts", [[], [""], ["", "?!", " \n"]])
def test_texts_without_words_have_a_finite_score(score, texts):
    found = score(split_words(texts))
    assert found.shape == (len(texts),)
    assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.shared
def test_formality_and_complexity_rise_from_talk_to_encyclopedia(shared_data):
    """As in the literature: what is said to somebody is less formal than what is written for anybody."""

    def column(file):
        with (shared_data / file).open(encoding="utf-8", newline="") as lines:
            return [row["text"] for row in csv.DictReader(lines)]

    wiki = (shared_data / "wikitext2_raw/valid.txt").read_text(encoding="utf-8").split("\n")
    sets = {
        "Reddit": column("goemotions_reddit/test.csv"),
        "tweets": column("vader_styles/tweets.csv"),
        "editorials": column("vader_styles/nyt_editorials.csv"),
        "Wikipedia": [line for line in wiki if line.strip() and not line.startswith(" =")],
    }
    found = {name: split_words(texts) for name, texts in sets.items()}
    F = [formality(words).mean() for words in found.values()]
    assert np.diff(F).min() > 3, dict(zip(found, F, strict=True))
    grade = [complexity(words).mean() for words in found.values()]
    assert np.diff(grade).min() > 1, dict(zip(found, grade, strict=True))
