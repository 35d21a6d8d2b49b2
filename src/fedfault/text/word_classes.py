"""A small, fast tagger for English: a class for every word by lexicon, ending and neighbours.

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


class Class(IntEnum):
    """The classes of words; the second part are words by themselves, whose class the neighbours decide or ask for."""

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


C = Class
CLASSES = [c for c in Class if c <= C.PARTICLE]
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
SECTIONS = {"have": C.VERB, "verb": C.BASE, "function_adverb": C.ADVERB}  # of the lexicon; others are called as a class
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


def tagged(words: Words) -> Codes:
    """The class of every word, (num_words,): one of `CLASSES`."""
    codes = np.array([code(word) for word in words.types], dtype=np.int8)[words.ids]
    place = np.arange(len(codes)) + np.cumsum(words.opens)  # a border before every sentence
    line = np.full(len(codes) + np.count_nonzero(words.opens) + 1, C.BORDER, dtype=np.int8)
    line[place] = codes
    unsure = np.flatnonzero(codes > C.MODAL)
    at = place[unsure]
    before, itself, after = line[at - 1], line[at], line[at + 1]
    before = np.where(before == C.ADVERB, line[at - 2], before)  # they really work
    default = np.array([DEFAULT.get(c, c) for c in Class], dtype=np.int8)
    classes = default[codes]
    classes[unsure] = _decided(default[itself], before, itself, after)
    return classes


def _decided(default: Codes, before: Codes, itself: Codes, after: Codes) -> Codes:
    """The classes of words with two, from the codes of their neighbours."""
    defines = _among(before, C.ARTICLE, C.POSSESSIVE)
    object_ = _among(after, C.ARTICLE, C.POSSESSIVE, C.PRONOUN, C.THAT)
    plain = _among(itself, C.PLAIN, C.OPEN, C.LIKE) & _among(before, C.SUBJECT, C.MODAL, C.TO)
    plain |= _among(itself, C.PLAIN, C.OPEN) & _among(before, C.BORDER, C.NOUN, C.THIRD) & object_
    third = _among(before, C.SUBJECT, C.PRONOUN, C.THAT) | (_among(before, C.NOUN, C.PLAIN, C.THIRD) & object_)
    rules = [
        (plain | ((itself == C.THIRD) & third), C.VERB),
        ((itself == C.PAST) & defines, C.ADJECTIVE),
        (_among(itself, C.GERUND, C.BASE) & (defines | (before == C.ADJECTIVE)), C.NOUN),
        ((itself == C.DEGREE) & _among(after, C.ADJECTIVE, C.ADVERB, C.PAST), C.ADVERB),
        ((itself == C.TIME) & (after == C.SUBJECT), C.CONJUNCTION),
        ((itself == C.TO) & _among(after, C.VERB, C.BASE, C.MODAL, C.PLAIN, C.OPEN, C.LIKE, C.ADVERB), C.PARTICLE),
        ((itself == C.THAT) & _among(after, C.SUBJECT, C.POSSESSIVE, C.ARTICLE, C.THAT), C.CONJUNCTION),
    ]
    return np.select([rule for rule, _ in rules], [np.int8(c) for _, c in rules], default)


def _among(codes: Codes, *wanted: Class) -> Bools:
    table = np.zeros(len(Class), dtype=bool)
    table[list(wanted)] = True
    return table[codes]


def code(word: str) -> Class:
    """What a word, in lower case, is by itself.

    >>> [code(word).name for word in ("they're", "worked", "beautifully", "cat")]
    ['PRONOUN', 'PAST', 'ADVERB', 'NOUN']
    """
    known = lexicon()
    if word in known:
        return known[word]
    if "'" in word:
        return _contraction(word)
    if not word.isalpha():
        return C.NUMBER if word.isdecimal() else C.ADJECTIVE if _ORDINAL.fullmatch(word) else C.NOUN
    if _LAUGHTER.fullmatch(word):
        return C.INTERJECTION
    if _STRETCHED.search(word):
        return next((known[w] for s in (r"\1\1", r"\1") if (w := _STRETCHED.sub(s, word)) in known), C.NOUN)
    return next((c for letters, ends, c in _ENDINGS if len(word) >= letters and word.endswith(ends)), C.NOUN)


def _contraction(word: str) -> Class:
    base, _, rest = word.partition("'")
    if word.endswith("n't"):
        return C.MODAL
    first = code(base)
    if DEFAULT[first] == C.PRONOUN:
        return C.SUBJECT if rest in ("ll", "d", "ve") else C.PRONOUN
    return first if DEFAULT[first] in (C.ADVERB, C.VERB) and rest == "s" else C.NOUN


def is_function_word(word: str) -> bool:
    """Articles, pronouns, determiners, prepositions, conjunctions, auxiliaries, some adverbs, and their contractions."""
    return word.endswith("n't") or not _function_words().isdisjoint((word, word.partition("'")[0]))


@functools.cache
def lexicon() -> dict[str, Class]:
    """What every listed word, and every form of it, is by itself."""
    known = {word: SECTIONS.get(name) or Class[name.upper()] for name, words in _sections().items() for word in words}
    for name, third in (("verb", C.VERB), ("plain", C.THIRD), ("open", C.VERB)):
        for word in _sections()[name]:
            _add(known, third, _with_s(word))
            _add(known, C.PAST, *_with(word, "ed"))
            _add(known, C.GERUND, *_with(word, "ing"))
    for word in _sections()["adjective"]:
        _add(known, C.ADJECTIVE, *_with(word, "er"), *_with(word, "est"))
    return known


def _add(known: dict[str, Class], is_a: Class, *words: str) -> None:
    for word in words:
        known.setdefault(word, is_a)


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in _VOWELS else word + "s"


def _with(word: str, ending: str) -> Iterator[str]:
    """hope: hoped, hoping; carry: carried, carrying; stop: stoped, stopped, where the wrong one does no harm."""
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
def _function_words() -> frozenset[str]:
    return frozenset(word for name in FUNCTION for word in _sections()[name])


@functools.cache
def _sections() -> dict[str, list[str]]:
    text = Path(__file__).with_name("lexicon.txt").read_text(encoding="utf-8")
    parts = re.split(r"^\[(\w+)\]$", re.sub(r"^#.*", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return {name: words.split() for name, words in zip(parts[1::2], parts[2::2], strict=True)}
