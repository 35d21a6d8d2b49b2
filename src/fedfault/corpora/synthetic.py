"""A made-up language of known entropy, so that the distance from the optimum is a number and not a guess.

    mopa tike sulo.      words of four letters; the last vowel is the word's class: a, e, o here

A word depends on the word before it alone, through its class: the style says which class comes next, the topic says
which word of the class. So p(text | topic, style) is a product of one factor from the topic and one from the style,
and everything about it is exact: what any text costs, and what texts cost on average.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedfault.reading import documents
from fedfault.registry import register
from fedfault.seeds import rng
from fedfault.types.corpus import Corpus, Document

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"
K = len(VOWELS)  # word classes; as state K of a chain: between two sentences
LETTERS = 4  # of every word: about three tokens of a vocabulary made for English
MOST_WORDS = len(CONSONANTS) ** 2 * len(VOWELS) ** 2
PUT_NEXT = 0.8  # share of words in the class that the style puts next; the others are of any class, that one included
SENTENCE = (5, 20)  # words in a sentence, on average: from the curtest style to the longest-winded
WORDS = 300  # in a document of any style, on average: 1,500 characters, between AG News and the BBC's articles
FEWEST = 4  # sentences, so that no two documents are the same


@register("corpus")
def synthetic(
    *,
    num_topics: Annotated[int, Field(ge=1)] = 4,
    num_styles: Annotated[int, Field(ge=1, le=K - 1)] = 2,
    num_words: Annotated[int, Field(ge=K, le=MOST_WORDS)] = 200,
    shared: Annotated[float, Field(ge=0, le=1)] = 0.5,
    num_documents: Annotated[int, Field(ge=2)] = 250,
    seed: int = 0,
) -> Corpus:
    """A made-up language of which the best possible loss is known, no network needed (generated, so no licence).

    The topic says which words are frequent, the style (the document's group) how they follow each other and how long
    sentences are. The more `num_words`, the longer a model takes to come near the floor. `shared` is how much of its
    words a topic has in common with the others: at 1 topics are names alone, the control in which topic skew is none.
    `num_documents` counts those of each topic; a tenth of them is validation, and the styles take turns. `seed` is not
    the run's: repeats with other seeds see the same language.

    `entropy` is -log p(text) of a topic's validation documents, ends included, over their characters, for a reader who
    knows the language but not what comes: p is the mean over topics and styles. So the loss to expect on these documents
    is at least floor = entropy * characters / target tokens, in nats a token, with one separator a document among the
    tokens; evaluation.max_blocks of them are a sample. Who knows topic and style beforehand, as from the document
    before, saves log(num_topics * num_styles) nats a document at most, a thousandth of what it costs.

    num_topics: topics, each with words of its own
    num_styles: styles, in which the same topic is written
    num_words: words that a topic chooses from
    shared: how much of its words a topic has in common with others
    num_documents: documents of each topic, of which a tenth is validation
    seed: of what is made up; not the run's
    """
    made = make_language(num_topics, num_styles, num_words, shared, seed)
    held = max(1, round(documents.VALIDATION * num_documents))
    means = made.compute_means()
    source = (
        f"generated: seed {seed}, {num_topics} topics that share {shared:g}, {num_styles} styles, {num_words} words, "
        f"{means.nats.mean() / means.characters.mean():.4f} nats a character if topic and style are known"
    )
    corpus = documents.make_corpus(
        "synthetic",
        source,
        _sample_documents(made, num_documents - held, seed, "train"),
        _sample_documents(made, held, seed, "validation"),
    )
    return dataclasses.replace(corpus, entropy=_entropy_by_topic(made, corpus.validation))


def _sample_documents(made: Language, n: int, seed: int, side: str) -> list[Document]:
    """Sample n documents of each topic, each from a random stream of its own, so that more leave the first as they are."""
    T, S = len(made.emission), len(made.stop)
    return [
        Document(made.sample(t, j % S, rng(seed, "synthetic", side, t, j)), f"topic-{t}", f"style-{j % S}")
        for j in range(n)
        for t in range(T)
    ]


def _entropy_by_topic(made: Language, held: Sequence[Document]) -> dict[str, float]:
    texts: dict[str, list[str]] = {}
    for document in held:
        texts.setdefault(document.topic, []).append(document.text)
    return {topic: sum(map(made.mixture_nats, own)) / sum(map(len, own)) for topic, own in texts.items()}


class DocumentMeans(NamedTuple):
    """Means over all documents of a topic and style; nats include those of the end of the document."""

    nats: Floats  # (T, S), for a reader who knows topic and style
    words: Floats  # (S,)
    characters: Floats  # (S,)


@dataclass(frozen=True, eq=False)
class Language:
    """A language of V words in K classes, T topics and S styles, given by the probabilities of its words."""

    words: tuple[str, ...]  # by class
    emission: Floats  # (T, V) p(word | its class, topic): sums to one over each class
    transition: Floats  # (S, K + 1, K + 1) p(next class | class, style); from K a sentence starts, to K it ends
    stop: Floats  # (S,) p(document ends | a sentence ends), from sentence FEWEST on

    @functools.cached_property
    def classes(self) -> Ints:
        """(V,) the class of every word."""
        return np.array([VOWELS.index(word[-1]) for word in self.words])

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def nats(self, text: str) -> Floats:
        """-log p(text | topic, style), (T, S), the document's end included; infinite for a text of another language."""
        tokens = text.split(" ")
        ids = np.array([self._number.get(token.removesuffix("."), -1) for token in tokens])
        ends = np.array([token.endswith(".") for token in tokens])
        if ids.min() < 0 or not ends[-1] or ends.sum() < FEWEST:
            return np.full((len(self.emission), len(self.stop)), np.inf)
        now = self.classes[ids]
        before = np.where(np.roll(ends, 1), K, np.roll(now, 1))  # the last word is an end, so the first is a start
        by_topic = np.log(self.emission[:, ids]).sum(1)  # (T,)
        by_style = np.log(self.transition[:, before, now]).sum(1) + np.log(self.transition[:, now[ends], K]).sum(1)
        by_style += (ends.sum() - FEWEST) * np.log1p(-self.stop) + np.log(self.stop)  # (S,)
        nats: Floats = -by_topic[:, None] - by_style
        return nats

    def mixture_nats(self, text: str) -> float:
        """-log of the mean of p(text | topic, style) over all pairs: a model is not told which pair it is about to read."""
        logs = -self.nats(text)
        return float(np.log(logs.size) - np.logaddexp.reduce(logs, axis=None))

    def compute_means(self) -> DocumentMeans:
        """The exact means, from the visits to each class before a sentence ends (Kemeny and Snell 1960, ch. 3).

        A document is a number of independent sentences, so nats = E[sentences] * nats a sentence + H(sentences).
        """
        start, inner = self.transition[:, K, :K], self.transition[:, :K, :K]
        visits = np.linalg.solve(np.eye(K) - inner.transpose(0, 2, 1), start[..., None])[..., 0]  # (S, K) a sentence
        moves, word = _entropy(self.transition), -self.emission * np.log(self.emission)  # (S, K + 1), (T, V)
        choice = np.stack([word[:, self.classes == c].sum(1) for c in range(K)])  # (K, T)
        grammar = moves[:, K] + (visits * moves[:, :K]).sum(1)  # (S,)
        sentences = FEWEST - 1 + 1 / self.stop
        count = _entropy(np.stack([self.stop, 1 - self.stop], axis=1)) / self.stop  # of a geometric number
        words = sentences * visits.sum(1)
        return DocumentMeans(
            nats=sentences * (grammar + (visits @ choice).T) + count,
            words=words,
            characters=words * (LETTERS + 1) - 1 + sentences,
        )

    def sample(self, topic: int, style: int, generator: np.random.Generator) -> str:
        """Sample one document."""
        sentences, draws = FEWEST - 1 + generator.geometric(self.stop[style]), _draw_uniform(generator)
        moves, choices, tokens = self._moves[style], self._choices[topic], []
        for _ in range(sentences):
            now = bisect(moves[K], next(draws))
            while now < K:
                first, cumulated = choices[now]
                tokens.append(self.words[first + bisect(cumulated, next(draws))])
                now = bisect(moves[now], next(draws))
            tokens[-1] += "."
        return " ".join(tokens)

    @functools.cached_property
    def _moves(self) -> list[list[list[float]]]:
        """The transition probabilities cumulated, without the last, which is one: S x (K + 1) x K numbers."""
        moves: list[list[list[float]]] = self.transition.cumsum(-1)[..., :-1].tolist()
        return moves

    @functools.cached_property
    def _choices(self) -> list[list[tuple[int, list[float]]]]:
        """For every topic and class its first word, and the words' probabilities cumulated without the last."""
        firsts = np.searchsorted(self.classes, range(K + 1)).tolist()
        return [[(a, p[a:b].cumsum()[:-1].tolist()) for a, b in itertools.pairwise(firsts)] for p in self.emission]


def _draw_uniform(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(1000).tolist()  # one at a time takes four times as long


def make_language(num_topics: int, num_styles: int, num_words: int, shared: float, seed: int) -> Language:
    """Make the language of these options; every word is possible in every topic.

    emission = shared * zipf(rank in the common order) + (1 - shared) * zipf(rank in the topic's own order)
    """
    sizes = [len(range(c, num_words, K)) for c in range(K)]
    stems = [a + v + b for a in CONSONANTS for v in VOWELS for b in CONSONANTS]
    words = [
        stems[i] + vowel
        for vowel, n in zip(VOWELS, sizes, strict=True)
        for i in rng(seed, "synthetic", "words", vowel).permutation(len(stems))[:n]
    ]
    zipf = [(p := 1 / np.arange(1, n + 1)) / p.sum() for n in sizes]  # for each class; Zipf 1949
    common = np.concatenate(zipf)
    own = [
        np.concatenate([rng(seed, "synthetic", "topic", t, c).permutation(p) for c, p in enumerate(zipf)])
        for t in range(num_topics)
    ]
    lengths = np.geomspace(*SENTENCE, num_styles)
    transition = np.stack([_make_transition(style, length) for style, length in enumerate(lengths)])
    return Language(
        tuple(words), shared * common + (1 - shared) * np.stack(own), transition, _stop_probability(lengths)
    )


def _make_transition(style: int, length: float) -> Floats:
    """The transition of style s: class c + 1 + s (mod K) is the likeliest after c; a sentence may end after any word."""
    made = np.zeros((K + 1, K + 1))
    made[:K, :K] = (1 - 1 / length) * ((1 - PUT_NEXT) / K + PUT_NEXT * np.roll(np.eye(K), 1 + style, axis=1))
    made[:K, K] = 1 / length
    made[K, :K] = 1 / K
    return made


def _stop_probability(lengths: Floats) -> Floats:
    """The probability at which FEWEST - 1 + 1 / stop sentences make WORDS words: all styles have documents of one length."""
    return 1 / (WORDS / lengths - FEWEST + 1)


def _entropy(p: Floats) -> Floats:
    """Entropy in nats, over the last axis, with 0 log 0 = 0."""
    entropy: Floats = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    return entropy
