"""Which of the processes of a job this one is, as torchrun says; a process that it did not start is the only one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedfault.errors import UserError

ABLE = ("run", "resume")  # commands whose work several processes share


@dataclass(frozen=True)
class Place:
    """Of a process among all processes, and among those of its machine."""

    rank: int
    count: int
    local_rank: int
    local_count: int


def place() -> Place:
    """This process's own."""
    if "LOCAL_RANK" not in os.environ:
        return Place(0, 1, 0, 1)
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def check_command(name: str | None) -> None:
    """`UserError` for a command that one process does alone, where torchrun has started several."""
    if (count := place().count) > 1 and name not in ABLE:
        raise UserError(
            f"fedfault {name or '--help'} under torchrun: its {count} processes can share {' and '.join(ABLE)} only; "
            "start it without torchrun"
        )


def share_cores(beside: int) -> None:
    """Give this process its part of the cores, where so many work beside one another on a machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // beside))
