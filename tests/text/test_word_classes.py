import re
import time

import pytest

from fedfault.text import word_classes
from fedfault.text.word_classes import CLASSES, WordClass, build_lexicon, classify_word, is_function_word, tag_words
from fedfault.text.words import split_words

SHORT = {
    **{"n": "NOUN", "j": "ADJECTIVE", "p": "PREPOSITION", "t": "ARTICLE", "o": "PRONOUN", "v": "VERB", "r": "ADVERB"},
    **{"i": "INTERJECTION", "c": "CONJUNCTION", "d": "DETERMINER", "#": "NUMBER", "-": "PARTICLE"},
}


def classes(text):
    return [WordClass(c).name for c in tag_words(split_words([text]))]


@pytest.mark.parametrize(
    "sentence",
    [
        "The/t old/j man/n and/c his/o dog/n slept/v quietly/r in/p the/t garden/n",
        "They/o work/v hard/j but/c the/t work/n is/v never/r done/v",
        "I/o really/r love/v this/o",
        "Love/v my/o new/j phone/n",
        "She/o works/v there/r . The/t works/n of/p Shakespeare/n",
        "He/o wants/v to/- go/v to/p the/t market/n",
        "Open/v the/t door/n . The/t door/n is/v open/j",
        "Some/d people/n don't/v like/v cats/n like/p that/o",
        "We/o know/v that/c they/o left/v before/c you/o came/v",
        "After/p lunch/n two/# kids/n played/v 3/# games/n",
        "It's/o more/r important/j than/c more/d money/n",
        "The/t newly/r elected/j mayor/n was/v elected/v twice/r",
        "A/t good/j cut/n . They/o are/v cutting/v it/o . The/t swimming/n was/v fun/j",
        "Lol/i hahaha/i that/o was/v sooooo/r funny/j",
        "The/t family's/n 2nd/j reply/n . I'll/o reply/v",
    ],
)
def test_a_sentence_is_tagged_as_a_reader_would(sentence):
    text = re.sub(r"/\S", "", sentence).replace(" . ", ". ")
    assert classes(text) == [SHORT[short] for short in re.findall(r"/(\S)", sentence)]


def test_a_sentence_does_not_see_the_one_before():
    assert classes("I want to. Work is fun.")[3] == "NOUN"
    assert tag_words(split_words(["I want to", "work is fun"]))[3] == WordClass.NOUN


def test_every_word_has_one_class():
    text = "That more like to before works worked working open will they their the 12 x2y naïve ﬁ ____ a'b'c'd"
    assert set(tag_words(split_words([text])).tolist()) <= set(CLASSES)
    assert tag_words(split_words(["", "?!"])).tolist() == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stopped", WordClass.PAST),
        ("carries", WordClass.VERB),
        ("lying", WordClass.GERUND),
        ("plays", WordClass.THIRD),
        ("bigger", WordClass.ADJECTIVE),
        ("happiest", WordClass.ADJECTIVE),
        ("zorgly", WordClass.ADVERB),
        ("zorgless", WordClass.ADJECTIVE),
        ("zorgize", WordClass.VERB),
        ("zorg", WordClass.NOUN),
        ("seed", WordClass.NOUN),
        ("isn't", WordClass.MODAL),
        ("they've", WordClass.SUBJECT),
        ("what's", WordClass.PRONOUN),
        ("john's", WordClass.NOUN),
        ("yessss", WordClass.INTERJECTION),
        ("lolol", WordClass.INTERJECTION),
    ],
)
def test_a_word_by_itself(word, expected):
    assert classify_word(word) == expected


def test_long_words_take_no_time():
    """Rules that look back again and again would need minutes for a word of 100,000 letters."""
    began = time.process_time()
    for letters in ("a", "lo", "ha", "oz", "'", "m", "e1"):
        classify_word("x" + letters * 100_000 + "x")
    assert time.process_time() - began < 10


def test_no_word_is_listed_twice():
    listed = [word for words in word_classes._read_sections().values() for word in words]
    assert len(set(listed)) == len(listed)
    assert split_words([" ".join(listed)]).types == listed


def test_closed_classes_are_complete():
    for words, wanted in {
        "i you he she it we they me him us them myself who nobody": WordClass.PRONOUN,
        "my your his her its our their": WordClass.PRONOUN,
        "of in on at by for with from into about between through during without": WordClass.PREPOSITION,
        "and or but because although if whether while": WordClass.CONJUNCTION,
        "am is are was were be been being have has had do does did can could may might must shall will": WordClass.VERB,
    }.items():
        for word in words.split():
            assert word_classes.DEFAULT[build_lexicon()[word]] == wanted, word


def test_function_words_are_the_closed_classes_and_their_contractions():
    function = "the of and they their is don't it's i'm would not to that very can't won't"
    assert all(map(is_function_word, function.split()))
    other = "dog dog's run green quickly yes o'clock rock'n'roll 12 let's"
    assert not any(map(is_function_word, other.split()))
