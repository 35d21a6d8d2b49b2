"""The contract of corpora. One that reads files is given them by options: `check("corpus", ag_news, path=folder)`."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from fedfault.reading.documents import hash_text
from fedfault.registry import read_summary
from fedfault.testing.rules import Subject, expect, rule
from fedfault.types.corpus import Corpus, Document

KIND = "corpus"


def _read(subject: Subject) -> Corpus:
    corpus = subject.build()
    expect(isinstance(corpus, Corpus), f"it is a {type(corpus).__name__}, not a types.corpus.Corpus")
    found: Corpus = corpus
    return found


_read_once = lru_cache(maxsize=1)(_read)  # for rules that look at one; the next subject's takes its place


@rule(KIND)
def it_is_a_corpus_with_both_sides(subject: Subject) -> None:
    """There is something to train on, something to validate on, and a source that can be found again."""
    corpus = _read_once(subject)
    expect(corpus.train and corpus.validation, f"{len(corpus.train)} to train on, {len(corpus.validation)} to validate")
    expect(len(corpus.source) > 5, f"the source is {corpus.source!r}")


@rule(KIND)
def it_has_the_name_that_it_is_chosen_by(subject: Subject) -> None:
    """`Corpus.name` is the name that the builder is registered under."""
    said = _read_once(subject).name
    expect(said == subject.name, f"it says {said!r} and is called {subject.name!r}")


@rule(KIND)
def no_text_is_there_twice_or_on_both_sides(subject: Subject) -> None:
    """Of texts with the same characters, whatever case and blanks, one is kept; no text of train is in validation."""
    corpus = _read_once(subject)
    seen = Counter(hash_text(d.text) for d in corpus.train + corpus.validation)
    twice = [d.text[:40] for d in corpus.train + corpus.validation if seen[hash_text(d.text)] > 1]
    expect(not twice, f"{len(twice)} documents have the text of another, the first is {next(iter(twice), '')!r}")


@rule(KIND)
def every_document_has_text_and_topic(subject: Subject) -> None:
    """Documents have a text without white space at its ends, and a topic that is not empty."""
    corpus = _read_once(subject)

    def is_whole(d: Document) -> bool:
        return bool(d.text and d.text == d.text.strip() and d.topic)

    wrong = [d for d in corpus.train + corpus.validation if not is_whole(d)]
    expect(not wrong, f"{len(wrong)} are not, the first is {wrong[:1]}")


@rule(KIND, slow=True)
def reading_again_gives_the_same_corpus(subject: Subject) -> None:
    """The same options give the same documents in the same order, and the same fingerprint."""
    one, other = _read(subject), _read_once(subject)
    expect(one.fingerprint == other.fingerprint, f"fingerprints {one.fingerprint} and {other.fingerprint}")
    expect(one == other, "the documents differ")


@rule(KIND)
def the_first_line_names_source_and_terms(subject: Subject) -> None:
    """The first line of the docstring says size, source and, in brackets, the terms: 40 to 120 characters."""
    line = read_summary(subject.builder)
    expect(40 <= len(line) <= 120 and "(" in line, f"{len(line)} characters: {line!r}")
