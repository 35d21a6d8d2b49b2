"""The command line: a file for each group of commands. Imports happen inside commands, so that help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from fedfault.cli.ending import SAME
from fedfault.errors import UserError, explain_os_error, is_out_of_memory, read_first_line
from fedfault.processes import this_process
from fedfault.report.terminal import echo


def run_guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: bad input gives a message and status 2."""
    try:
        if this_process().rank:  # the first process of a job has the command, the others help it
            if "--help" in sys.argv:
                return 0
            from fedfault.parallel.distributed import serve_team

            return serve_team()
        return command() or 0
    except UserError as e:
        echo(f"error: {e}", err=True)
        return 2
    except OSError as e:
        if e.filename is None:  # not about a file: a closed pipe, a lost connection
            raise
        echo(f"error: {explain_os_error(e)}", err=True)
        return 2
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        echo(
            "error: out of memory; choose a smaller model.name, or lower federation.clients_per_round, model.lora.r_max or "
            f"model.max_length ({read_first_line(e)})",
            err=True,
        )
        return 2
    except typer.Exit as e:
        return e.exit_code
    except KeyboardInterrupt:
        echo(f"stopped; {SAME}", err=True)
        return 130


def main() -> None:
    """Run the command line, and exit with its status."""
    from fedfault.cli.app import app

    if status := run_guarded(app):
        sys.exit(status)
