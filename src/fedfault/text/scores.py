"""Scores of documents, one number each, from their words."""

from __future__ import annotations

import re

import numpy as np

from fedfault.scheduling import Floats
from fedfault.text.word_classes import WordClass, tag_words
from fedfault.text.words import Words

SIGN = np.zeros(len(WordClass))
SIGN[[WordClass.NOUN, WordClass.ADJECTIVE, WordClass.PREPOSITION, WordClass.ARTICLE]] = 1
SIGN[[WordClass.PRONOUN, WordClass.VERB, WordClass.ADVERB, WordClass.INTERJECTION]] = -1

_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^aeiouyl]|[aeiouy]l)e$|(?:[^aeiouylscgzxh]|[aeiouy]l)es$|[^aeiouytd]ed$")


def length_in_words(words: Words) -> Floats:
    """Length of each text in words, (n,)."""
    return words.counts.astype(np.float64)


def formality(words: Words) -> Floats:
    """Formality F of each text, (n,): 0 is all talk, 100 all description; 50 without words.

    F = 1/2 (noun% + adjective% + preposition% + article% - pronoun% - verb% - adverb% - interjection% + 100), in per cent
    of all words. A single sentence has a very noisy F: Heylighen and Dewaele advise some hundred words.

    Reference: Heylighen and Dewaele, Foundations of Science 7, 2002.
    """
    return 50 * (1 + _mean_by_text(words, SIGN[tag_words(words)]))


def complexity(words: Words) -> Floats:
    """Flesch-Kincaid grade level of each text, (n,): .39 words/sentences + 11.8 syllables/words - 15.59.

    A type-token ratio would mostly tell how long the text is.

    Reference: Kincaid et al., Naval Technical Training Command, Research Branch Report 8-75, 1975.
    """
    num_syllables = np.array([count_syllables(word) for word in words.types], dtype=np.float64)
    num_sentences = np.bincount(words.text_of_word[words.starts_sentence], minlength=len(words.counts))
    per_sentence = words.counts / np.maximum(num_sentences, 1)
    grade: Floats = 0.39 * per_sentence + 11.8 * _mean_by_text(words, num_syllables[words.ids]) - 15.59
    return grade


def mean_log_frequency(words: Words) -> Floats:
    """Mean log unigram frequency of each text's words, in nats, (n,); a text without words has the mean of all words."""
    log_frequency = np.log(np.bincount(words.ids) / max(len(words.ids), 1))[words.ids]
    mean = _mean_by_text(words, log_frequency)
    mean[words.counts == 0] = log_frequency.mean() if len(log_frequency) else 0.0
    return mean


def count_syllables(word: str) -> int:
    """Count the syllables of a word in lower case: groups of vowels and y, without a silent -e, -es or -ed; one at least.

    >>> [count_syllables(word) for word in ("table", "made", "created", "walked", "houses", "tv")]
    [2, 1, 2, 1, 2, 1]
    """
    return max(len(_VOWELS.findall(word)) - (_SILENT.search(word) is not None), 1)


def _mean_by_text(words: Words, values: Floats) -> Floats:
    """Mean over the words of each text of values (num_words,); 0 without words."""
    total = np.bincount(words.text_of_word, weights=values, minlength=len(words.counts))
    mean: Floats = total / np.maximum(words.counts, 1)
    return mean
