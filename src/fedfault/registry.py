"""Finds and builds components by name. A builder's keyword-only signature is its schema, its help, its row in the docs.

A component is a function in one of the open folders, found by looking into the folder: there is no list to edit.

    @register("partition")
    def iid():
        "Every client draws from the same mixture."
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from fedfault.errors import UserError, suggest

FOLDERS = {
    "algorithm": "fedfault.algorithms",
    "aggregation": "fedfault.aggregations",
    "corpus": "fedfault.corpora",
    "partition": "fedfault.partitions",
    "scheduler": "fedfault.ranks",
    "probe": "fedfault.metrics",
    "detector": "fedfault.detectors",
}

_BUILDERS: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in FOLDERS}
Builder = typing.TypeVar("Builder", bound=Callable[..., Any])


def register(
    kind: str, name: str | None = None, *, cite: tuple[str, ...] = (), on: bool = True, order: int | None = None
) -> Callable[[Builder], Builder]:
    """Decorator: make a builder known under its own name, or under `name`.

    cite: keys of the papers in `studies/references.bib` that a study which uses the component refers to.
    on: whether a probe is measured where the configuration does not say; order: its place among the probes in records and
    configurations, those without one come last, by name. All are literals, see `read_declarations`. Raises `ValueError`
    for a name that is taken, and for another kind that has a switch or a place.
    """
    if kind != "probe" and (order is not None or not on):
        raise ValueError(f"only a probe has `on` and `order`, not a {kind}")

    def add(builder: Builder) -> Builder:
        key = name or builder.__name__
        if key in _BUILDERS[kind]:
            raise ValueError(f"two {kind} components are called {key!r}")
        _BUILDERS[kind][key] = builder
        return builder

    return add


def load_builders(kind: str) -> dict[str, Callable[..., Any]]:
    """Load all builders of a kind, by name in alphabetical order."""
    package = importlib.import_module(FOLDERS[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_BUILDERS[kind].items()))


class Declaration(NamedTuple):
    """The facts that a component states of itself in the text of its file."""

    summary: str  # first line of the docstring
    facts: dict[str, Any]  # keyword arguments of `register`


def read_declarations(kind: str) -> dict[str, Declaration]:
    """Read what all components of a kind in their folder declare, by name in alphabetical order, without importing them.

    It takes milliseconds where an import may need torch. Raises `ValueError` for an argument of `register` that is not a
    literal.

    >>> read_declarations("probe")["generation"].facts["on"]
    False
    """
    found: dict[str, Declaration] = {}
    for folder in importlib.import_module(FOLDERS[kind]).__path__:
        for file in Path(folder).glob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                found |= _find_declared(kind, node) if isinstance(node, ast.FunctionDef) else {}
    return dict(sorted(found.items()))


def _find_declared(kind: str, function: ast.FunctionDef) -> dict[str, Declaration]:
    """The component that this function builds, by name; empty where it is not registered as one of that kind."""
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
            registered, *names = (ast.literal_eval(a) for a in call.args)
            if registered == kind:
                facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                name = facts.pop("name", names[0] if names else function.name)
                return {name: Declaration((ast.get_docstring(function) or "").partition("\n")[0], facts)}
    return {}


def find_citations(kind: str, name: str) -> tuple[str, ...]:
    """Find the keys of the papers that a component of the folder cites; none for a name that is not known."""
    known = read_declarations(kind)
    return known[name].facts.get("cite", ()) if name in known else ()


def find_builder(kind: str, name: str) -> Callable[..., Any]:
    """Find the builder of that name. Raises `UserError` with a suggestion if there is none."""
    known = load_builders(kind)
    if name not in known:
        raise UserError(f"no {kind} called {name!r}{suggest(name, known)} (known: {', '.join(known)})")
    return known[name]


def list_options(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """List the options of a builder: its keyword-only parameters.

    Raises `UserError` for a parameter that could be given by position, which no configuration would reach.
    """
    parameters = inspect.signature(builder).parameters.values()
    if loose := [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]:
        raise UserError(
            f"{builder.__name__} takes {', '.join(loose)} by position, and options of a component are keyword-only: write "
            f"`def {builder.__name__}(*, {loose[0]}...)`"
        )
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def build(kind: str, name: str, **given: Any) -> Any:
    """Look up and call a builder with checked options.

    Raises `UserError` for an unknown name or option and for a value of the wrong type.

    >>> build("partition", "topic_skew", alfa=0.1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedfault.errors.UserError: partition 'topic_skew' has no option 'alfa'; did you mean 'alpha'? (it takes: alpha: ...
    """
    builder = find_builder(kind, name)
    return builder(**check_options(kind, name, builder, given))


def check_options(kind: str, name: str, builder: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a builder, those that were given with the types of its signature; a float may come as an int.

    Raises `UserError` for an option that the builder does not take and for a value that it does not allow.
    """
    known = list_options(builder)
    for key in given:
        if key not in known:
            takes = "; ".join(describe_options(builder)) or "no options"
            raise UserError(f"{kind} {name!r} has no option {key!r}{suggest(key, known)} (it takes: {takes})")
    hints = typing.get_type_hints(builder, include_extras=True)
    fields = {key: (hints.get(key, Any), p.default if p.default is not p.empty else ...) for key, p in known.items()}
    schema = pydantic.create_model(  # type: ignore[call-overload]
        name, __config__=pydantic.ConfigDict(strict=True, allow_inf_nan=False), **fields
    )
    try:
        return dict(schema(**given))
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{kind} {name!r}: {where}={first['input']!r}: {first['msg']}") from None


def describe_options(builder: Callable[..., Any]) -> list[str]:
    """Describe every option of a builder as its user writes it: name, type and, where there is one, the default.

    >>> describe_options(find_builder("algorithm", "fedprox"))
    ['mu: float >= 0 = 0.01', 'mode: grad, decoupled = grad']
    """
    hints = typing.get_type_hints(builder, include_extras=True)
    return [
        f"{name}: {spell_type(hints.get(name, Any))}" + ("" if p.default is p.empty else f" = {spell_value(p.default)}")
        for name, p in list_options(builder).items()
    ]


def spell_type(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Spell a type in the words of YAML; `limits` are bounds as pydantic keeps them beside it.

    >>> spell_type(typing.Annotated[float, pydantic.Field(ge=0, lt=1)])
    'float >= 0 and < 1'
    >>> spell_type(list[str] | None), spell_type(typing.Literal["I", "II"]), spell_type(bool)
    ('list of text, or null', 'I, II', 'true or false')
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return spell_type(arguments[0], [limit for field in arguments[1:] for limit in field.metadata])
    if origin is typing.Literal:
        return ", ".join(map(spell_value, arguments))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(spell_type, arguments))
    if origin is list:
        return f"list of {spell_type(arguments[0])}"
    word = {str: "text", bool: "true or false", type(None): "null"}.get(kind, kind.__name__)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(limit, name):g}" for limit in limits for name, sign in signs.items() if hasattr(limit, name)
    ]
    return " ".join([word, " and ".join(bounds)]).strip()


def spell_value(value: Any) -> str:
    """Spell a value as YAML has it on one line.

    >>> spell_value(None), spell_value(False), spell_value(["I", 2, 0.5])
    ('null', 'false', '[I, 2, 0.5]')
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(spell_value, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_summary(builder: Callable[..., Any]) -> str:
    """Read the first line of the docstring, which `fedfault list` prints."""
    return (inspect.getdoc(builder) or "").partition("\n")[0]
