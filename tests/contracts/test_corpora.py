"""What every registered corpus promises, read from the package or from a folder: no network."""

import dataclasses

import pytest

from fedfault.corpora.documents import text_hash
from fedfault.registry import build, builders, first_line
from fedfault.types import Corpus


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each corpus that reads one; any other is built without options."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("ag_news", "text", "wikitext")}
    rows = "".join(f"Story {i} of many,{i % 4}\n" for i in range(40))
    (made["ag_news"] / "train.csv").write_text("text,label\n" + rows + "a story of the test,0\n,1\n")
    (made["ag_news"] / "test.csv").write_text("text,label\nA story of the TEST.,0\n")
    (made["text"] / "mine.csv").write_text("text,label\n" + rows + "STORY 1 OF MANY!,2\n,3\n")
    for part in ("train", "valid"):
        (made["wikitext"] / f"{part}.txt").write_text(f" = Same = \n \n same . \n \n = T = \n \n {part} . \n")
    return made


@pytest.fixture(scope="module", params=builders("corpus"))
def corpus(request, folders):
    name = request.param
    return build("corpus", name, **({"path": str(folders[name])} if name in folders else {}))


def test_it_is_a_corpus_with_both_sides(corpus):
    assert isinstance(corpus, Corpus)
    assert corpus.train
    assert corpus.validation
    assert corpus.name in builders("corpus")
    assert len(corpus.source) > 5


def test_no_text_is_there_twice_or_on_both_sides(corpus):
    hashes = [text_hash(d.text) for d in corpus.train + corpus.validation]
    assert len(set(hashes)) == len(hashes)


def test_every_document_has_text_and_topic(corpus):
    for document in corpus.train + corpus.validation:
        assert document.text
        assert document.text == document.text.strip()
        assert document.topic


def test_reading_again_gives_the_same_fingerprint(corpus, folders):
    options = {"path": str(folders[corpus.name])} if corpus.name in folders else {}
    assert build("corpus", corpus.name, **options) == corpus


def test_it_is_frozen(corpus):
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus.name = "other"


def test_the_first_line_names_source_and_terms():
    for builder in builders("corpus").values():
        line = first_line(builder)
        assert 40 <= len(line) <= 120
        assert "(" in line
