"""A process that dies before its n-th file operation, and the tiny runs that it dies in.

`list_operations` and `die_at` run a function in a fork of this process, which has everything imported already. Counted is
every creation, replacement and deletion of a file or folder below a root, and every wait until a file is on disk; where
the death is `torn`, a file that is waited for loses its last bytes first, as if the kill had come within the write.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedfault.config import load
from fedfault.config.loading import Loaded
from fedfault.session.progress import Progress
from fedfault.setup.experiment import Prepared, prepare

DEAD, FAILED = 86, 87  # exit statuses: at the chosen operation, and with an exception
OPERATIONS = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TINY = [
    "data.dataset=synthetic", "data.dataset.num_topics=2", "data.dataset.num_styles=2", "data.dataset.num_words=200",
    "data.dataset.num_documents=20", "federation.total_clients=2", "federation.participation_rate=1.0",
    "federation.num_rounds=2", "training.local_steps=1", "training.batch_size=1", "model.max_length=16",
    "evaluation.max_blocks=2", "evaluation.general=none", "metrics.memory=false", "metrics.gradients=false",
    "metrics.representation=false", "metrics.attention=false", "model.lora.r_max=1",
    "model.lora.target_modules=[v_proj]", "federation.algorithm=scaffold", "logging.keep_checkpoints=1",
]  # fmt: skip
QUIET = Progress(quiet=True)


def load_tiny(results: Path, *changes: str) -> Loaded:
    """Load a run of a third of a second: SCAFFOLD, so that server and clients remember something."""
    return load("quickstart", [*TINY, f"logging.results_dir={results}", *changes])


class Lender:
    """Prepares experiments, with the model and data of the first one where they are the same."""

    def __init__(self) -> None:
        self.first: Prepared | None = None

    def __call__(self, exp: Any, say: Any) -> Prepared:
        made = prepare(exp, say, like=self.first)
        self.first = self.first or made
        return made


def list_operations(act: Callable[[], object], root: Path) -> str:
    """Run a function in a process of its own, and return its operations below `root`: s for a wait, o for others."""
    read, write = os.pipe()
    status = _fork(act, root, lambda made: os.write(write, made.encode()), at=0, torn=False)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert status == 0, "the undisturbed process failed"
        return pipe.read()


def die_at(act: Callable[[], object], root: Path, n: int, torn: bool) -> None:
    """Run a function in a process that dies before its n-th file operation below `root`."""
    status = _fork(act, root, lambda made: None, at=n, torn=torn)
    assert status == DEAD, f"operation {n} was not reached: status {status}"


def _fork(act: Callable[[], object], root: Path, tell: Callable[[str], object], at: int, torn: bool) -> int:
    def act_counted() -> None:
        counted = _Counter(str(root.resolve()), at, torn)
        sys.addaudithook(counted.notice)
        os.fsync = counted.sync
        act()
        counted.root = "/dev/null/none"
        tell(counted.made)

    return os.waitstatus_to_exitcode(os.waitpid(fork_process(act_counted), 0)[1])


def fork_process(act: Callable[[], object]) -> int:
    """Run a function in a fork of this process, and return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns that other threads are not there in the fork
        if pid := os.fork():
            return pid
    try:
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(FAILED)
    os._exit(0)


class _Counter:
    def __init__(self, root: str, at: int, torn: bool) -> None:
        self.root, self.at, self.torn, self.made = root, at, torn, ""
        self.fsync = os.fsync

    def notice(self, event: str, args: tuple[Any, ...]) -> None:
        """The hook of Python's audit events: all that changes a name below the root, and every file opened for writing."""
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
            self._count(args[0])
        elif event in OPERATIONS:
            self._count(args[OPERATIONS[event]])

    def sync(self, fd: int) -> None:
        """Stand in for os.fsync."""
        self._count(os.readlink(f"/proc/self/fd/{fd}"), fd)
        self.fsync(fd)

    def _count(self, path: Any, fd: int | None = None) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(path)).startswith(
            self.root
        ):
            return
        self.made += "o" if fd is None else "s"
        if len(self.made) == self.at:
            if self.torn and fd is not None:
                os.ftruncate(fd, max(0, os.fstat(fd).st_size - 40))
            os._exit(DEAD)
