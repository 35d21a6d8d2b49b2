"""Whenever a kill comes, the same command goes on to the numbers of the undisturbed run.

Every state that a kill can leave is made once: the process dies before operation 1, 2, ... on the files of a tiny run, a
fork, a continuation, a way back from an alarm, a study, a mitigation, a report. One in eight of these states is tried, of a
study and a mitigation fewer; `CRASH_STEP=1` tries all, which takes hours.
"""

from __future__ import annotations

import os

import pytest

from trials import COMMANDS, Trial

STEP = int(os.environ.get("CRASH_STEP", "8"))  # of how many states one is tried
LONG = {"mitigate": 12, "study": 4}  # of which so many times fewer are tried: they go on for half a minute
pytestmark = pytest.mark.usefixtures("quick_report")


@pytest.mark.slow
@pytest.mark.long
def test_a_run_goes_on_from_a_kill_before_some_of_its_file_operations(ready, tmp_path):
    assert Trial(COMMANDS["run"], ready, tmp_path).die_before_every(40) > 60


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_state_that_a_kill_can_leave_goes_on_to_the_same_numbers(ready, tmp_path, name):
    trial = Trial(COMMANDS[name], ready, tmp_path)
    step = STEP * LONG.get(name, 1) if STEP > 1 else 1
    states = trial.die_before_every(step)  # which asserts what is left of each
    print(f"\n{name}: every {step}th of {states} states")
    assert states >= len(trial.operations) > 10
