"""Runs of a study whose clients train as rows of the same passes, on a device with room for several cohorts.

Every run goes its own way in a thread, and one at a time: until it asks for local training. When all runs that have begun
have asked, their clients train together (`rounds.joined`), and each goes on with its own. Threads are only a means to
stop in the middle of a round: no two are ever at work.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import replace

from fedfault.backbones.load import choose_device
from fedfault.backbones.memory import find_free_bytes
from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import AUTO
from fedfault.registry import build
from fedfault.rounds.joined import JoinedJobs, find_task
from fedfault.rounds.passes import Done, Job
from fedfault.setup.experiment import Prepared
from fedfault.studies.one import Lender, RunResult, RunTask, execute_run

MOST = 64  # runs at once: beyond that a device has enough to do, and their states take its memory


def can_join(task: RunTask) -> bool:
    """Tell whether a run may share passes with others: nothing in it hangs on the clock, on its process or on fixed passes.

    What adds to the frozen weights, or may come to do so at an alarm, needs a backbone of its own; runs that wait for each
    other's calibration must not wait for each other's training too.
    """
    exp = task.loaded.experiment
    traits = build("aggregation", exp.federation.aggregation.name, **exp.federation.aggregation.options).traits
    return (
        "folds" not in traits
        and exp.federation.on_failure in ("continue", "stop")
        and exp.training.clients_per_pass == "auto"
        and exp.clock.mode == "modelled"
        and exp.detectors.calibration != AUTO
        and not exp.logging.trackers
    )


def group_runs(tasks: Iterable[RunTask]) -> list[list[RunTask]]:
    """Group runs that may train together where the memory of the device is known; every other run is a group of its own."""
    groups: dict[Hashable, list[RunTask]] = {}
    for task in tasks:
        exp = task.loaded.experiment
        alone = find_free_bytes(choose_device(exp.device)) is None or not can_join(task)
        groups.setdefault(task.name if alone else _describe_needs(exp), []).append(task)
    return list(groups.values())


def _describe_needs(exp: Experiment) -> str:
    """Describe the backbone and the step that runs have to have in common."""
    t = exp.training
    loss = (exp.data.task_type, t.preference)
    shared = (exp.plugins, exp.device, exp.model, *loss, t.batch_size, t.gradient_accumulation)
    return repr((*shared, t.gradient_checkpointing, t.optimizer, t.lr_ratio, t.max_grad_norm, t.weight_decay, t.betas))


class _Stopped(BaseException):
    """Ends a run in the middle of a round, as a kill would."""


class _Turn:
    """A run in a thread of its own, which is at work only within `go_on`."""

    def __init__(self, act: Callable[[], RunResult]) -> None:
        self.job: Job | None = None  # what it waits for
        self.result: RunResult | None = None  # once it is over
        self._answer: Done | Exception | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()

    def go_on(self, answer: Done | Exception | None = None) -> None:
        """Let the run go on, with what came of its job, until it has another one or is over."""
        self.job, self._answer = None, answer
        self._go.release()
        self._back.acquire()

    def ask(self, job: Job) -> Done:
        """In the run's thread: wait for the result of a job. Raises what the job raised."""
        self.job = job
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped
        assert self._answer is not None
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def stop(self) -> None:
        """End the run at its next job, or at once if it waits for one."""
        self._stopped = True
        self._go.release()
        self._thread.join()

    def _run(self, act: Callable[[], RunResult]) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                self.result = act()
        except _Stopped:
            pass
        finally:
            self._back.release()


class _Together:
    """The runs that have begun, and what they share."""

    def __init__(self) -> None:
        self.jobs = JoinedJobs()
        self.turns: list[_Turn] = []
        self.now: _Turn | None = None  # the one at work
        self.lender = Lender(self.spread)

    def spread(self, p: Prepared) -> Prepared:
        """The experiment with local training beside that of the other runs."""
        return replace(p, federation=replace(p.federation, train_job=self._ask), spread=self.spread)

    def _ask(self, job: Job) -> Done:
        assert self.now is not None
        return self.now.ask(job)

    def begin(self, task: RunTask) -> None:
        """Begin a run, which goes on to its first local training."""
        turn = _Turn(functools.partial(_execute_on_device, task, self.lender))
        self.turns.append(turn)
        self._let_go_on(turn, None)

    def train(self) -> None:
        """Train what every run has asked for, and let each go on."""
        asked = [(turn, turn.job) for turn in self.turns if turn.job is not None]
        answers = self.jobs.train([job for _, job in asked])
        for (turn, job), answer in zip(asked, answers, strict=True):
            self._let_go_on(turn, answer)
            if turn.result is not None:
                self.jobs.forget(find_task(job))

    def _let_go_on(self, turn: _Turn, answer: Done | Exception | None) -> None:
        self.now = turn
        turn.go_on(answer)

    def take_results(self) -> list[RunResult]:
        """Take out the runs that are over."""
        over = [turn.result for turn in self.turns if turn.result is not None]
        self.turns = [turn for turn in self.turns if turn.result is None]
        return over


def _execute_on_device(task: RunTask, lender: Lender) -> RunResult:
    """`execute_run`, with its device in force: of several CUDA devices every thread begins on the first."""
    choose_device(task.loaded.experiment.device)
    return execute_run(task, lender)


def run_together(tasks: Sequence[RunTask]) -> Generator[RunResult, None, None]:
    """Results as they come, of runs in one group of `group_runs`; as many go on at once as there is room for."""
    waiting, together, most = deque(tasks), _Together(), 1
    choose_device(tasks[0].loaded.experiment.device)  # that of all of them, on which this thread trains
    try:
        while waiting or together.turns:
            while waiting and len(together.turns) < most:
                together.begin(waiting.popleft())
                most = max(most, *map(_count_cohorts, together.turns))
            yield from together.take_results()
            together.train()
    finally:
        for turn in together.turns:
            turn.stop()


def _count_cohorts(turn: _Turn) -> int:
    """Count the cohorts like that of a run that fit into one pass, up to `MOST`."""
    job = turn.job
    task = None if job is None else find_task(job)
    if job is None or task is None or task.free is None:
        return 1
    return max(1, min(MOST, task.clients_per_pass(job.work.part_size) // len(job.clients)))
