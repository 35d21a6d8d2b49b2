"""The Hugging Face Hub: data sets from it, and a quick answer for data sets and models when there is no network."""

from __future__ import annotations

import contextlib
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from fedfault.errors import UserError

TIMEOUT = 3.0  # seconds to find out that nobody answers; the Hub's own clients ask again and again for a minute


def load_splits(dataset: str, config: str | None = None) -> tuple[Any, str]:
    """Load a data set of the Hub: its splits by name, and a description of the source.

    Without network the copy in the local cache is used. Raises `UserError` if there is none.
    """
    import datasets

    try:
        with ask_hub_or_cache():
            splits = datasets.load_dataset(dataset, config)
    except Exception as error:  # whatever a download runs into, the ways out are the same
        raise UserError(
            f"the data set {dataset} cannot be had from the Hugging Face Hub and is not in the local cache "
            f"({type(error).__name__}: {error}); set data.path=FOLDER to a folder with its files, "
            "or data.dataset=registers, which needs no network"
        ) from error
    revision = _find_revision(splits)
    return splits, f"Hugging Face Hub {' '.join(filter(None, (dataset, config)))}" + (
        f" at {revision}" if revision else ""
    )


def _find_revision(splits: Any) -> str | None:
    """Find the commit that splits come from, in the path of the cached files or in the addresses they were loaded from."""
    split = next(iter(splits.values()))
    places = [file["filename"] for file in split.cache_files] + list(split.info.download_checksums or {})
    found = re.search(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", " ".join(places))
    return found[0] if found else None


def list_rows(split: Any, *columns: str) -> list[dict[str, Any]]:
    """List the rows of a split, with these columns."""
    values = (split[column][:] for column in columns)  # all of a column at once: row by row is slow
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def is_reachable() -> bool:
    """Whether the Hub answers at all; False in offline mode (HF_HUB_OFFLINE=1)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # an answer, if not a friendly one
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the Hub's client may trust other certificates than Python
    except OSError:  # the time is up, or the connection broke
        return False


@contextlib.contextmanager
def ask_hub_or_cache() -> Iterator[None]:
    """Within the block, the Hub's libraries download where the Hub answers, and read their cache at once where it does not.

    Left to themselves they ask a Hub that is not there again and again, for a minute.
    """
    with contextlib.nullcontext() if is_reachable() else _use_cache_only():
        yield


@contextlib.contextmanager
def _use_cache_only() -> Iterator[None]:
    """Within the block, the Hub's libraries read their cache only."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
