"""The configurations that come with the package, and how a name on the command line finds a file."""

from __future__ import annotations

from pathlib import Path

from fedfault.config.files import is_file
from fedfault.errors import UserError, hint_at_data, quote, suggest

_HERE = Path(__file__).resolve()


def find_shipped_folder() -> Path:
    """Find the shipped configurations: `fedfault/configs` of an installed package, or `configs` of the checkout.

    Raises `UserError` if neither is there.
    """
    for place in (_HERE.parents[1] / "configs", _HERE.parents[3] / "configs"):
        if place.is_dir():
            return place
    raise UserError(f"the shipped configurations are missing from {_HERE.parents[1]}; install the package again")


STUDIES = "studies/"  # the folder of files that are a study, not a configuration


def list_configurations() -> list[str]:
    """List the shipped configurations as `find_configuration` takes them, for example `quickstart`."""
    return [name for name in _list_shipped() if not name.startswith(STUDIES)]


def list_studies() -> list[str]:
    """List the shipped studies as `find_study` takes them, for example `main`."""
    return [name.removeprefix(STUDIES) for name in _list_shipped() if name.startswith(STUDIES)]


def _list_shipped() -> list[str]:
    root = find_shipped_folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_configuration(path: Path | str) -> Path:
    """Find the file itself if it exists, else the shipped configuration of that name (`quickstart`, `configs/default.yaml`).

    Raises `UserError` with a suggestion if there is neither, or only a folder.
    """
    return _find_file(Path(path), "configuration", "", list_configurations())


def find_study(path: Path | str) -> Path:
    """Find the file of a study in the same way (`main`, `configs/studies/main.yaml`)."""
    return _find_file(Path(path), "study", STUDIES, list_studies())


def _find_file(given: Path, what: str, place: str, known: list[str]) -> Path:
    hint = hint_at_data(str(given)[:200])
    if hint and given.suffix.lower() not in (".json", ".txt"):  # in which YAML may be
        raise UserError(f"{str(given)[:200]!r} is no {what}{hint}")
    if is_file(given):
        return given
    name = given.as_posix().removeprefix("./").removeprefix("configs/").removeprefix(place).removesuffix(".yaml")
    if name in known:
        return find_shipped_folder() / f"{place}{name}.yaml"
    if is_file(given / "config.yaml"):
        raise UserError(
            f"{str(given)[:200]!r} is a folder, not a {what} file: the settings of that run are in "
            f"{given / 'config.yaml'}, and `fedfault resume {quote(given)}` goes on with it"
        )
    came = f"is a folder, not a {what} file" if _is_folder(given) else "is not there"
    raise UserError(f"{what} {str(given)[:200]!r} {came}{suggest(name[:100], known)} (shipped: {', '.join(known)})")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
