"""Files that are there whole or not at all (atomic writes), and the cache folder for what can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as scratch:
        filled = Path(scratch) / "filled"
        filled.mkdir()
        yield filled
        try:
            os.replace(filled, folder)
        except OSError:
            if not folder.is_dir():  # another process that made the same was faster
                raise


def cache_dir() -> Path:
    """Return the folder of converted models, samples and parsed corpora: FEDFAULT_CACHE, else ~/.cache/fedfault."""
    return Path(os.environ.get("FEDFAULT_CACHE", "~/.cache/fedfault")).expanduser()


def keep(path: Path, data: bytes) -> None:
    """Put a file into the cache; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError:
        return
