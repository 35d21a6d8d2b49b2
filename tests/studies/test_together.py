"""Runs that train together: here on a CPU with memory that is made up, as only a device with room has any."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.rounds import joined
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress
from fedfault.studies import doors, one, runner, together
from fedfault.studies.file import load_study
from fedfault.studies.one import RunResult, RunTask
from fedfault.tasks import base, fitting
from small import SMALL

WORDS = [w for w in SMALL if "local_steps" not in w]
QUIET = Progress(quiet=True)
ARMS = {
    "plain": {},
    "adam": {"federation.algorithm": "fedadam"},
    "slow": {"training.lr": 0.0001, "training.local_steps": 3},
    "prox": {"federation.algorithm": "fedprox"},
    "scaffold": {"federation.algorithm": "scaffold"},
    "dyn": {"federation.algorithm": "feddyn"},
    "moon": {"federation.algorithm": "moon"},
}


@pytest.fixture
def room(monkeypatch):
    """Lets the CPU have so much free memory as a GPU would."""
    monkeypatch.setattr(fitting, "find_free_bytes", lambda device: 2**34)
    monkeypatch.setattr(together, "find_free_bytes", lambda device: 2**34)


@pytest.fixture
def sizes(monkeypatch):
    """How many clients each joint job has that was done as one."""
    seen, split = [], joined._split

    def note(done, jobs, seconds):
        seen.append(len(done.y))
        return split(done, jobs, seconds)

    monkeypatch.setattr(joined, "_split", note)
    return seen


@pytest.fixture
def plan(write, tmp_path):
    """A study of the arms and two seeds, two steps a client and round unless an arm says otherwise."""

    def load_plan(name, *words, **more):
        study = {"arms": ARMS, "seeds": 2, "training": {"local_steps": 2}, **more}
        return load_study(write(name, **study), [*WORDS, *words], str(tmp_path))

    return load_plan


def run(plan, **options):
    """Run all of a plan, which has to end well, and return it."""
    assert {d.state for d in runner.run_all(plan, QUIET, **options)} == {"finished"}
    return plan


def losses(plan) -> list[list[float]]:
    """The validation losses and the clients' losses of every round of every run."""
    found = []
    for name in plan.study.runs:
        records = RunFolder(plan.path(name)).read_records()
        found.append([x for r in records for x in (r.scores["validation"].loss, *(c.loss for c in r.clients))])
    return found


@pytest.mark.long
def test_runs_together_get_the_numbers_that_each_gets_alone(plan, room, sizes):
    """Other seeds, so other data and clients; another server; another rate and more steps; terms of their own."""
    alone = run(plan("alone"))
    assert sizes == []
    beside = run(plan("beside"), jobs="auto")
    assert sizes == [24, 4] * 3  # two clients of each run; those with a contrast go by themselves
    for one_, other in zip(losses(beside), losses(alone), strict=True):
        assert one_ == pytest.approx(other, rel=1e-6)


@pytest.mark.long
def test_a_study_that_was_stopped_goes_on_to_the_same_numbers(plan, room, monkeypatch):
    arms = {"plain": {}}
    whole = run(plan("whole", arms=arms, seeds=3), jobs="auto")
    train, calls = together.JoinedJobs.train, []

    def stop(self, jobs):
        calls.append(jobs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, jobs)

    monkeypatch.setattr(together.JoinedJobs, "train", stop)
    before = threading.active_count()
    halves = plan("halves", arms=arms, seeds=3)
    with pytest.raises(KeyboardInterrupt):
        runner.run_all(halves, QUIET, jobs="auto")
    assert threading.active_count() == before
    left = [RunFolder(halves.path(name)).read_records()[-1].round for name in halves.study.runs]
    assert left == [2, 2, 2]
    monkeypatch.setattr(together.JoinedJobs, "train", train)
    run(halves, jobs="auto")
    for one_, other in zip(losses(halves), losses(whole), strict=True):
        assert one_ == pytest.approx(other, rel=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_fails_in_a_joint_pass_fails_alone(plan, room, monkeypatch):
    bad = []

    def break_joint(self, params, step):
        bad.append(len(params))
        raise RuntimeError("of a bug")

    monkeypatch.setattr(joined._JoinedTask, "grad", break_joint)
    p = run(plan("broken", arms={"plain": {}}), jobs="auto")
    assert len(bad) == 3
    first = RunFolder(p.path(p.study.runs[0])).read_records()[1]
    assert "runs that share passes were trained one by one: of a bug" in first.events


def task(*words: str, name: str = "a") -> RunTask:
    return RunTask(name, None, load("quickstart", [*SMALL, *words]), ())


@pytest.mark.parametrize(
    ("word", "joins"),
    [
        ("seed=7", True),
        ("training.lr=0.5", True),
        ("federation.algorithm=scaffold", True),
        ("model.lora.r_max=4", False),
        ("training.batch_size=3", False),
        ("model.max_length=8", False),
        ("federation.aggregation=flora", False),
        ("federation.on_failure=rollback", False),
        ("training.clients_per_pass=2", False),
        ("detectors.calibration=auto", False),
        ("clock.mode=measured", False),
        ("logging.trackers=[tensorboard]", False),
    ],
)
def test_runs_are_grouped_by_what_a_pass_needs(word, joins, room):
    groups = together.group_runs([task(), task(word, name="b")])
    assert [len(group) for group in groups] == ([2] if joins else [1, 1])


def test_runs_on_pairs_are_grouped_by_their_objective(room):
    words = ["data.dataset=text", "data.path=x.jsonl", "data.task_type=preference"]
    runs = [
        task(*words, f"training.preference.beta={beta}", name=name) for name, beta in zip("abc", (1, 2, 1), strict=True)
    ]
    assert [[run.name for run in group] for group in together.group_runs(runs)] == [["a", "c"], ["b"]]


@pytest.mark.slow
def test_on_a_cpu_runs_go_one_after_another(plan, monkeypatch):
    begun = []
    monkeypatch.setattr(
        runner, "execute_run", lambda task, lender: begun.append(task.name) or one.RunResult(task.name, "finished")
    )
    runner.run_all(p := plan("cpu"), QUIET, jobs="auto")
    assert begun == p.study.runs
    assert len(together.group_runs([task(), task(name="b")])) == 2


@pytest.mark.long
def test_as_many_runs_go_on_at_once_as_a_pass_has_room_for_cohorts(plan, room, sizes, monkeypatch):
    """Five clients fit into a pass and two are in a cohort, so two of five runs, two more, and the last one alone."""
    monkeypatch.setattr(base.CohortTask, "clients_per_pass", lambda self, batch: 5)
    few = plan("few", "federation.num_rounds=1", arms={"plain": {}}, seeds=5)
    run(few, jobs="auto")
    assert sizes == [4, 4]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_jobs_is_a_number_of_processes_or_auto(text):
    assert doors.parse_jobs("auto") == "auto"
    assert doors.parse_jobs("3") == 3
    with pytest.raises(UserError, match=rf"--jobs {text}: give a number of processes from 1 on, or auto"):
        doors.parse_jobs(text)


def test_every_thread_of_runs_together_has_their_device_in_force(monkeypatch):
    """Of several CUDA devices a thread begins on the first, whatever another has chosen."""
    chosen = []
    monkeypatch.setattr(together, "choose_device", lambda name: chosen.append((name, threading.get_ident())))
    monkeypatch.setattr(together, "execute_run", lambda task, lender: RunResult(task.name, "finished"))
    tasks = [
        SimpleNamespace(name=name, loaded=SimpleNamespace(experiment=SimpleNamespace(device="cuda:1"))) for name in "ab"
    ]
    assert len([*together.run_together(tasks)]) == 2
    assert {name for name, _ in chosen} == {"cuda:1"}
    assert len({thread for _, thread in chosen}) >= 2
