"""Files that are there whole or not at all (atomic writes), `~` in paths, and the cache folder of what can be made again."""

from __future__ import annotations

import atexit
import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fedfault.errors import UserError

HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "here"
DAY = 86_400  # seconds


@contextlib.contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Within the block, every `OSError` names this file: a full disk names none, and a scratch file is not the user's."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader, or a run after a kill, sees the old content or the new, never a part.

    Raises `OSError`, which names the file, where it cannot be written; nothing is left behind then.
    """
    scratch = _name_scratch(path)
    try:
        with name_file(path):
            with scratch.open("wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


@contextlib.contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """Give a scratch folder to fill within the block; at its end it becomes `folder`, unless that is there by then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _name_scratch(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}"))  # threads have one each
    scratch.mkdir()
    try:
        yield scratch
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # another process that made the same was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def delete_atomically(path: Path) -> None:
    """Delete a file or a folder in one step, if it is there: a kill leaves all of it, or a scratch folder."""
    if path.is_dir() and not path.is_symlink():
        leftover = _name_scratch(path)
        os.replace(path, leftover)
        shutil.rmtree(leftover)
    else:
        path.unlink(missing_ok=True)


def _name_scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")


def is_scratch(name: str) -> bool:
    """Return whether a file or folder of this name is one that is being written, or that a kill has left unfinished."""
    return re.fullmatch(r"\..+\.\d+\.tmp", name) is not None


def delete_scratch(folder: Path) -> None:
    """Delete what processes that are gone have left unfinished in a folder and below it.

    Of processes of another machine it is not known whether they are gone: theirs are deleted when they are a day old.
    """
    for place, folders, files in os.walk(folder):  # not rglob: folders of other processes come and go meanwhile
        for name in filter(is_scratch, (*folders, *files)):
            _delete_if_left(Path(place, name))


def delete_scratch_of(path: Path) -> None:
    """Delete what processes that are gone have left unfinished of one file: for pages, in whose folder anything may lie."""
    for left in list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp")):
        _delete_if_left(left)


def _delete_if_left(left: Path) -> None:
    if not is_scratch(left.name):
        return
    *_, host, pid, _ = left.name.split(".")
    with contextlib.suppress(FileNotFoundError):  # its process is done with it just now
        gone = not _is_alive(int(pid)) if host == HOST else time.time() - left.stat().st_mtime > DAY
        if gone:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_alive(pid: int) -> bool:
    """Return whether another process has this number; what has the number of this one is of a former process."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def expand_home(given: str | os.PathLike[str], name: str = "") -> Path:
    """Return a path with the home folder in the place of `~` or `~USER`. name: of the setting, if it is one.

    Raises `UserError` where the system knows no such folder, as for a user without an entry in a container.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError:
        user = Path(given).parts[0].removeprefix("~")
        whose = f"the system knows no home folder of {user!r}" if user else "HOME is not set"
        raise UserError(f"{name}{'=' * bool(name)}{given}: {whose}; give the whole path, without ~") from None


def cache_dir() -> Path:
    """Return the folder of converted models, samples and parsed corpora: FEDFAULT_CACHE, else ~/.cache/fedfault.

    For a user without a home folder it is one that is deleted when the process ends. Raises `UserError` where
    FEDFAULT_CACHE names a home folder that is not there.
    """
    if "FEDFAULT_CACHE" in os.environ:
        return expand_home(os.environ["FEDFAULT_CACHE"], "FEDFAULT_CACHE")
    try:
        return Path("~/.cache/fedfault").expanduser()
    except RuntimeError:
        return _make_passing_cache()


@cache
def _make_passing_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fedfault-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def keep(path: Path, data: bytes) -> None:
    """Put data into the cache, with its hash in front; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_scratch(path.parent)
        write_atomically(path, hashlib.sha256(data).digest() + data)


def recall(path: Path) -> bytes | None:
    """Return data that `keep` has put into the cache; None where it is not there, cannot be read or is not what was put."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None
