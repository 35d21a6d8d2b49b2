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


def names() -> list[str]:
    """The shipped configurations as `find` takes them, for example `quickstart`."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(path: Path | str) -> Path:
    """The file itself if it exists, else the shipped configuration of that name (`quickstart`, `configs/default.yaml`).

    Raises `UserError` with a suggestion if there is neither, or only a folder.
    """
    given = Path(path)
    if is_file(given):
        return given
    name = given.as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    if name in names():
        return folder() / f"{name}.yaml"
    came = "is a folder, not a configuration file" if _is_folder(given) else "is not there"
    hint = suggest(name[:100], names())
    raise UserError(f"configuration {str(path)[:200]!r} {came}{hint} (shipped: {', '.join(names())})")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
