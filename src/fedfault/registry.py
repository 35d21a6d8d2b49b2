"""Finds and builds components by name. A builder's keyword-only signature is its schema, its help, its row in the docs.

A component is a function in one of the open folders, found by looking into the folder: there is no list to edit. Others
come from plug-ins: files that a configuration names, and installed packages.

    @register("partition")
    def iid():
        "Every client draws from the same mixture."
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedfault.errors import UserError, find_near, hint_at_data, suggest
from fedfault.options import check_options, describe_options
from fedfault.plugins import PlugIn, find_installed, load_plugin

FOLDERS = {
    "algorithm": "fedfault.algorithms",
    "aggregation": "fedfault.aggregations",
    "corpus": "fedfault.corpora",
    "partition": "fedfault.partitions",
    "scheduler": "fedfault.ranks",
    "probe": "fedfault.metrics",
    "detector": "fedfault.detectors",
    "attack": "fedfault.attacks",
    "selection": "fedfault.selection",
}


class Registered(NamedTuple):
    """A builder and the keyword arguments of `register` that it was given."""

    builder: Callable[..., Any]
    facts: dict[str, Any]


_REGISTERED: dict[str, dict[tuple[str, str], Registered]] = {}  # module -> (kind, name) -> what it registered
_ACTIVE: list[PlugIn] = []  # the plug-ins of the configuration that was loaded last
Builder = typing.TypeVar("Builder", bound=Callable[..., Any])


def register(
    kind: str, name: str | None = None, *, cite: tuple[str, ...] = (), on: bool = True, order: int | None = None
) -> Callable[[Builder], Builder]:
    """Decorator: make a builder known under its own name, or under `name`.

    cite: keys of the papers in `studies/references.bib` that a study which uses the component refers to.
    on: whether a probe is measured where the configuration does not say; order: its place among the probes in records and
    configurations, those without one come last, by name. All are literals, see `read_declarations`. Raises `UserError`
    for another kind, for what is no function and for a name that its module has given already (a cell of a notebook may
    be run again), and `ValueError` for another kind that has a switch or a place.
    """
    if kind not in FOLDERS:
        raise UserError(f"no kind {kind!r} of component{suggest(kind, FOLDERS)} (known: {', '.join(FOLDERS)})")
    if kind != "probe" and (order is not None or not on):
        raise ValueError(f"only a probe has `on` and `order`, not a {kind}")

    def add(builder: Builder) -> Builder:
        if not inspect.isfunction(builder):
            what = "a class" if inspect.isclass(builder) else f"of type {type(builder).__name__}"
            raise UserError(
                f"a component is a function that returns what a run uses, and {getattr(builder, '__name__', builder)} is "
                f"{what}: write `@register({kind!r})` above a function that makes it"
            )
        own, key = _REGISTERED.setdefault(builder.__module__, {}), (kind, name or builder.__name__)
        if key in own and not _is_redefined(own[key].builder, builder):
            raise UserError(
                f"two {kind} components are called {key[1]!r}, the other one at {_locate(own[key].builder)}"
            )
        own[key] = Registered(builder, {"cite": cite, "on": on})
        return builder

    return add


def _is_redefined(known: Callable[..., Any], builder: Callable[..., Any]) -> bool:
    """Whether the cell of a notebook that defines a component was run again, maybe after an edit."""
    return builder.__module__ == "__main__" and known.__qualname__ == builder.__qualname__


def _locate(builder: Callable[..., Any]) -> str:
    """File and line of a builder."""
    code = inspect.unwrap(builder).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def activate(wanted: Sequence[str]) -> None:
    """Make the components of these plug-ins known, beside those of the folders and of installed packages, and no others.

    Raises `UserError` with file and line for a plug-in that is not there, is broken or registers nothing, and for names that
    are taken.
    """
    _ACTIVE.clear()
    found = {(p.name, p.fingerprint): p for p in map(_load, wanted)}
    _check_plugins(tuple(found.values()))
    _ACTIVE.extend(found.values())


@contextlib.contextmanager
def keep_plugins() -> Iterator[None]:
    """After the block, the plug-ins are known that were known before it."""
    before = list(_ACTIVE)
    try:
        yield
    finally:
        _ACTIVE[:] = before


def list_plugins() -> tuple[PlugIn, ...]:
    """List the plug-ins whose components are known now, those of installed packages first."""
    return (*find_installed(), *_ACTIVE)


def describe_plugins() -> str:
    """Name the plug-ins that are known now with their hashes: what two processes must have in common."""
    return ", ".join(f"{p.name}#{p.fingerprint}" for p in list_plugins()) or "none"


def _load(wanted: str) -> PlugIn:
    """Import a plug-in; one that fails leaves nothing registered, so that it can be mended and named again."""
    try:
        return load_plugin(wanted)
    except UserError:
        for module in [m for m in _REGISTERED if m not in sys.modules]:
            del _REGISTERED[module]
        raise


def list_registered(plugin: PlugIn) -> dict[tuple[str, str], Registered]:
    """List what a plug-in has registered, by kind and name; of a package what all its modules have."""
    found: dict[tuple[str, str], Registered] = {}
    for module, own in _REGISTERED.items():
        if f"{module}.".startswith(f"{plugin.module}."):
            found |= own
    return found


@functools.lru_cache(maxsize=16)
def _check_plugins(wanted: tuple[PlugIn, ...]) -> None:
    """Raise `UserError` where plug-ins cannot be told apart, or have components that nobody could choose."""
    sources: dict[str, str] = {}  # by the name of the plug-in
    places: dict[tuple[str, str], str] = {}  # by kind and name of the component
    for plugin in (*find_installed(), *wanted):
        if (other := sources.setdefault(plugin.name, plugin.source)) != plugin.source:
            raise UserError(f"two plug-ins are called {plugin.name}: {other} and {plugin.source}; rename one of them")
        own = list_registered(plugin)
        if not own:
            raise UserError(
                f'{plugin.source} registers no component; decorate its function with `@register("algorithm")`, or with '
                f"another kind ({', '.join(FOLDERS)})"
            )
        for (kind, name), (builder, _) in own.items():
            here = _locate(builder)
            if name in read_declarations(kind):
                raise UserError(
                    f"{here}: fedfault has {kind} {name!r} already; give the function another name, or write "
                    f'`@register("{kind}", "another_name")`'
                )
            if (there := places.setdefault((kind, name), here)) != here:
                raise UserError(
                    f"{here}: {kind} {name!r} is there already, at {there}; give one of them another name, or leave one "
                    "plug-in out"
                )
            try:
                describe_options(builder)
            except (UserError, NameError, TypeError, AttributeError) as e:
                raise UserError(f"{here}: {e}") from e


def load_builders(kind: str) -> dict[str, Callable[..., Any]]:
    """Load all builders of a kind, by name in alphabetical order."""
    package = importlib.import_module(FOLDERS[kind])
    modules = _import_all(package.__name__, *package.__path__)
    found = [_REGISTERED.get(module, {}) for module in modules]
    found += [list_registered(plugin) for plugin in list_plugins()]
    return dict(sorted((name, r.builder) for own in found for (of, name), r in own.items() if of == kind))


@functools.cache  # as often as `read_declarations`
def _import_all(package: str, *folders: str) -> tuple[str, ...]:
    modules = tuple(f"{package}.{module.name}" for module in pkgutil.iter_modules(folders))
    for module in modules:
        importlib.import_module(module)
    return modules


def find_plugin(builder: Callable[..., Any]) -> PlugIn | None:
    """Find the plug-in that a known builder comes from; None for one of the folders."""
    return next((p for p in list_plugins() if any(r.builder is builder for r in list_registered(p).values())), None)


def list_switches() -> dict[str, bool]:
    """List the probes of plug-ins, by name, and whether each is measured where the configuration does not say."""
    own = [list_registered(plugin) for plugin in list_plugins()]
    return {name: r.facts["on"] for found in own for (kind, name), r in found.items() if kind == "probe"}


class Declaration(NamedTuple):
    """The facts that a component states of itself in the text of its file."""

    summary: str  # first line of the docstring
    facts: dict[str, Any]  # keyword arguments of `register`
    defaults: dict[str, Any]  # of its options, where the text has them as literals


def read_declarations(kind: str) -> dict[str, Declaration]:
    """Read what all components of a kind in their folder declare, by name in alphabetical order, without importing them.

    It takes milliseconds where an import may need torch. Raises `ValueError` for an argument of `register` that is not a
    literal.

    >>> read_declarations("probe")["generation"].facts["on"]
    False
    """
    found: dict[str, Declaration] = {}
    for folder in importlib.import_module(FOLDERS[kind]).__path__:
        found |= _read_folder(kind, folder)
    return dict(sorted(found.items()))


@functools.cache  # a run asks hundreds of times: for each of its choices, beside those of every calibration
def _read_folder(kind: str, folder: str) -> dict[str, Declaration]:
    found: dict[str, Declaration] = {}
    for file in Path(folder).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            found |= _find_declared(kind, node) if isinstance(node, ast.FunctionDef) else {}
    return found


def _find_declared(kind: str, function: ast.FunctionDef) -> dict[str, Declaration]:
    """The component that this function builds, by name; empty where it is not registered as one of that kind."""
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
            registered, *names = (ast.literal_eval(a) for a in call.args)
            if registered == kind:
                facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                name = facts.pop("name", names[0] if names else function.name)
                summary = (ast.get_docstring(function) or "").partition("\n")[0]
                return {name: Declaration(summary, facts, _read_defaults(function.args))}
    return {}


def _read_defaults(arguments: ast.arguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        with contextlib.suppress(ValueError):  # what is no literal
            found |= {argument.arg: ast.literal_eval(default)} if default is not None else {}
    return found


def find_citations(kind: str, name: str) -> tuple[str, ...]:
    """Find the keys of the papers that a component cites; none for a name that is not known."""
    known = read_declarations(kind)
    if name in known:
        return tuple(known[name].facts.get("cite", ()))
    own = [list_registered(plugin) for plugin in list_plugins()]
    return next((tuple(found[kind, name].facts["cite"]) for found in own if (kind, name) in found), ())


def find_builder(kind: str, name: str) -> Callable[..., Any]:
    """Find the builder of that name. Raises `UserError` with a suggestion if there is none."""
    known = load_builders(kind)
    if name not in known:
        hint = _hint(kind, name) or suggest(name, known)
        raise UserError(f"no {kind} called {name!r}{hint} (known: {', '.join(known)})")
    return known[name]


def _hint(kind: str, name: str) -> str:
    """Say what to do where a name is of data elsewhere, or one that only a module has which is no plug-in here."""
    if kind == "corpus" and (hint := hint_at_data(name)):
        return hint
    if kind == "corpus" and not find_near(name, load_builders(kind)):
        at = name if "/" in name else f"ORG/{name}"
        return f"; a data set of the Hub is read by data.dataset=text data.path=hf://datasets/{at}"
    module = next((m for m, own in _REGISTERED.items() if (kind, name) in own), None)
    if module is None:
        return ""
    return f"; {module} registers one, which the configuration does not name: write it to a file, and name that in `plugins`"


def build(kind: str, name: str, **given: Any) -> Any:
    """Look up and call a builder with checked options.

    Raises `UserError` for an unknown name or option and for a value of the wrong type.

    >>> build("partition", "topic_skew", alfa=0.1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedfault.errors.UserError: partition 'topic_skew' has no option 'alfa'; did you mean 'alpha'? (it takes: alpha: ...
    """
    builder = find_builder(kind, name)
    return builder(**check_options(kind, name, builder, given))


def read_summary(builder: Callable[..., Any]) -> str:
    """Read the first line of the docstring, which `fedfault list` prints."""
    return (inspect.getdoc(builder) or "").partition("\n")[0]
