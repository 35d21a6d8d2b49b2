"""Components from outside the package: files and modules that a configuration names, known by the hash of their source.

    plugins: [my_algorithm.py, my_package.module]

A resolved configuration has the hash behind the name, `my_algorithm.py#3f2a9c81d2e4`: then only that very source is taken.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import linecache
import re
import sys
import traceback
import types
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from fedfault.errors import UserError, read_first_line
from fedfault.storage import expand_home, write_atomically

GROUP = "fedfault.components"  # of the entry points by which an installed package offers modules with components
COPIES = "plugins"  # the folder beside a configuration that has a copy of the files
LENGTH = 12  # characters of a hash
PINNED = re.compile(rf"(.+)#([0-9a-f]{{{LENGTH}}})")


@dataclass(frozen=True)
class PlugIn:
    """A file or module from outside, imported."""

    source: str  # a path, or the name of a module
    texts: tuple[tuple[str, bytes], ...]  # of its files, by the path under which a run folder has them
    module: str  # its name in sys.modules
    package: str = ""  # what offers it by an entry point

    @property
    def name(self) -> str:
        """What messages and the run folder call it: the file without its folder, or the module."""
        return Path(self.source).name if is_path(self.source) else self.source

    @property
    def fingerprint(self) -> str:
        """The hash of its source."""
        return _hash_texts(self.texts)

    @property
    def pinned(self) -> str:
        """The source with its hash, as resolved configurations name it."""
        return f"{self.source}#{self.fingerprint}"


def split_pin(written: str) -> tuple[str, str]:
    """Split a plug-in as it is written into its source and the hash that it is pinned to, which may be empty.

    >>> split_pin("mine.py#3f2a9c81d2e4"), split_pin("issue#3/mine.py")
    (('mine.py', '3f2a9c81d2e4'), ('issue#3/mine.py', ''))
    """
    pinned = PINNED.fullmatch(written)
    return (pinned[1], pinned[2]) if pinned else (written, "")


def is_path(source: str) -> bool:
    """Return whether a plug-in is named by its file, not as a module."""
    return source.endswith(".py")


def choose_source(written: str, folder: Path) -> str:
    """Return a plug-in as it can be found from the working folder, which a configuration in `folder` names.

    A file lies relative to the configuration, or else to the working folder. With a hash, a file of another one is passed
    over, and the copy in the folder `plugins` beside the configuration counts, too. What is nowhere stays as written.
    """
    source, wanted = split_pin(written)
    if not is_path(source) or source.startswith("~"):
        return written
    places = [folder / source, Path(source), *([folder / COPIES / Path(source).name] if wanted else [])]
    fitting = (p for p in places if p.is_file() and wanted in ("", _hash_texts([(p.name, p.read_bytes())])))
    found = next(fitting, None)
    return written if found is None else str(found) + ("#" + wanted if wanted else "")


def load_plugin(written: str) -> PlugIn:
    """Import a plug-in; the same source is imported once.

    Raises `UserError` for what is not there, has another hash than it is named with or cannot be imported, with the line.
    """
    source, wanted = split_pin(written)
    found = _load_file(source, wanted) if is_path(source) else _load_module(source)
    if wanted not in ("", found.fingerprint):
        copy = f" (a copy may lie in {COPIES}/ beside the configuration)" if is_path(source) else ""
        raise UserError(
            f"the plug-in {source} has the hash {found.fingerprint}, and {wanted} is wanted: restore it as it was{copy}, or "
            "start a new run with it"
        )
    return found


_LOADED: dict[tuple[str, str], PlugIn] = {}  # by name and hash


def _load_file(source: str, wanted: str) -> PlugIn:
    path = expand_home(source)
    if not path.is_file():
        raise UserError(
            f"the plug-in {source} is not there, with the hash {wanted}; put it back, or a copy as {COPIES}/{path.name} "
            "beside the configuration"
            if wanted
            else f"there is no file {source}, neither beside the configuration nor in the working folder"
        )
    texts = ((path.name, path.read_bytes()),)
    known = _LOADED.get((path.name, _hash_texts(texts)))
    if known is None:
        known = PlugIn(source, texts, f"fedfault_plugin_{path.stem}_{_hash_texts(texts)}")
        _execute_file(path, texts[0][1], known.module)
        _LOADED[path.name, known.fingerprint] = known
    return replace(known, source=source)


def _execute_file(path: Path, text: bytes, name: str) -> None:
    """Run a file as a module: compiled here, as Python's cache of compiled files may not see an edit within a second."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    linecache.checkcache(str(path))
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise UserError(_explain_failure(e, str(path))) from e


def _load_module(name: str) -> PlugIn:
    try:
        found = PlugIn(name, _read_module(importlib.import_module(name)), name)
    except (Exception, SystemExit) as e:
        absent = not name or (isinstance(e, ModuleNotFoundError) and f"{name}.".startswith(f"{e.name}."))
        raise UserError(
            f"no module {name!r} can be imported; a plug-in is a file like my_algorithm.py, or a module that is installed "
            "or on PYTHONPATH"
            if absent
            else _explain_failure(e)
        ) from e
    known = next((p for (source, _), p in _LOADED.items() if source == name), found)
    if known.fingerprint != found.fingerprint:
        raise UserError(f"the module {name} has changed since this process imported it; start a new one")
    return _LOADED.setdefault((name, found.fingerprint), found)


def _read_module(module: types.ModuleType) -> tuple[tuple[str, bytes], ...]:
    """Read the source of a module; of a package that of all modules in it."""
    if module.__file__ is None:
        raise ImportError(f"{module.__name__} is a folder without __init__.py, and has no source of its own")
    path = Path(module.__file__)
    if path.name != "__init__.py":
        return ((f"{module.__name__}.py", path.read_bytes()),)
    files = sorted(path.parent.rglob("*.py"))
    return tuple((f"{module.__name__}/{f.relative_to(path.parent).as_posix()}", f.read_bytes()) for f in files)


def _hash_texts(texts: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, text in texts:
        digest.update(f"{name}:{len(text)}:".encode() + text)
    return digest.hexdigest()[:LENGTH]


def _explain_failure(e: BaseException, file: str = "") -> str:
    """Say in which line an import failed, of this file where it was there, and how."""
    if isinstance(e, SyntaxError):
        return f"{e.filename or file}:{e.lineno or 1}: syntax error: {e.msg}; correct the plug-in"
    frames = traceback.extract_tb(e.__traceback__)
    place = ([f for f in frames if f.filename == file] or frames)[-1]
    said = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {read_first_line(e)}"
    hint = ""
    if isinstance(e, ModuleNotFoundError):
        hint = "; install it: a plug-in is one file, what files share goes into a module on PYTHONPATH"
    return f"{place.filename}:{place.lineno}: {said}{hint}"


@functools.cache
def find_installed() -> tuple[PlugIn, ...]:
    """Import the plug-ins that installed packages offer. Raises `UserError` that names the package of one that fails."""
    found = []
    for entry in metadata.entry_points(group=GROUP):
        package = entry.dist.name if entry.dist else entry.name
        try:
            found.append(replace(load_plugin(entry.value), package=package))
        except UserError as e:
            raise UserError(f"the installed package {package} offers components, but {e}; mend or uninstall it") from e
    return tuple(found)


def copy_sources(plugins: Iterable[PlugIn], folder: Path) -> None:
    """Write the source of plug-ins into a folder: a file under its name, a module as MODULE.py, a package as a folder."""
    for name, text in (one for plugin in plugins for one in plugin.texts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, text)
