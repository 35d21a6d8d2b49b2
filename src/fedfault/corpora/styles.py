"""Five styles of English: encyclopedia, editorials, Reddit comments, tweets and reviews."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedfault.corpora import reddit, wikitext
from fedfault.errors import UserError
from fedfault.reading import documents, files, hub
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

CHARACTERS = 500_000  # of each style at most, as in `registers`: some 1,000 documents; the editorials have 546,000
SIZE = 600  # characters of a document at most: the paragraphs of WikiText-2 have 591 on average
TWEETS, CONFIG = "cardiffnlp/tweet_eval", "sentiment"
REVIEWS = "cornell-movie-review-data/rotten_tomatoes"

_SENTENCE = re.compile(r"(?<= [.!?]) ")  # where a sentence of WikiText ends: its full stops stand between blanks


class Source(NamedTuple):
    """A style, the group that its documents get, and what stands between texts that are joined."""

    style: str
    group: str
    joiner: str


Part = tuple[str, str]  # what the text is a part of, and the text: neighbours in the same whole may be joined

WIKIPEDIA = Source("encyclopedic", "wikipedia", "\n")
NYT = Source("editorial", "nyt", " ")
REDDIT = Source("reddit", "reddit", "\n")
TWITTER = Source("tweets", "twitter", "\n")
MOVIES = Source("reviews", "movies", "\n")
AMAZON = Source("reviews", "amazon", " ")


@register("corpus")
def styles(*, path: str | None = None) -> Corpus:
    """Five styles of English in documents of like size (Hub or a folder; CC BY-SA, Apache-2.0 and unstated terms).

    The topics are encyclopedic (WikiText-2), editorial (New York Times), reddit (GoEmotions), tweets and reviews (films,
    products); the group is the finer source: wikipedia, nyt, reddit, twitter, movies or amazon. Neighbouring texts are
    joined, and longer ones cut between sentences, to documents of up to 600 characters. One article, editorial or review
    is never joined with another, but its pieces can be on both sides. All styles have the same number of characters,
    500,000 or as many as the smallest has: the documents with the smallest hashes, films and products in turn.

    `path` is a folder with at least two styles, in these places: wikitext2_raw/ (as for the corpus wikitext);
    goemotions_reddit/ (as for reddit); tweeteval_emotion/ and tweeteval_sentiment/ (tables with the column text); and
    vader_styles/ with nyt_editorials.csv, tweets.csv, movie_reviews.csv and amazon_reviews.csv (columns id and text; an
    id D_S is sentence S of document D). The Hub has Salesforce/wikitext, google-research-datasets/go_emotions,
    cardiffnlp/tweet_eval (sentiment) and cornell-movie-review-data/rotten_tomatoes, but no editorials: four styles.

    The film reviews have the origin of SST-2 and share most of its dev set: never train on one and evaluate on the other.
    Terms: WikiText-2 CC BY-SA 3.0 and GFDL; GoEmotions Apache-2.0; the VADER files MIT for their repository; TweetEval and
    the film reviews none stated, Twitter's may apply.

    Reference: Merity et al., arXiv 1609.07843; Hutto and Gilbert, ICWSM 2014; Demszky et al., ACL 2020; Barbieri et al.,
    Findings of EMNLP 2020; Pang and Lee, ACL 2005.
    """
    if path is None:
        return _from_hub()
    folder = files.existing_folder(path, "styles")
    found = [place for place in PLACES if (folder / place).exists()]
    if len({PLACES[place][0].style for place in found}) < 2:
        wanted = "; ".join(f"{place} ({source.style})" for place, (source, _) in PLACES.items())
        raise UserError(
            f"data.path={path}: styles needs at least two styles, but found {', '.join(found) or 'none'}; "
            f"where they are looked for: {wanted}"
        )
    key = (CHARACTERS, SIZE, str(folder.resolve()), _stamps(folder, found))
    return documents.cached("styles", key, lambda: _from_folder(folder, found))


def _from_folder(folder: Path, places: Iterable[str]) -> Corpus:
    parts: dict[Source, list[Part]] = {}
    for place in places:
        source, read = PLACES[place]
        parts.setdefault(source, []).extend(read(folder / place))
    return _made(f"folder {folder.resolve()}: {', '.join(places)}", parts)


def _stamps(folder: Path, places: Iterable[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of every file that is read."""
    found = (p for place in places for p in (folder / place, *(folder / place).rglob("*")) if p.is_file())
    return sorted((str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in found)


def _from_hub() -> Corpus:
    wiki, comments = wikitext.wikitext(), reddit.reddit()
    (tweets, tweets_source), (reviews, reviews_source) = hub.load(TWEETS, CONFIG), hub.load(REVIEWS)
    parts = {
        WIKIPEDIA: _paragraphs(wiki),
        REDDIT: _texts(comments),
        TWITTER: [(TWEETS, row["text"]) for row in hub.rows(tweets["train"], "text")],
        MOVIES: [(REVIEWS, row["text"]) for row in hub.rows(reviews["train"], "text")],
    }
    return _made("; ".join((wiki.source, comments.source, tweets_source, reviews_source)), parts)


def _made(origin: str, parts: dict[Source, list[Part]]) -> Corpus:
    """The corpus of the sources' parts: no part of a source twice, joined or cut, as much of each style."""
    made: dict[str, list[list[Document]]] = {}  # style -> the documents of each of its sources
    for source, own in parts.items():
        made.setdefault(source.style, []).append(_joined(source, own))
    mixed = {style: _in_turn(own) for style, own in made.items()}
    size = {style: sum(len(d.text) for d in own) for style, own in mixed.items()}
    if not all(size.values()):
        raise UserError(f"styles ({origin}): no text in the style {min(size, key=lambda style: size[style])}")
    smallest = min(CHARACTERS, *size.values())
    return documents.corpus("styles", origin, [d for own in mixed.values() for d in _first(own, smallest)])


def _joined(source: Source, parts: Iterable[Part]) -> list[Document]:
    """The documents that neighbouring parts of the same whole make."""
    kept = documents.distinct(Document(text, source.style, whole) for whole, text in parts)
    texts = (
        text
        for _, own in itertools.groupby(kept, key=lambda part: part.group)
        for text in documents.pieces((part.text for part in own), source.joiner, SIZE)
    )
    return [Document(text, source.style, source.group) for text in texts]


def _in_turn(sources: Iterable[list[Document]]) -> list[Document]:
    """One document of each source, then the next of each, smallest hashes first."""
    ordered = (sorted(own, key=lambda d: documents.text_hash(d.text)) for own in sources)
    return [d for row in itertools.zip_longest(*ordered) for d in row if d is not None]


def _first(own: Iterable[Document], characters: int) -> Iterator[Document]:
    """Documents from the start, until they have as many characters."""
    for document in own:
        if characters <= 0:
            return
        characters -= len(document.text)
        yield document


def _paragraphs(corpus: Corpus) -> list[Part]:
    """The paragraphs of every article, without headings; long ones are cut between sentences."""
    return [
        (str(article), piece)
        for article, document in enumerate(corpus.train + corpus.validation)
        for line in document.text.splitlines()
        if line.strip() and not line.strip().startswith("= ")
        for piece in documents.pieces(_SENTENCE.split(line.strip()), " ", SIZE)
    ]


def _texts(corpus: Corpus) -> list[Part]:
    return [(corpus.name, document.text) for document in corpus.train + corpus.validation]


def _table(file: Path) -> list[Part]:
    """The texts of a table; those with an id D_S are parts of the document D."""
    rows = files.read_rows(file)
    files.columns_for("styles", file, rows, ("id", "text"))
    return [(file.name + str(row["id"]).rpartition("_")[0], row["text"] or "") for row in rows]


def _tables(folder: Path) -> list[Part]:
    found = files.tables_in(folder)
    if not found:
        raise UserError(f"{folder}: styles finds no file that ends in one of {', '.join(files.TABLES)}")
    tables = [(file, files.read_rows(file)) for file in found]
    for file, rows in tables:
        files.columns_for("styles", file, rows, ("text",))
    return [(folder.name, row["text"] or "") for _, rows in tables for row in rows]


PLACES: dict[str, tuple[Source, Callable[[Path], list[Part]]]] = {
    "wikitext2_raw": (WIKIPEDIA, lambda folder: _paragraphs(wikitext.wikitext(path=str(folder)))),
    "vader_styles/nyt_editorials.csv": (NYT, _table),
    "goemotions_reddit": (REDDIT, lambda folder: _texts(reddit.reddit(path=str(folder)))),
    "vader_styles/tweets.csv": (TWITTER, _table),
    "tweeteval_emotion": (TWITTER, _tables),
    "tweeteval_sentiment": (TWITTER, _tables),
    "vader_styles/movie_reviews.csv": (MOVIES, _table),
    "vader_styles/amazon_reviews.csv": (AMAZON, _table),
}
