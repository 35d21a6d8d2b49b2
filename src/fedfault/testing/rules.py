"""What a rule of a contract is: a sentence, and a function that a component passes or that says what it did instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from fedfault.options import check_options, list_options
from fedfault.registry import load_builders, read_summary


class RuleBroken(AssertionError):
    """A component breaks a rule; the message says which one, and what it did."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A component under test: its builder and the options that it is built with."""

    kind: str
    builder: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """The name that the builder is registered under, or its own."""
        known = load_builders(self.kind).items()
        return next((name for name, builder in known if builder is self.builder), self.builder.__name__)

    def build(self, **more: Any) -> Any:
        """The component as a configuration would build it. Raises `UserError` for options that it does not take."""
        given = {**self.options, **more}
        return self.builder(**check_options(self.kind, self.name, self.builder, given))


@dataclass(frozen=True)
class Rule:
    """One sentence of a contract."""

    sentence: str
    run: Callable[[Subject], None]
    slow: bool  # takes some tenths of a second and more

    def check(self, subject: Subject) -> None:
        """Raises `RuleBroken` with the rule's sentence and what the component did, whatever it raised."""
        try:
            self.run(subject)
        except Exception as e:
            did = str(e) if isinstance(e, RuleBroken) else f"{type(e).__name__}: {e}"
            raise RuleBroken(f"{subject.name} breaks the rule {self.run.__name__!r}: {self.sentence}\n  {did}") from e


RULES: dict[str, dict[str, Rule]] = {}  # kind -> name of the rule -> the rule


def rule(kind: str, *, slow: bool = False) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Decorator: a function is a rule for components of this kind, and its docstring the sentence that says it."""

    def add(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        sentence = " ".join((run.__doc__ or "").split())
        RULES.setdefault(kind, {})[run.__name__] = Rule(sentence, run, slow)
        return run

    return add


def expect(holds: object, otherwise: str) -> None:
    """Raises `RuleBroken` with what was found instead, unless something holds; `python -O` does not switch it off."""
    if not holds:
        raise RuleBroken(otherwise)


def expect_line(builder: Callable[..., Any]) -> None:
    """Raises `RuleBroken` unless the first line of the docstring, which `fedfault list` prints, has 20 to 120 characters."""
    line = read_summary(builder)
    expect(20 <= len(line) <= 120, f"{len(line)} characters: {line!r}")


def expect_chosen_by_name(builder: Callable[..., Any]) -> None:
    """Raises `RuleBroken` with the options that have no default: with these, its name alone would not choose it."""
    missing = [key for key, option in list_options(builder).items() if option.default is option.empty]
    expect(not missing, f"no default for {', '.join(missing)}")


def expect_close(got: Any, wanted: Any, what: str, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Raises `RuleBroken` where tensors, or mappings of tensors, differ by more than rounding."""
    try:
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)
    except AssertionError as e:
        raise RuleBroken(f"{what}: {' '.join(str(e).split())}") from None
