"""The options of a builder: its keyword-only parameters are the schema of the configuration, and the help."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pydantic

from fedfault.errors import UserError, suggest


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


def check_options(kind: str, name: str, builder: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a builder, those that were given with the types of its signature; a float may come as an int.

    Raises `UserError` for an option that the builder does not take and for a value that it does not allow.
    """
    known = list_options(builder)
    for key in given:
        if key not in known:
            takes = "; ".join(describe_options(builder)) or "no options"
            raise UserError(f"{kind} {name!r} has no option {key!r}{suggest(key, known)} (it takes: {takes})")
    try:
        return dict(_make_schema(builder)(**given))
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{kind} {name!r}: {where}={first['input']!r}: {first['msg']}") from None


@functools.lru_cache(maxsize=256)
def _make_schema(builder: Callable[..., Any]) -> type[pydantic.BaseModel]:
    """Make the schema of a builder's options, strictly of the types of its signature."""
    hints, known = typing.get_type_hints(builder, include_extras=True), list_options(builder)
    fields = {key: (hints.get(key, Any), p.default if p.default is not p.empty else ...) for key, p in known.items()}
    made: type[pydantic.BaseModel] = pydantic.create_model(  # type: ignore[call-overload]
        builder.__name__, __config__=pydantic.ConfigDict(strict=True, allow_inf_nan=False), **fields
    )
    return made


def describe_options(builder: Callable[..., Any]) -> list[str]:
    """Describe every option of a builder as its user writes it: name, type and, where there is one, the default.

    >>> from fedfault.algorithms.fedprox import fedprox
    >>> describe_options(fedprox)
    ['mu: float >= 0 = 0.01', 'mode: grad, decoupled = grad']
    """
    hints = typing.get_type_hints(builder, include_extras=True)
    return [
        f"{name}: {spell_type(hints.get(name, Any))}" + ("" if p.default is p.empty else f" = {spell_yaml(p.default)}")
        for name, p in list_options(builder).items()
    ]


def read_meanings(builder: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Read a builder's docstring: its text, and what each option means, from the lines `NAME: meaning` in it.

    A line that is indented goes on with the one before.

    >>> from fedfault.algorithms.fedprox import fedprox
    >>> read_meanings(fedprox)[1]["mu"]
    'the weight of the proximal term: how strongly a client is held to where it started; 0 is FedAvg'
    """
    known, text, meanings, last = list_options(builder), list[str](), dict[str, str](), ""
    for line in (inspect.getdoc(builder) or "").splitlines():
        name, colon, meaning = line.partition(": ")
        if colon and name in known:
            last, meanings[name] = name, meaning.strip()
        elif last and line.startswith("  "):
            meanings[last] += f" {line.strip()}"
        else:
            last = ""
            text.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(text)).strip(), meanings


def spell_type(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Spell a type in the words of YAML; `limits` are bounds as pydantic keeps them beside it.

    >>> spell_type(typing.Annotated[float, pydantic.Field(ge=0, lt=1)])
    'float >= 0 and < 1'
    >>> spell_type(list[str] | None), spell_type(typing.Literal["I", "II"]), spell_type(bool)
    ('list of text, or null', 'I, II', 'true or false')
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bounds = [limit for field in arguments[1:] for limit in getattr(field, "metadata", ())]  # validators have none
        return spell_type(arguments[0], bounds)
    if origin is typing.Literal:
        return ", ".join(map(spell_yaml, arguments))
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


def spell_yaml(value: Any) -> str:
    """Spell a value as YAML has it on one line.

    >>> spell_yaml(None), spell_yaml(False), spell_yaml(["I", 2, 0.5])
    ('null', 'false', '[I, 2, 0.5]')
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(spell_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
