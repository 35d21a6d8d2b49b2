"""A small, fast tagger for English, which gives every word a class by lexicon, ending and neighbours.

The lexicon (lexicon.txt) has the closed classes, common verbs, adjectives and adverbs, and nouns that look like one of
those. Inflected forms are made by rule. A word that is not there is classed by its ending, else it is a noun. Words of
two classes, such as "work", are decided by their neighbours: "to work" and "they work", but "the work".

On seven sets of English texts that the lexicon was not made with (424,000 words of news, reviews, comments, questions and
encyclopedia) the class is that of the tagger of TextBlob 0.20 for 91 % of the words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfault.text.words import Bools, Words

Codes = NDArray[np.int8]


class WordClass(IntEnum):
    """The classes of words, and codes for words that need their neighbours: PAST is a verb or an adjective.

    Classes come first; the codes after them are what a word is by itself, before its neighbours decide.
    """

    NOUN = 0
    ADJECTIVE = 1
    PREPOSITION = 2
    ARTICLE = 3
    PRONOUN = 4  # also determiners that point: my, this
    VERB = 5
    ADVERB = 6
    INTERJECTION = 7
    CONJUNCTION = 8
    DETERMINER = 9  # all others, such as some, each, many
    NUMBER = 10
    PARTICLE = 11  # to, before a verb

    SUBJECT = 12  # a pronoun before a verb: they
    POSSESSIVE = 13  # a pronoun before a noun: their
    MODAL = 14  # a verb before a verb: will, do
    PLAIN = 15  # noun or verb: work
    OPEN = 16  # adjective or verb: open
    THIRD = 17  # noun or verb: works
    PAST = 18  # verb or adjective: worked
    GERUND = 19  # verb or noun: working
    BASE = 20  # verb or noun: ask
    DEGREE = 21  # determiner or adverb: more
    TIME = 22  # preposition or conjunction: before
    TO = 23  # preposition or particle
    LIKE = 24  # preposition or verb
    THAT = 25  # pronoun or conjunction
    BORDER = 26  # no word: a sentence begins


C = WordClass
CLASSES = [c for c in WordClass if c <= C.PARTICLE]
DEFAULT = {c: c for c in CLASSES} | {
    C.SUBJECT: C.PRONOUN,
    C.POSSESSIVE: C.PRONOUN,
    C.MODAL: C.VERB,
    C.PLAIN: C.NOUN,
    C.OPEN: C.ADJECTIVE,
    C.THIRD: C.NOUN,
    C.PAST: C.VERB,
    C.GERUND: C.VERB,
    C.BASE: C.VERB,
    C.DEGREE: C.DETERMINER,
    C.TIME: C.PREPOSITION,
    C.TO: C.PREPOSITION,
    C.LIKE: C.PREPOSITION,
    C.THAT: C.PRONOUN,
}
# of the lexicon; its other sections have the names of classes
SECTIONS = {"have": C.VERB, "verb": C.BASE, "function_adverb": C.ADVERB}
FUNCTION = {"article", "subject", "pronoun", "possessive", "determiner", "degree", "preposition", "time", "to", "like"}
FUNCTION |= {"that", "conjunction", "modal", "have", "function_adverb"}

_VOWELS = "aeiou"
_LAUGHTER = re.compile(r"(?:[bm]?w?[hj]+[aeiou]+){2,}h?|l+(?:o+l+)+z?|lmf?a+o+|a+[hw]+|o+h+|[hu]*m{2,}|y+a+y+")
_STRETCHED = re.compile(r"(.)\1{2,}")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")
_ENDINGS = [  # of words with so many letters at least
    (5, ("ly",), C.ADVERB),
    (5, ("ing",), C.GERUND),
    (4, ("eed",), C.NOUN),
    (5, ("ed",), C.PAST),
    (7, ("ize", "izes", "ise", "ises", "ify", "ifies"), C.VERB),
    (5, ("ous", "ful", "less", "able", "ible", "ic", "al", "ive", "ish", "iest", "ary", "esque", "proof"), C.ADJECTIVE),
]


def tag_words(words: Words) -> Codes:
    """Give every word one of `CLASSES`, (num_words,)."""
    codes = np.array([classify_word(word) for word in words.types], dtype=np.int8)[words.ids]
    place = np.arange(len(codes)) + np.cumsum(words.starts_sentence)  # a border before every sentence
    line = np.full(len(codes) + np.count_nonzero(words.starts_sentence) + 1, C.BORDER, dtype=np.int8)
    line[place] = codes
    unsure = np.flatnonzero(codes > C.MODAL)
    at = place[unsure]
    before, itself, after = line[at - 1], line[at], line[at + 1]
    before = np.where(before == C.ADVERB, line[at - 2], before)  # they really work
    default = np.array([DEFAULT.get(c, c) for c in WordClass], dtype=np.int8)
    classes = default[codes]
    classes[unsure] = _decide_by_neighbours(default[itself], before, itself, after)
    return classes


def _decide_by_neighbours(default: Codes, before: Codes, itself: Codes, after: Codes) -> Codes:
    """Decide between the two classes of ambiguous words by the codes of their neighbours; `default` where no rule fits."""
    defines = _is_among(before, C.ARTICLE, C.POSSESSIVE)
    object_ = _is_among(after, C.ARTICLE, C.POSSESSIVE, C.PRONOUN, C.THAT)
    plain = _is_among(itself, C.PLAIN, C.OPEN, C.LIKE) & _is_among(before, C.SUBJECT, C.MODAL, C.TO)
    plain |= _is_among(itself, C.PLAIN, C.OPEN) & _is_among(before, C.BORDER, C.NOUN, C.THIRD) & object_
    third = _is_among(before, C.SUBJECT, C.PRONOUN, C.THAT) | (_is_among(before, C.NOUN, C.PLAIN, C.THIRD) & object_)
    rules = [
        (plain | ((itself == C.THIRD) & third), C.VERB),
        ((itself == C.PAST) & defines, C.ADJECTIVE),
        (_is_among(itself, C.GERUND, C.BASE) & (defines | (before == C.ADJECTIVE)), C.NOUN),
        ((itself == C.DEGREE) & _is_among(after, C.ADJECTIVE, C.ADVERB, C.PAST), C.ADVERB),
        ((itself == C.TIME) & (after == C.SUBJECT), C.CONJUNCTION),
        ((itself == C.TO) & _is_among(after, C.VERB, C.BASE, C.MODAL, C.PLAIN, C.OPEN, C.LIKE, C.ADVERB), C.PARTICLE),
        ((itself == C.THAT) & _is_among(after, C.SUBJECT, C.POSSESSIVE, C.ARTICLE, C.THAT), C.CONJUNCTION),
    ]
    return np.select([rule for rule, _ in rules], [np.int8(c) for _, c in rules], default)


def _is_among(codes: Codes, *wanted: WordClass) -> Bools:
    table = np.zeros(len(WordClass), dtype=bool)
    table[list(wanted)] = True
    return table[codes]


def classify_word(word: str) -> WordClass:
    """The class or code of a word, in lower case, by itself.

    >>> [classify_word(word).name for word in ("they're", "worked", "beautifully", "cat")]
    ['PRONOUN', 'PAST', 'ADVERB', 'NOUN']
    """
    known = build_lexicon()
    if word in known:
        return known[word]
    if "'" in word:
        return _classify_contraction(word)
    if not word.isalpha():
        return C.NUMBER if word.isdecimal() else C.ADJECTIVE if _ORDINAL.fullmatch(word) else C.NOUN
    if _LAUGHTER.fullmatch(word):
        return C.INTERJECTION
    if _STRETCHED.search(word):
        return next((known[w] for s in (r"\1\1", r"\1") if (w := _STRETCHED.sub(s, word)) in known), C.NOUN)
    return next((c for letters, ends, c in _ENDINGS if len(word) >= letters and word.endswith(ends)), C.NOUN)


def _classify_contraction(word: str) -> WordClass:
    base, _, rest = word.partition("'")
    if word.endswith("n't"):
        return C.MODAL
    first = classify_word(base)
    if DEFAULT[first] == C.PRONOUN:
        return C.SUBJECT if rest in ("ll", "d", "ve") else C.PRONOUN
    return first if DEFAULT[first] in (C.ADVERB, C.VERB) and rest == "s" else C.NOUN


def is_function_word(word: str) -> bool:
    """Whether a word is an article, pronoun, determiner, preposition, conjunction, auxiliary or such an adverb.

    Contractions of these count too.
    """
    return word.endswith("n't") or not _list_function_words().isdisjoint((word, word.partition("'")[0]))


@functools.cache
def build_lexicon() -> dict[str, WordClass]:
    """Build the table of all listed words and their forms, each with its class or code."""
    known = {
        word: SECTIONS.get(name) or WordClass[name.upper()]
        for name, words in _read_sections().items()
        for word in words
    }
    for name, third in (("verb", C.VERB), ("plain", C.THIRD), ("open", C.VERB)):
        for word in _read_sections()[name]:
            _enter_words(known, third, _add_s(word))
            _enter_words(known, C.PAST, *_add_ending(word, "ed"))
            _enter_words(known, C.GERUND, *_add_ending(word, "ing"))
    for word in _read_sections()["adjective"]:
        _enter_words(known, C.ADJECTIVE, *_add_ending(word, "er"), *_add_ending(word, "est"))
    return known


def _enter_words(known: dict[str, WordClass], is_a: WordClass, *words: str) -> None:
    for word in words:
        known.setdefault(word, is_a)


def _add_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in _VOWELS else word + "s"


def _add_ending(word: str, ending: str) -> Iterator[str]:
    """Yield a word's forms with an ending: hope, hoped; carry, carried; stop, stoped and stopped (one wrong, no harm)."""
    if word.endswith("ie") and ending == "ing":
        yield word[:-2] + "ying"
    elif word.endswith("e"):
        yield word[:-1] + ending
    elif word.endswith("y") and word[-2] not in _VOWELS and ending != "ing":
        yield word[:-1] + "i" + ending
    else:
        yield word + ending
        if len(word) > 2 and word[-1] not in _VOWELS + "wxy" and word[-2] in _VOWELS:
            yield word + word[-1] + ending


@functools.cache
def _list_function_words() -> frozenset[str]:
    return frozenset(word for name in FUNCTION for word in _read_sections()[name])


@functools.cache
def _read_sections() -> dict[str, list[str]]:
    text = Path(__file__).with_name("lexicon.txt").read_text(encoding="utf-8")
    parts = re.split(r"^\[(\w+)\]$", re.sub(r"^#.*", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return {name: words.split() for name, words in zip(parts[1::2], parts[2::2], strict=True)}
