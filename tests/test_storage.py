"""Files whole or not at all; a cache that helps and never hurts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedfault
from fedfault.reading import documents
from fedfault.storage import cache_dir, keep, write_atomically, write_folder_atomically
from fedfault.types.corpus import Document


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    write_atomically(tmp_path / "f", "old")
    write_atomically(tmp_path / "f", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "new"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def write_half():
        with write_folder_atomically(tmp_path / "f") as scratch:
            (scratch / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not list(tmp_path.iterdir())
    for content in ("first", "second"):  # of two processes, whose folders are alike
        with write_folder_atomically(tmp_path / "f") as scratch:
            (scratch / "file").write_text(content)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["f", "f/file"]
    assert (tmp_path / "f" / "file").read_text() == "first"


PLAINLY = {
    "write_text",
    "write_bytes",
    "rename",
    "save_file",
    "write_table",
    "savefig",
}  # a kill leaves a part of the file


def test_whatever_is_written_is_written_by_storage():
    """Save rounds.jsonl, which is appended to, keys, which must not be there before, and what storage is handed."""
    found = set()
    for file in Path(fedfault.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            modes = (
                [a.value for a in node.args if isinstance(a, ast.Constant)]
                if node.func.attr in ("open", "fdopen")
                else []
            )
            if node.func.attr in PLAINLY or any(str(m)[:1] in "wax" for m in modes):
                found.add((file.stem, node.func.attr))
    assert found == {("storage", "open"), ("folder", "open"), ("folder", "write_table"), ("keys", "fdopen")}


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.delenv("FEDFAULT_CACHE")
    assert cache_dir().parts[-2:] == (".cache", "fedfault")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    keep(tmp_path / "file" / "below" / "x", b"data")
    assert (tmp_path / "file").read_text() == ""


def test_a_cached_corpus_is_made_once_for_its_key_and_again_when_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return documents.make_corpus("toy", "here", [Document(f"Text {i}.", "a") for i in range(5)])

    first = documents.load_or_make("toy", ("v", 1), make)
    assert documents.load_or_make("toy", ("v", 1), make) == first
    assert len(calls) == 1
    documents.load_or_make("toy", ("v", 2), make)
    assert len(calls) == 2
    for file in tmp_path.rglob("*.json"):
        file.write_text("{")
    assert documents.load_or_make("toy", ("v", 1), make) == first
    assert len(calls) == 3
