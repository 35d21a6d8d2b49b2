"""Files that are there whole or not at all (atomic writes), and the cache folder for what can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader, or a run after a kill, sees the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, path)


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
