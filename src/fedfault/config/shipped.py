"""The configurations that come with the package, and how a name on the command line finds a file."""

from __future__ import annotations

from pathlib import Path

from fedfault.config.files import is_file
from fedfault.errors import UserError, suggest

_HERE = Path(__file__).resolve()


def folder() -> Path:
    """`fedfault/configs` of an installed package, or `configs` of the checkout.

    Raises `UserError` if neither is there.
    """
    for place in (_HERE.parents[1] / "configs", _HERE.parents[3] / "configs"):
        if place.is_dir():
            return place
    raise UserError(f"the shipped configurations are missing from {_HERE.parents[1]}; install the package again")


STUDIES = "studies/"  # the folder of files that are a study, not a configuration


def names() -> list[str]:
    """The shipped configurations as `find` takes them, for example `quickstart`."""
    return [name for name in _shipped() if not name.startswith(STUDIES)]


def studies() -> list[str]:
    """The shipped studies as `find_study` takes them, for example `main`."""
    return [name.removeprefix(STUDIES) for name in _shipped() if name.startswith(STUDIES)]


def _shipped() -> list[str]:
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(path: Path | str) -> Path:
    """The file itself if it exists, else the shipped configuration of that name (`quickstart`, `configs/default.yaml`).

    Raises `UserError` with a suggestion if there is neither, or only a folder.
    """
    return _found(Path(path), "configuration", "", names())


def find_study(path: Path | str) -> Path:
    """The same for the file of a study (`main`, `configs/studies/main.yaml`)."""
    return _found(Path(path), "study", STUDIES, studies())


def _found(given: Path, what: str, place: str, known: list[str]) -> Path:
    if is_file(given):
        return given
    name = given.as_posix().removeprefix("./").removeprefix("configs/").removeprefix(place).removesuffix(".yaml")
    if name in known:
        return folder() / f"{place}{name}.yaml"
    came = f"is a folder, not a {what} file" if _is_folder(given) else "is not there"
    raise UserError(f"{what} {str(given)[:200]!r} {came}{suggest(name[:100], known)} (shipped: {', '.join(known)})")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
