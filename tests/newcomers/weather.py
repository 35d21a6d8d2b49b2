"""Sentences about the weather."""

from fedfault.reading.documents import make_corpus
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

PLACES = ["Oslo", "Rome", "Lima", "Perth", "Cairo", "Quito", "Turin", "Kyoto", "Accra", "Leeds"]
KINDS = {"rain": ["rain", "showers", "a storm"], "sun": ["sunshine", "clear sky", "heat"]}


@register("corpus")
def weather() -> Corpus:
    """1,440 sentences on tomorrow's weather in ten towns, by kind (written by a template; public domain)."""
    documents = [
        Document(f"Tomorrow at {hour} there will be {what} in {place}.", kind)
        for kind, words in KINDS.items()
        for what in words
        for place in PLACES
        for hour in range(24)
    ]
    return make_corpus("weather", "written by a template", documents)
