"""What random tests share: how many examples there are, options of components, and files with a few bytes changed.

`FUZZ=200` makes so many examples of each test; by default there are few, and the same ones every time.
"""

from __future__ import annotations

import inspect
import math
import os
import types
import typing
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedfault.options import list_options

EXAMPLES = int(os.environ.get("FUZZ", "0"))


def fuzzed(usual: int = 20) -> Callable[[Any], Any]:
    """Decorator: so many examples, the same in every run, unless the environment asks for more."""
    return settings(
        max_examples=EXAMPLES or usual,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
    )


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as signatures have it, at its limits and a little beyond them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return values(arguments[0])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    plain = {
        int: st.integers(-1, 12),
        float: st.floats(-0.5, 3.0) | st.sampled_from([0.0, 1.0, 1e-300, 1e300, math.inf, math.nan]),
        str: st.text(max_size=3) | st.sampled_from(["length", "topic"]),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return plain.get(kind, st.none())


@st.composite
def options(draw: Any, builder: Callable[..., Any]) -> dict[str, Any]:
    """Some of the options of a component, most of them allowed."""
    hints = typing.get_type_hints(builder, include_extras=True)
    required = [n for n, p in list_options(builder).items() if p.default is inspect.Parameter.empty]
    chosen = (
        draw(st.sets(st.sampled_from(sorted(hints.keys() & list_options(builder))), max_size=2)) if hints else set()
    )
    return {name: draw(values(hints[name])) for name in sorted({*required, *chosen})}


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """Bytes of which a few are changed, left out, repeated or put in, or whose end is missing."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["change", "cut", "drop", "repeat", "insert"]))
        if how == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        elif how == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 20))]
        else:
            data[at:at] = draw(st.sampled_from(TROUBLE) | st.binary(min_size=1, max_size=4))
    return bytes(data)


TROUBLE = (  # pieces that readers of YAML, JSON and tables have stumbled over
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", b"\t", b'"', b"'", b"{", b"[", b"]", b":", b"- ",
    b"&a ", b"*a", b"!!python/object:os.system", b"<<: ", b"? ", b"|\n", b"---\n", b"%YAML 9.9\n", b"1e999", b"-0", b"NaN",
    b"1" * 5000, b"[" * 2000, b"\\ud800", b"null", b"..", b"/", b"~",
)  # fmt: skip

ODD = st.sampled_from([None, True, "", "x", "<b>", [], {}, [[]], -1, 0, 2**70, 1e308, 0.5, {"a": None}])


@st.composite
def altered(draw: Any, whole: Any) -> Any:
    """A value of JSON in which one part, somewhere, is another, missing, or there twice."""
    if not isinstance(whole, dict | list) or not whole or draw(st.integers(0, 4)) == 0:
        return draw(ODD)
    items = list(whole.items()) if isinstance(whole, dict) else list(enumerate(whole))
    at, value = draw(st.sampled_from(items))
    how = draw(st.sampled_from(["inside", "inside", "inside", "drop", "add"]))
    if isinstance(whole, dict):
        rest = {k: v for k, v in whole.items() if k != at}
        return rest if how == "drop" else {**whole, (at if how == "inside" else "odd"): draw(altered(value))}
    kept = [*whole[:at], *([draw(altered(value))] if how != "drop" else []), *whole[at + 1 :]]
    return [*kept, value] if how == "add" else kept
