"""Groups of commands: what was meant by a command or an option that is none, and a command that may be left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click
from typer.core import TyperGroup

from fedfault.errors import UserError, suggest


class Commands(TyperGroup):
    """Commands, of which an unknown one and an unknown option are refused in a sentence that says what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with explain_option():
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, which is the first word."""
        if args[0] not in self.commands:
            raise UserError(
                f"no command {args[0][:60]!r}{suggest(args[0], self.commands)} (known: {', '.join(self.commands)})"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own words and run it."""
        with explain_option():
            return super().invoke(ctx)


@contextlib.contextmanager
def explain_option() -> Iterator[None]:
    """Say what is meant where a command does not have an option."""
    try:
        yield
    except click.NoSuchOption as e:
        from fedfault.config.explain import explain_flag

        options = [] if e.ctx is None else [flag for known in e.ctx.command.params for flag in known.opts]
        raise UserError(explain_flag(e.option_name, [flag for flag in options if flag.startswith("-")])) from None


class CommandsWithDefault(Commands):
    """A group whose first command, `run`, may be left out: `fedfault study FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)
