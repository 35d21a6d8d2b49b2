"""The Hugging Face Hub: data sets from it, and a quick answer for data sets and models when there is no network."""

from __future__ import annotations

import contextlib
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedfault.errors import UserError

SCHEME = "hf://"  # of an address on the Hub
TIMEOUT = 3.0  # seconds to find out that nobody answers; the Hub's own clients ask again and again for a minute

_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+(?:@[^/]*)?)(/.*)?")
# where the Hub's libraries keep a commit's files
_SNAPSHOT = re.compile(r"/datasets--(.+?)/snapshots/(\w+)(?:/(.+))?$")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?(\.\w+)")  # one of the files that a split is cut into


class DataPath(NamedTuple):
    """A folder or file that data is read from."""

    path: Path
    asked: bool = True  # False where the Hub did not answer: its cache may hold a part of a folder


def load_splits(dataset: str, config: str | None = None) -> tuple[Any, str]:
    """Load a data set of the Hub: its splits by name, and a description of the source.

    Without network the copy in the local cache is used. Raises `UserError` if there is none.
    """
    import datasets

    try:
        with ask_hub_or_cache():
            splits = datasets.load_dataset(dataset, config)
    except Exception as error:  # whatever a download runs into, the ways out are the same
        raise _explain_failure(dataset, error) from error
    revision = _find_revision(splits)
    return splits, f"Hugging Face Hub {' '.join(filter(None, (dataset, config)))}" + (
        f" at {revision}" if revision else ""
    )


def split_revision(name: str, option: str) -> tuple[str, str | None]:
    """Split the name of a repository from the branch, tag or commit after its `@`; None where the name says none.

    Raises `UserError`, which names the setting `option`, where nothing follows the `@`.

    >>> split_revision("org/name@v1.0", "model.name"), split_revision("org/name", "model.name")
    (('org/name', 'v1.0'), ('org/name', None))
    """
    repository, at, revision = name.partition("@")
    if at and not (repository and revision):
        raise UserError(f"{option}={name}: write ORG/NAME@REVISION, the revision being a branch, a tag or a commit")
    return repository, revision or None


def fetch_data(address: str, endings: Iterable[str]) -> DataPath:
    """Fetch a data set's files with these endings into the local cache; returns the place that `address` names.

    address: hf://datasets/ORG/NAME[@REVISION][/FOLDER or FILE], as the Hub's own libraries write it. Without network the
    copy in the cache is used. Raises `UserError` if there is none, if files of a numbered row are missing in it, or if the
    Hub has no such data set or revision.
    """
    from huggingface_hub import snapshot_download

    if not (found := _ADDRESS.fullmatch(address)):
        raise UserError(f"data.path={address}: write hf://datasets/ORG/NAME[@REVISION][/FOLDER or FILE]")
    endings = tuple(endings)
    (repository, revision), below = split_revision(found[1], "data.path"), (found[2] or "").strip("/")
    inside = [f"{below}/*{ending}" if below else f"*{ending}" for ending in endings]
    wanted = [below, *inside] if below else inside
    try:
        with ask_hub_or_cache() as answers:
            folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=wanted)
    except Exception as error:  # whatever a download runs into, the ways out are the same
        raise _explain_failure(address, error) from error
    if not (path := Path(folder, below)).exists():
        raise UserError(
            f"data.path={address}: nothing of that name in the data set, or no file in it that ends in one of "
            f"{', '.join(endings)}; data sets that are made by a script of their own cannot be read"
        )
    if not answers and path.is_dir():
        _check_shards(address, path, endings)
    return DataPath(path, asked=answers)


def _check_shards(address: str, folder: Path, endings: tuple[str, ...]) -> None:
    """Raise `UserError` where the cache holds some of the files that a split is cut into, and not all of them."""
    found: dict[tuple[Path, str, int, str], set[int]] = {}
    for file in sorted(folder.rglob("*")):
        if file.name.endswith(endings) and (match := _SHARD.fullmatch(file.name)):
            stem, number, total, ending = match.groups()
            found.setdefault((file.parent, stem, int(total), ending), set()).add(int(number))
    for (_, stem, total, ending), numbers in found.items():
        if len(numbers) < total:
            raise UserError(
                f"data.path={address}: without network the local cache was read, and it holds {len(numbers)} of the {total} "
                f"files {stem}-*-of-{total:05}*{ending}; fetch the others with a network, or name the file that is wanted"
            )


def name_place(place: DataPath) -> str:
    """Name the folder or file that data was read from; what lies in the Hub's cache by repository and commit.

    >>> name_place(DataPath(Path("/x/datasets--org--name/snapshots/0abc/train.csv")))
    'Hugging Face Hub org/name at 0abc: train.csv'
    """
    path, asked = place
    if found := _SNAPSHOT.search(path.absolute().as_posix()):
        name, commit, below = found.groups()
        part = "" if asked or not path.is_dir() else ", from the local cache, which may hold a part of it"
        return f"Hugging Face Hub {name.replace('--', '/')} at {commit}" + (f": {below}" if below else "") + part
    return f"{'folder' if path.is_dir() else 'file'} {path.resolve()}"


def _explain_failure(name: str, error: Exception) -> UserError:
    return UserError(
        f"the data set {name} cannot be had from the Hugging Face Hub and is not in the local cache "
        f"({type(error).__name__}: {error}); set data.path=FOLDER to a folder with its files, "
        "or data.dataset=registers, which needs no network"
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
def ask_hub_or_cache() -> Iterator[bool]:
    """Within the block, the Hub's libraries download where the Hub answers, and read their cache at once where it does not.

    Yields whether it answers. Left to themselves they ask a Hub that is not there again and again, for a minute.
    """
    answers = is_reachable()
    with contextlib.nullcontext() if answers else _use_cache_only():
        yield answers


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
