import collections
import itertools
import math
import time

import numpy as np
import pytest

from fedfault.corpora.synthetic import FEWEST, LETTERS, MOST_WORDS, VOWELS, WORDS, K, make_language
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.seeds import rng


@pytest.fixture(scope="module")
def corpus():
    return build("corpus", "synthetic")


@pytest.fixture(scope="module")
def default():
    return make_language(num_topics=4, num_styles=2, num_words=200, shared=0.5, seed=0)


def split(text):
    """(word, whether it ends a sentence) of a document."""
    return [(token.rstrip("."), token.endswith(".")) for token in text.split(" ")]


@pytest.mark.slow
def test_the_same_seed_is_the_same_corpus_and_another_seed_another_language(corpus):
    assert build("corpus", "synthetic") == corpus
    other = build("corpus", "synthetic", seed=1)
    assert other.fingerprint != corpus.fingerprint
    known, unknown = ({word for d in c.validation for word, _ in split(d.text)} for c in (corpus, other))
    assert len(known & unknown) < 0.2 * len(known)


@pytest.mark.slow
def test_more_documents_leave_the_first_ones_as_they_are():
    few, many = (build("corpus", "synthetic", num_documents=n) for n in (10, 30))
    assert many.train[: len(few.train)] == few.train
    assert many.validation[: len(few.validation)] == few.validation


def test_every_topic_has_its_documents_on_both_sides_and_the_styles_take_turns(corpus):
    for side, n in ((corpus.train, 225), (corpus.validation, 25)):
        assert collections.Counter(d.topic for d in side) == {f"topic-{t}": n for t in range(4)}
        pairs = collections.Counter((d.topic, d.group) for d in side)
        assert set(pairs.values()) == {n // 2, n - n // 2}
    small = build("corpus", "synthetic", num_documents=2)
    assert len(small.train) == len(small.validation) == 4


@pytest.mark.slow
def test_the_default_corpus_takes_less_than_a_second():
    start = time.process_time()
    build("corpus", "synthetic")
    assert time.process_time() - start < 1


def test_all_words_that_there_can_be_are_distinct_and_of_one_length():
    words = make_language(1, 1, MOST_WORDS, 0.5, 0).words
    assert len(set(words)) == len(words) == 6400
    assert {len(word) for word in words} == {LETTERS}
    assert "".join(words).isalpha()


def test_the_rows_of_all_chains_sum_to_one():
    for made in (make_language(3, 4, 203, 0.3, 5), make_language(1, 1, K, 0.0, 0)):
        np.testing.assert_allclose(made.transition.sum(-1), 1)
        for c in range(K):
            np.testing.assert_allclose(made.emission[:, made.classes == c].sum(1), 1)
        assert (made.emission > 0).all()


def documents_of(made, words, sentences):
    """All documents with so many words in so many sentences."""
    for inner in itertools.combinations(range(words - 1), sentences - 1):
        for chosen in itertools.product(made.words, repeat=words):
            yield " ".join(word + "." * (i in inner or i == words - 1) for i, word in enumerate(chosen))


@pytest.mark.slow
def test_probabilities_of_all_short_documents_sum_to_the_probability_of_their_lengths():
    """With p(word ends a sentence) = 1/5 and 1/20 by style, and p(sentence ends the document) = 1/57 and 1/12."""
    made = make_language(num_topics=2, num_styles=2, num_words=5, shared=0.2, seed=3)
    end, stop = np.array([1 / 5, 1 / 20]), np.array([1 / 57, 1 / 12])
    for words, sentences, expected in (
        (4, 4, end**4 * stop),
        (5, 4, 4 * end**4 * (1 - end) * stop),
        (5, 5, end**5 * (1 - stop) * stop),
    ):
        total = sum(np.exp(-made.nats(text)) for text in documents_of(made, words, sentences))
        np.testing.assert_allclose(total, np.stack([expected, expected]))


@pytest.mark.parametrize(
    ("text", "chance"),
    [
        ("a. e. i. e.", 1),
        ("a e i. e. i. e.", (0.8 * 0.84) ** 2),  # each class in its turn
        ("a i. e. i. e.", 0.8 * 0.04),  # out of turn
        ("u a. e. i. e.", 0.8 * 0.84),  # the turns go round
        ("a. e. i. e. o.", (1 / 25) * (56 / 57)),  # a fifth sentence
    ],
)
def test_nats_by_hand(text, chance):
    """One word a class, so that order is all: a sentence starts in 1 of 5 classes and ends after 1 of 5 words."""
    made = make_language(num_topics=1, num_styles=1, num_words=K, shared=0.0, seed=0)
    for vowel, word in zip(VOWELS, made.words, strict=True):
        text = " ".join(token.replace(vowel, word) if token[0] == vowel else token for token in text.split(" "))
    assert math.exp(-made.nats(text).item()) == pytest.approx((1 / 25) ** 4 * (1 / 57) * chance)


def test_other_texts_have_no_probability(default):
    w = default.words[0]
    for text in (
        "",
        "hello.",
        f"{w}. {w}. {w}. {w}",
        f"{w}. {w}. {w}.",
        f"{w}. {w}. {w}.. {w}.",
        f"{w}.  {w}. {w}. {w}.",
    ):
        assert (default.nats(text) == np.inf).all()
        assert default.mixture_nats(text) == np.inf


def test_a_reader_who_is_not_told_topic_and_style_pays_for_them_once_at_most(corpus, default):
    for document in corpus.validation:
        nats = default.nats(document.text)
        told = nats[int(document.topic[-1]), int(document.group[-1])]
        assert nats.min() <= default.mixture_nats(document.text) <= told + math.log(8) + 1e-9


def test_the_mixture_is_the_mean_of_the_probabilities(default):
    text = " ".join(f"{word}." for word in default.words[:200:40])
    assert math.exp(-default.mixture_nats(text)) == pytest.approx(np.exp(-default.nats(text)).mean())


@pytest.mark.slow
def test_the_analytic_means_are_those_of_many_documents():
    """Within 4 standard errors, for every topic and style."""
    made = make_language(num_topics=2, num_styles=3, num_words=53, shared=0.3, seed=2)
    expected = made.compute_means()
    np.testing.assert_allclose(expected.words, WORDS)
    for t, s in itertools.product(range(2), range(3)):
        texts = [made.sample(t, s, rng(0, "test", t, s, j)) for j in range(150)]
        for values, mean in (
            ([made.nats(text)[t, s] for text in texts], expected.nats[t, s]),
            ([len(text) for text in texts], expected.characters[s]),
            ([text.count(" ") + 1 for text in texts], expected.words[s]),
            # the length of a document varies, its price a character hardly does: a much sharper comparison
            ([made.nats(x)[t, s] - len(x) * expected.nats[t, s] / expected.characters[s] for x in texts], 0),
        ):
            assert abs(np.mean(values) - mean) < 4 * np.std(values, ddof=1) / math.sqrt(len(values))


def test_words_that_all_cost_the_same_have_their_entropy_by_hand():
    """One word a class: 0.84 and four times 0.04 for the next class, 1/5 for the first one, an end after each fifth."""
    made = make_language(num_topics=1, num_styles=1, num_words=K, shared=1.0, seed=0)
    turn = -(0.84 * math.log(0.84) + 4 * 0.04 * math.log(0.04))
    end = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    last = -(math.log(1 / 57) / 57 + 56 / 57 * math.log(56 / 57))  # does the document end?
    sentence = math.log(5) + 5 * end + 4 * turn  # five words on average, four of them after another
    assert made.compute_means().nats.item() == pytest.approx(60 * sentence + 57 * last)


def test_the_entropy_of_a_corpus_is_its_exact_price_a_character(corpus, default):
    for t in range(4):
        texts = [d.text for d in corpus.validation if d.topic == f"topic-{t}"]
        price = sum(map(default.mixture_nats, texts)) / len("".join(texts))
        assert corpus.entropy[f"topic-{t}"] == pytest.approx(price)
    expected = default.compute_means()
    assert f"{expected.nats.sum() / expected.characters.sum() / 4:.4f} nats a character" in corpus.source


def usage(texts):
    """The share of every word among the words of its class, (classes of words in alphabetical order)."""
    count = collections.Counter(word for text in texts for word, _ in split(text))
    of_class = collections.Counter()
    for word, n in count.items():
        of_class[word[-1]] += n
    return {word: n / of_class[word[-1]] for word, n in count.items()}


def distance(p, q):
    """Total variation, averaged over the classes."""
    return sum(abs(p.get(w, 0) - q.get(w, 0)) for w in p.keys() | q.keys()) / 2 / K


@pytest.mark.slow
def test_the_topic_changes_the_words_and_the_style_does_not(corpus):
    topics, styles = (
        [usage(d.text for d in corpus.train if d[field] == name) for name in names]
        for field, names in ((1, ["topic-0", "topic-1"]), (2, ["style-0", "style-1"]))
    )
    assert distance(*topics) > 0.2
    assert distance(*styles) < 0.05


@pytest.mark.parametrize(("style", "length"), [(0, 5), (1, 20)])
@pytest.mark.parametrize("topic", [0, 3])
def test_the_style_sets_the_order_of_words_and_the_length_of_sentences_in_any_topic(corpus, topic, style, length):
    steps, words, ends = collections.Counter(), 0, 0
    for document in corpus.train:
        if document[1:] == (f"topic-{topic}", f"style-{style}"):
            tokens = split(document.text)
            words, ends = words + len(tokens), ends + sum(end for _, end in tokens)
            for (one, end), (two, _) in itertools.pairwise(tokens):
                steps[(VOWELS.index(two[-1]) - VOWELS.index(one[-1])) % K] += not end
    assert words / ends == pytest.approx(length, rel=0.08)
    for step in range(K):
        assert steps[step] / steps.total() == pytest.approx(0.84 if step == style + 1 else 0.04, abs=0.02)


def test_every_document_tells_its_topic_and_style(corpus, default):
    right = 0
    for document in corpus.validation:
        t, s = np.unravel_index(default.nats(document.text).argmin(), (4, 2))
        right += (f"topic-{t}", f"style-{s}") == document[1:]
    assert right >= 0.98 * len(corpus.validation)


def test_topics_that_share_all_are_names_alone():
    made = make_language(num_topics=3, num_styles=2, num_words=100, shared=1.0, seed=0)
    nats = made.nats(made.sample(1, 0, rng(0, "test")))
    np.testing.assert_allclose(nats, nats[:1].repeat(3, axis=0))
    apart, near = (np.abs(np.diff(make_language(2, 1, 100, x, 0).emission, axis=0)).sum() for x in (0.0, 0.9))
    assert near == pytest.approx(0.1 * apart)


def excess(corpus, made, train):
    """Nats by which a counted bigram model of all words is above the floor: of each validation document, and a share.

    Of V words and the start of a sentence, each can be followed by every word, and a word also by an end: half a count
    for what never came.
    """
    number = {word: i for i, word in enumerate(made.words)}
    V, ends, stops = len(number), 0, 0
    counts = np.full((V + 1, V + 1), 0.5)
    counts[V, V] = 0

    def path(text):
        states = [V]
        for word, end in split(text):
            states += [number[word], V] if end else [number[word]]
        return np.array(states)

    for document in train:
        states = path(document.text)
        np.add.at(counts, (states[:-1], states[1:]), 1)
        ends, stops = ends + (states == V).sum() - 1, stops + 1
    logs = np.log(counts, out=np.full_like(counts, -np.inf), where=counts > 0) - np.log(counts.sum(1, keepdims=True))
    above, total = [], 0.0
    for document in corpus.validation:
        states = path(document.text)
        goes_on = ((states == V).sum() - 2) * math.log(1 - stops / ends)
        least = made.mixture_nats(document.text)
        above.append(-logs[states[:-1], states[1:]].sum() - goes_on - math.log(stops / ends) - least)
        total += least
    return np.array(above), sum(above) / total


@pytest.mark.slow
def test_a_bigram_model_comes_down_to_the_floor_and_not_below():
    corpus = build("corpus", "synthetic", num_topics=1, num_styles=1, num_words=20, num_documents=300)
    made = make_language(1, 1, 20, 0.5, 0)
    few, half, all_ = (excess(corpus, made, corpus.train[:n]) for n in (3, 30, 270))
    assert few[1] > half[1] > all_[1]
    assert all_[1] < 0.005
    for above, _ in (few, half, all_):
        assert above.mean() > -4 * above.std(ddof=1) / math.sqrt(len(above))


@pytest.mark.slow
def test_a_bigram_model_that_cannot_tell_topics_apart_stays_well_above_the_floor(corpus, default):
    above, share = excess(corpus, default, corpus.train)
    assert above.min() > 0
    assert share > 0.05


@pytest.mark.parametrize(("option", "value"), [("num_styles", 5), ("num_words", 4), ("shared", 1.5), ("num_topics", 0)])
def test_what_cannot_be_made_is_refused(option, value):
    with pytest.raises(UserError, match=f"{option}={value}"):
        build("corpus", "synthetic", **{option: value})


def test_a_document_has_enough_sentences_to_be_the_only_one_of_its_kind(corpus):
    assert min(d.text.count(".") for d in corpus.train) >= FEWEST
    assert len({d.text for d in corpus.train + corpus.validation}) == 1000
