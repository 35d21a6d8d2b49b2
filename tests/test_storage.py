"""Files whole or not at all; a cache that helps and never hurts."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedfault
from fedfault.errors import UserError
from fedfault.reading import documents
from fedfault.storage import (
    HOST,
    _make_passing_cache,
    cache_dir,
    delete_atomically,
    delete_scratch,
    delete_scratch_of,
    expand_home,
    keep,
    recall,
    write_atomically,
    write_folder_atomically,
)
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


def test_what_is_deleted_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").touch()
    for name in ("link", "file", "nothing"):
        delete_atomically(tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "kept"]

    def die(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            delete_atomically(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    delete_scratch(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_leaves_the_old_file_and_an_error_with_its_name(monkeypatch, tmp_path, call):
    write_atomically(tmp_path / "f", "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"os.{call}", fail)
    with pytest.raises(OSError, match="No space left on device") as e:
        write_atomically(tmp_path / "f", "new")
    assert e.value.filename == str(tmp_path / "f")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_what_a_kill_left_unfinished_goes_and_what_another_process_writes_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "checkpoint").mkdir()
    for pid in (gone.pid, os.getpid(), os.getppid()):
        (tmp_path / "checkpoint" / f".round-00001.json.{HOST}.{pid}.tmp").touch()
    (tmp_path / f".plots.{HOST}.{gone.pid}.tmp").mkdir()
    (tmp_path / f".plots.{HOST}.{gone.pid}.tmp" / "half.png").touch()
    elsewhere, long_ago = (tmp_path / f".f.{name}.{gone.pid}.tmp" for name in ("another-node", "an-old-node"))
    elsewhere.touch()
    long_ago.touch()
    os.utime(long_ago, (0, 0))
    (tmp_path / ".notes.tmp").touch()  # of the user
    delete_scratch(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {
        "checkpoint",
        f"checkpoint/.round-00001.json.{HOST}.{os.getppid()}.tmp",
        elsewhere.name,
        ".notes.tmp",
    }


def test_folders_that_another_process_deletes_meanwhile_are_no_error(tmp_path, monkeypatch):
    """A task of an array that began while another one ended was refused: its scratch folder was there no longer."""
    kept = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in kept:
        (folder / f".adapter.elsewhere.{os.getppid()}.tmp").mkdir(parents=True)
    scandir = os.scandir

    def look(path):
        if ".adapter" in os.fspath(path) and os.path.isdir(path):
            os.rmdir(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    delete_scratch(tmp_path)
    assert sorted((tmp_path / "runs").iterdir()) == kept


def test_of_one_file_only_its_own_left_overs_go(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, other = (tmp_path / f".{name}.{HOST}.{gone.pid}.tmp" for name in ("[a].html", "b.html"))
    own.touch()
    other.touch()
    delete_scratch_of(tmp_path / "[a].html")
    assert list(tmp_path.iterdir()) == [other]


PLAINLY = {"write_text", "write_bytes", "rename", "save_file", "write_table", "savefig"}  # a kill leaves part of a file


def writes_plainly(call: ast.Call) -> bool:
    """Whether a call writes a file, or puts one into its place, by itself."""
    if not isinstance(call.func, ast.Attribute):
        return False
    name, modes = call.func.attr, [str(a.value) for a in call.args if isinstance(a, ast.Constant)]
    opens = name in ("open", "fdopen") and any(mode[:1] in {"w", "a", "x"} for mode in modes)
    return name in PLAINLY or opens or ast.unparse(call.func) == "os.replace"


@pytest.mark.slow
def test_whatever_is_written_is_written_by_storage():
    """But for rounds.jsonl, which is appended to, keys, which must not be there before, and bytes in memory."""
    found = set()
    for file in Path(fedfault.__file__).parent.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        found |= {(file.stem, ast.unparse(call.func).rpartition(".")[2]) for call in calls if writes_plainly(call)}
    there = {("storage", "open"), ("storage", "replace")}
    assert found == there | {("files", "open"), ("folder", "write_table"), ("page", "write_table"), ("keys", "fdopen")}


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.delenv("FEDFAULT_CACHE")
    assert cache_dir().parts[-2:] == (".cache", "fedfault")


def test_a_home_folder_that_is_not_there_is_told_with_the_setting():
    with pytest.raises(
        UserError, match=r"^data.path=~nosuchuser/a.csv: .* no home folder of 'nosuchuser'; give the whole"
    ):
        expand_home("~nosuchuser/a.csv", "data.path")
    assert expand_home("a/~b.csv") == Path("a/~b.csv")


def test_a_user_without_a_home_has_a_cache_that_ends_with_the_process(no_home, monkeypatch):
    monkeypatch.delenv("FEDFAULT_CACHE")
    keep(cache_dir() / "a", b"data")
    assert recall(cache_dir() / "a") == b"data"
    with pytest.raises(UserError, match=r"^logging.results_dir=~: HOME is not set; give the whole path"):
        expand_home("~", "logging.results_dir")
    monkeypatch.setenv("FEDFAULT_CACHE", "~nosuchuser/cache")
    with pytest.raises(UserError, match=r"^FEDFAULT_CACHE=~nosuchuser/cache: "):
        cache_dir()


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user of whom the system knows nothing, as in a container that runs as any number."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    _make_passing_cache.cache_clear()


def test_home_folders_are_looked_up_in_one_place():
    root = Path(fedfault.__file__).parent
    assert [p.name for p in root.rglob("*.py") if ".expanduser()" in p.read_text()] == ["storage.py"]


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
    for text in (b"{", None):
        for file in tmp_path.rglob("*.json"):
            file.write_bytes(file.read_bytes().replace(b"Text 2", b"Text 9") if text is None else text)
        assert documents.load_or_make("toy", ("v", 1), make) == first
    assert len(calls) == 4
