from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.corpora.wikitext import split_articles
from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.registry import build

SHARED = Path(__file__).parents[2] / "../shared/data/wikitext2_raw"
ARTICLES = """
 = One =\x20
\x20
 Text of one .\x20
 = = Section = =\x20
\x20
 Where x\x20
 = 2 henry =\x20
 it is heavy .\x20
\x20
 = Two =\x20
\x20
 Text of two .\x20
"""


def test_an_article_starts_at_a_title_with_single_signs_before_a_blank_line():
    texts = [d.text for d in split_articles(ARTICLES)]
    assert [text.split(" \n")[0] for text in texts] == ["= One =", "= Two ="]
    assert "Section" in texts[0]
    assert "heavy" in texts[0]


def test_train_and_validation_are_the_first_two_parts_there(tmp_path):
    (tmp_path / "wiki.valid.raw").write_text(" = A = \n \n valid . \n")
    (tmp_path / "wiki.test.raw").write_text(" = B = \n \n test . \n")
    corpus = build("corpus", "wikitext", path=str(tmp_path))
    assert "valid" in corpus.train[0].text
    assert "test" in corpus.validation[0].text
    (tmp_path / "wiki.train.raw").write_text(" = C = \n \n train . \n")
    corpus = build("corpus", "wikitext", path=str(tmp_path))
    assert "train" in corpus.train[0].text
    assert "valid" in corpus.validation[0].text
    assert corpus.source.endswith("wiki.train.raw, wiki.valid.raw")


def test_the_hubs_lines_make_articles(monkeypatch):
    lines = {part: {"text": ["", " = T = \n", "", f" {part} . \n"]} for part in ("train", "validation", "test")}
    monkeypatch.setattr(hub, "load_splits", lambda *_: (lines, "Hub"))
    assert build("corpus", "wikitext").train == ((" = T = \n \n train .".strip(), "wikipedia", ""),)


def test_the_hubs_blank_rows_are_blank_lines_between_title_and_text(tmp_path, monkeypatch):
    lines = [f"{line} \n" if line.strip() else "" for line in ARTICLES.replace(" \n", "\n").split("\n")[:-1]]
    parts = {"train": {"text": lines}, "validation": {"text": [" = V = \n", "", " Other text . \n"]}}
    monkeypatch.setattr(hub, "load_splits", lambda *_: (parts, "Hub"))
    for part, own in parts.items():
        pyarrow.parquet.write_table(pa.table(own), tmp_path / f"{part}-00000-of-00001.parquet")
    for path in (None, str(tmp_path)):
        assert build("corpus", "wikitext", path=path).train == tuple(split_articles(ARTICLES))


def test_a_text_of_a_table_that_is_null_is_nothing(tmp_path):
    table = pa.table({"text": [" = T = \n", "", "body\n", None, " = U = \n", "", "more\n"]})
    pyarrow.parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "wiki.valid.raw").write_text(" = A = \n \n valid . \n")
    assert "body" in build("corpus", "wikitext", path=str(tmp_path)).train[0].text


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(UserError, match="train, valid or test"):
        build("corpus", "wikitext", path=str(tmp_path))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the team's data files are not beside the checkout")
def test_the_official_parts_have_sixty_articles_each():
    corpus = build("corpus", "wikitext", path=str(SHARED))
    assert (len(corpus.train), len(corpus.validation)) == (60, 60)
    assert corpus.train[0].text.startswith("= Homarus gammarus =")
    assert corpus.validation[0].text.startswith("= Robert Boulter =")
