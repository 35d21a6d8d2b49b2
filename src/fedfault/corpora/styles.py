"""Five styles of English: encyclopedia, editorials, Reddit comments, tweets and reviews."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedfault.corpora import reddit, wikitext
from fedfault.errors import UserError
from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

CHARACTERS = 500_000  # of each style at most, as in `registers`: some 1,000 documents; the editorials have 546,000
SIZE = 600  # characters of a document at most: the paragraphs of WikiText-2 have 591 on average
TWEETS, CONFIG = "cardiffnlp/tweet_eval", "sentiment"
REVIEWS = "cornell-movie-review-data/rotten_tomatoes"

_SENTENCE = re.compile(r"(?<= [.!?]) ")  # where a sentence of WikiText ends: its full stops stand between blanks


class Source(NamedTuple):
    """A style, the group that its documents get, and the separator of texts that are joined."""

    style: str
    group: str
    joiner: str


# The name of the whole that the text is from, and the text: neighbours of one whole are joined
Passage = tuple[str, str]

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

    path: a folder or file with the data, in the place of the Hub

    Reference: Merity et al., arXiv 1609.07843; Hutto and Gilbert, ICWSM 2014; Demszky et al., ACL 2020; Barbieri et al.,
    Findings of EMNLP 2020; Pang and Lee, ACL 2005.
    """
    if path is None:
        return _load_from_hub()
    place = files.find_folder(path, "styles")
    folder = place.path
    found = [place for place in PLACES if (folder / place).exists()]
    if len({PLACES[place][0].style for place in found}) < 2:
        wanted = "; ".join(f"{place} ({source.style})" for place, (source, _) in PLACES.items())
        raise UserError(
            f"data.path={path}: styles needs at least two styles, but found {', '.join(found) or 'none'}; "
            f"where they are looked for: {wanted}"
        )
    key = (CHARACTERS, SIZE, str(folder.resolve()), _stamp_files(folder, found))
    return documents.load_or_make("styles", key, lambda: _load_from_folder(place, found))


def _load_from_folder(folder: hub.DataPath, places: Iterable[str]) -> Corpus:
    parts: dict[Source, list[Passage]] = {}
    for place in places:
        source, read = PLACES[place]
        parts.setdefault(source, []).extend(read(folder.path / place))
    return _make_corpus(f"{hub.name_place(folder)}: {', '.join(places)}", parts)


def _stamp_files(folder: Path, places: Iterable[str]) -> list[tuple[str, int, int]]:
    """List name, size and time of every file that is read: the cache is valid as long as they stay."""
    found = (p for place in places for p in (folder / place, *(folder / place).rglob("*")) if p.is_file())
    return sorted((str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in found)


def _load_from_hub() -> Corpus:
    wiki, comments = wikitext.wikitext(), reddit.reddit()
    (tweets, tweets_source), (reviews, reviews_source) = hub.load_splits(TWEETS, CONFIG), hub.load_splits(REVIEWS)
    parts = {
        WIKIPEDIA: _split_paragraphs(wiki),
        REDDIT: _list_texts(comments),
        TWITTER: [(TWEETS, row["text"]) for row in hub.list_rows(tweets["train"], "text")],
        MOVIES: [(REVIEWS, row["text"]) for row in hub.list_rows(reviews["train"], "text")],
    }
    return _make_corpus("; ".join((wiki.source, comments.source, tweets_source, reviews_source)), parts)


def _make_corpus(origin: str, parts: dict[Source, list[Passage]]) -> Corpus:
    """Make the corpus from the passages of each source: without repeats, joined or cut, with as much of each style."""
    made: dict[str, list[list[Document]]] = {}  # style -> the documents of each of its sources
    for source, own in parts.items():
        made.setdefault(source.style, []).append(_join_passages(source, own))
    mixed = {style: _interleave_sources(own) for style, own in made.items()}
    size = {style: sum(len(d.text) for d in own) for style, own in mixed.items()}
    if not all(size.values()):
        raise UserError(f"styles ({origin}): no text in the style {min(size, key=lambda style: size[style])}")
    smallest = min(CHARACTERS, *size.values())
    return documents.make_corpus(
        "styles", origin, [d for own in mixed.values() for d in _take_documents(own, smallest)]
    )


def _join_passages(source: Source, parts: Iterable[Passage]) -> list[Document]:
    """Join neighbouring passages of one whole to documents."""
    kept = documents.drop_repeats(Document(text, source.style, whole) for whole, text in parts)
    texts = (
        text
        for _, own in itertools.groupby(kept, key=lambda part: part.group)
        for text in documents.join_and_cut((part.text for part in own), source.joiner, SIZE)
    )
    return [Document(text, source.style, source.group) for text in texts]


def _interleave_sources(sources: Iterable[list[Document]]) -> list[Document]:
    """Put one document of each source first, then the next of each, and so on, in the order of their hashes."""
    ordered = (sorted(own, key=lambda d: documents.hash_letters(d.text)) for own in sources)
    return [d for row in itertools.zip_longest(*ordered) for d in row if d is not None]


def _take_documents(own: Iterable[Document], characters: int) -> Iterator[Document]:
    """The first documents, until they have so many characters together."""
    for document in own:
        if characters <= 0:
            return
        characters -= len(document.text)
        yield document


def _split_paragraphs(corpus: Corpus) -> list[Passage]:
    """Split every article into paragraphs, without headings; long ones are cut between sentences."""
    return [
        (str(article), piece)
        for article, document in enumerate(corpus.train + corpus.validation)
        for line in document.text.splitlines()
        if line.strip() and not line.strip().startswith("= ")
        for piece in documents.join_and_cut(_SENTENCE.split(line.strip()), " ", SIZE)
    ]


def _list_texts(corpus: Corpus) -> list[Passage]:
    return [(corpus.name, document.text) for document in corpus.train + corpus.validation]


def _read_table(file: Path) -> list[Passage]:
    """Read the texts of a table; those with an id D_S are from the document D."""
    rows = files.read_rows(file)
    files.choose_columns("styles", file, rows, ("id", "text"))
    return [(file.name + str(row["id"]).rpartition("_")[0], write_cell(row["text"])) for row in rows]


def _read_tables(folder: Path) -> list[Passage]:
    found = sides.list_tables(folder)
    if not found:
        raise UserError(f"{folder}: styles finds no file that ends in one of {', '.join(files.TABLES)}")
    tables = [(file, files.read_rows(file)) for file in found]
    for file, rows in tables:
        files.choose_columns("styles", file, rows, ("text",))
    return [(folder.name, write_cell(row["text"])) for _, rows in tables for row in rows]


PLACES: dict[str, tuple[Source, Callable[[Path], list[Passage]]]] = {
    "wikitext2_raw": (WIKIPEDIA, lambda folder: _split_paragraphs(wikitext.wikitext(path=str(folder)))),
    "vader_styles/nyt_editorials.csv": (NYT, _read_table),
    "goemotions_reddit": (REDDIT, lambda folder: _list_texts(reddit.reddit(path=str(folder)))),
    "vader_styles/tweets.csv": (TWITTER, _read_table),
    "tweeteval_emotion": (TWITTER, _read_tables),
    "tweeteval_sentiment": (TWITTER, _read_tables),
    "vader_styles/movie_reviews.csv": (MOVIES, _read_table),
    "vader_styles/amazon_reviews.csv": (AMAZON, _read_table),
}
