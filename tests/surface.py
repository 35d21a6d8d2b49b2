"""The public surface: every name of `fedfault.__all__` with its signature, and of classes their public members.

python tests/surface.py > tests/surface.txt        # then a line in CHANGELOG.md with the hash that it prints
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterator

import fedfault


def describe() -> str:
    """A line for every public name and member, in alphabetical order."""
    return (
        "\n".join(line for name in sorted(fedfault.__all__) for line in _describe(name, getattr(fedfault, name))) + "\n"
    )


def _describe(name: str, thing: object) -> Iterator[str]:
    if not inspect.isclass(thing):
        yield f"{name}{inspect.signature(thing)}"  # type: ignore[arg-type]
        return
    yield name
    fields = [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
    yield from (f"{name}.{field}" for field in fields)
    for member, value in sorted(vars(thing).items()):
        if not member.startswith("_") and member not in fields:
            yield f"{name}.{member}{inspect.signature(value) if inspect.isfunction(value) else ''}"


def digest(text: str) -> str:
    """The hash by which the changelog names a surface."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":
    print(describe(), end="")
    print(f"public surface {digest(describe())}", file=sys.stderr)
