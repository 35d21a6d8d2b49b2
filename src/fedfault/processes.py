"""The place of this process in a job, as torchrun says; a process that it did not start is the only one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedfault.errors import UserError

SHARED_COMMANDS = ("run", "resume")  # commands whose work several processes share


@dataclass(frozen=True)
class ProcessInfo:
    """The number of this process and how many there are, in the whole job and on its machine."""

    rank: int
    count: int
    local_rank: int
    local_count: int


def this_process() -> ProcessInfo:
    """Return the place that torchrun gave this process; one that it did not start is alone."""
    if "LOCAL_RANK" not in os.environ:
        return ProcessInfo(0, 1, 0, 1)
    return ProcessInfo(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def check_command(name: str | None) -> None:
    """`UserError` for a command that one process does alone, where torchrun has started several."""
    if (count := this_process().count) > 1 and name not in SHARED_COMMANDS:
        raise UserError(
            f"fedfault {name or '--help'} under torchrun: its {count} processes can share "
            f"{' and '.join(SHARED_COMMANDS)} only; start it without torchrun"
        )


def share_cores(beside: int) -> None:
    """Give this process its part of the cores, where so many work beside one another on a machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // beside))
