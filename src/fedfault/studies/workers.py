"""Runs side by side: processes that take one run after another and lend its model and data to the next."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection

from fedfault.processes import share_cores
from fedfault.studies.one import Lender, RunResult, RunTask, execute_run


def run_side_by_side(tasks: Sequence[RunTask], jobs: int) -> Generator[RunResult, None, None]:
    """Results as they come. Every process has its share of the cores; one that dies fails its run alone."""
    waiting: queue.SimpleQueue[RunTask | None] = queue.SimpleQueue()
    results: queue.SimpleQueue[RunResult] = queue.SimpleQueue()
    stop = threading.Event()
    for task in [*tasks, *[None] * jobs]:
        waiting.put(task)
    threads = [threading.Thread(target=_feed, args=(waiting, results, stop, jobs)) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            yield results.get()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _feed(
    waiting: queue.SimpleQueue[RunTask | None], results: queue.SimpleQueue[RunResult], stop: threading.Event, jobs: int
) -> None:
    """Hand runs to a process of this thread's own, and to a new one when that has died."""
    with contextlib.ExitStack() as stack:
        process, pipe = _worker(jobs, stack)
        while (task := waiting.get()) is not None and not stop.is_set():
            try:
                pipe.send(task)
                while not pipe.poll(0.2):
                    if stop.is_set():
                        return
                results.put(pipe.recv())
            except (EOFError, OSError):
                process.join()
                results.put(RunResult(task.name, "failed", why=f"its process died with status {process.exitcode}"))
                process, pipe = _worker(jobs, stack)


def _worker(jobs: int, stack: contextlib.ExitStack) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, jobs), daemon=True)
    process.start()
    theirs.close()  # so that either side sees the end of the other
    stack.callback(process.terminate)
    return process, ours


def _serve(pipe: Connection, jobs: int) -> None:
    """In the process: run what comes until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    share_cores(jobs)
    lender = Lender()
    while True:
        try:
            pipe.send(execute_run(pipe.recv(), lender))
        except (EOFError, OSError):
            return


def _die_with_parent() -> None:
    """A run that nobody waits for would keep its folder locked when the study is started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
