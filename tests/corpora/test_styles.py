import collections
import os

import pytest

from fedfault.corpora import styles
from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.reading.documents import hash_text
from fedfault.registry import build

SENTENCE = "Sentence {} of the {} is neither short nor long ."


def write(folder, place, rows, header="id,text"):
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text("".join(f"{line}\n" for line in (header, *rows)))


def sentences(place, documents, each):
    return [f"{d}_{s}," + SENTENCE.format(s, f"{place} {d}") for d in range(documents) for s in range(each)]


@pytest.fixture
def folder(tmp_path):
    """Five styles of about 10,000, 8,000, 6,000, 12,000 and 20,000 characters."""
    article = " = Title {} = \n \n = = Section = = \n \n {} \n {} \n"
    long = [" ".join(SENTENCE.format(s, f"article {a}") for s in range(30)) for a in range(6)]
    wiki = tmp_path / "wikitext2_raw"
    wiki.mkdir()
    (wiki / "valid.txt").write_text("".join(article.format(a, long[a], f"Short {a} .") for a in range(3)))
    (wiki / "test.txt").write_text("".join(article.format(a, long[a], f"Short {a} .") for a in range(3, 6)))
    write(tmp_path, "vader_styles/nyt_editorials.csv", sentences("editorial", 8, 20))
    comments = [f"{SENTENCE.format(i, 'thread')},27" for i in range(130)]
    write(tmp_path, "goemotions_reddit/train.csv", comments[:100], "text,label_ids")
    write(tmp_path, "goemotions_reddit/dev.csv", comments[100:], "text,label_ids")
    write(tmp_path, "vader_styles/tweets.csv", [f"{i},{SENTENCE.format(i, 'first tweets')}" for i in range(80)])
    tweets = [f"1,positive,{SENTENCE.format(i, 'other tweets')}" for i in range(150)]
    write(tmp_path, "tweeteval_emotion/val.csv", tweets[:75], "label,label_name,text")
    write(tmp_path, "tweeteval_sentiment/test.csv", tweets[75:], "label,label_name,text")
    write(tmp_path, "vader_styles/movie_reviews.csv", [f"{i},{SENTENCE.format(i, 'film')}" for i in range(250)])
    write(tmp_path, "vader_styles/amazon_reviews.csv", sentences("product", 25, 9))
    return tmp_path


def read(path):
    return build("corpus", "styles", path=str(path))


def everything(corpus):
    return corpus.train + corpus.validation


def test_all_styles_have_as_many_characters_as_the_smallest(folder):
    size = collections.Counter()
    for document in everything(read(folder)):
        size[document.topic] += len(document.text)
    assert set(size) == {"encyclopedic", "editorial", "reddit", "tweets", "reviews"}
    assert max(size.values()) - min(size.values()) < styles.SIZE
    assert 5_500 < min(size.values()) < 7_500  # the 130 comments


def test_no_style_has_more_characters_than_allowed(folder, monkeypatch):
    monkeypatch.setattr(styles, "CHARACTERS", 2_000)
    size = collections.Counter()
    for document in everything(read(folder)):
        size[document.topic] += len(document.text)
    assert all(2_000 <= characters < 2_000 + styles.SIZE for characters in size.values())


def test_the_group_is_the_finer_source(folder):
    groups = collections.defaultdict(set)
    for document in everything(read(folder)):
        groups[document.topic].add(document.group)
    assert groups == {
        "encyclopedic": {"wikipedia"},
        "editorial": {"nyt"},
        "reddit": {"reddit"},
        "tweets": {"twitter"},
        "reviews": {"movies", "amazon"},
    }


def test_short_texts_are_joined_and_long_ones_cut_between_sentences(folder):
    for document in everything(read(folder)):
        assert len(document.text) <= styles.SIZE
        assert document.text.endswith(".")
        assert document.text.startswith(("Sentence", "Short"))  # no heading
    longest = collections.Counter()
    for document in everything(read(folder)):
        longest[document.topic] = max(longest[document.topic], len(document.text))
    assert min(longest.values()) > 0.8 * styles.SIZE


def test_articles_editorials_and_products_are_never_joined_with_another(folder):
    for document in everything(read(folder)):
        if document.group in ("wikipedia", "nyt", "amazon"):
            names = [words.split(" is ")[0] for words in document.text.split(" of the ")[1:]]
            assert len(set(names)) <= 1, document


def test_a_text_is_in_one_document_only(folder):
    lines = (folder / "vader_styles" / "tweets.csv").read_text().splitlines()[1:41]
    write(folder, "tweeteval_emotion/val.csv", [line.split(",")[1].upper() for line in lines], "text")
    tweets = [line for d in everything(read(folder)) if d.topic == "tweets" for line in d.text.splitlines()]
    assert len({hash_text(line) for line in tweets}) == len(tweets)


def test_two_styles_are_enough_and_one_is_explained(tmp_path):
    write(tmp_path, "vader_styles/tweets.csv", [f"{i},{SENTENCE.format(i, 'tweets')}" for i in range(90)])
    with pytest.raises(UserError) as error:
        read(tmp_path)
    for part in ("at least two styles", "found vader_styles/tweets.csv", "wikitext2_raw (encyclopedic)"):
        assert part in str(error.value)
    write(tmp_path, "vader_styles/movie_reviews.csv", [f"{i},{SENTENCE.format(i, 'film')}" for i in range(90)])
    assert {d.topic for d in everything(read(tmp_path))} == {"tweets", "reviews"}


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,hi"], "id,words", r"tweets\.csv: styles needs the columns id, text \(found: id, words\)"),
        ([], "id,text", r"tweets\.csv: .*no rows"),
        (["1, ", "2,"], "id,text", "no text in the style tweets"),
    ],
)
def test_other_columns_and_empty_styles_are_explained(folder, rows, header, message):
    for place in ("tweeteval_emotion/val.csv", "tweeteval_sentiment/test.csv"):
        (folder / place).unlink()
        (folder / place).parent.rmdir()
    write(folder, "vader_styles/tweets.csv", rows, header)
    with pytest.raises(UserError, match=message):
        read(folder)


def test_a_folder_of_tweets_without_tables_is_explained(folder):
    (folder / "tweeteval_emotion" / "val.csv").unlink()
    with pytest.raises(UserError, match=r"tweeteval_emotion: styles finds no file that ends in one of \.csv"):
        read(folder)


@pytest.mark.slow
def test_the_cache_follows_the_files(folder, monkeypatch):
    first = read(folder)
    made = styles._make_corpus
    monkeypatch.setattr(styles, "_make_corpus", lambda *_: pytest.fail("made again"))
    assert read(folder) == first
    monkeypatch.setattr(styles, "_make_corpus", made)
    tweets = folder / "vader_styles" / "tweets.csv"
    os.utime(tweets, ns=(0, 0))
    assert read(folder) == first
    write(folder, "vader_styles/tweets.csv", ["1,Only this one now ."])
    assert read(folder).fingerprint != first.fingerprint


def test_the_hub_has_four_styles(monkeypatch):
    wiki = [" = Title = \n", *(f" {SENTENCE.format(i, 'article')} \n" for i in range(30))]
    made = {
        "Salesforce/wikitext": {"train": {"text": wiki}, "validation": {"text": [" Other text . \n"]}},
        "google-research-datasets/go_emotions": {
            part: {"text": [SENTENCE.format(i, part) for i in range(30)], "labels": [[27]] * 30}
            for part in ("train", "validation")
        },
        "cardiffnlp/tweet_eval": {"train": {"text": [SENTENCE.format(i, "tweet") for i in range(30)]}},
        "cornell-movie-review-data/rotten_tomatoes": {
            "train": {"text": [SENTENCE.format(i, "film") for i in range(30)]}
        },
    }
    monkeypatch.setattr(
        hub, "load_splits", lambda dataset, config="": (made[dataset], f"Hub {dataset} {config}".strip())
    )
    corpus = build("corpus", "styles")
    assert {d.topic for d in everything(corpus)} == {"encyclopedic", "reddit", "tweets", "reviews"}
    assert "Hub cardiffnlp/tweet_eval sentiment; Hub cornell-movie-review-data/rotten_tomatoes" in corpus.source


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.long
def test_the_real_styles_are_alike_in_size(shared_data):
    corpus = read(shared_data)
    size, number = collections.Counter(), collections.Counter()
    for document in everything(corpus):
        size[document.topic] += len(document.text)
        number[document.topic] += 1
    assert all(500_000 <= characters < 501_000 for characters in size.values())
    assert all(400 < size[topic] / number[topic] < styles.SIZE for topic in size)
    assert {d.group for d in corpus.train} == {"wikipedia", "nyt", "reddit", "twitter", "movies", "amazon"}
